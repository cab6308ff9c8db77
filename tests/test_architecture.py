"""The floors and gates of the source tree, read from its imports; and what no source file may do.

Each rule is a function of a source text and its path that returns the problems found, so that a second set of tests can
show, on a few offending lines, that the rule can fail.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A folder (or a file beside the folders) imports from lower floors only; inside a folder any file may import any other, as
# long as there is no circle. The longest listed name decides, so `tune` itself stands for `tune/__init__.py` alone.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("imf_core", "imf_core.errors", "imf_core.lazy"),
    ("imf_core.files",),
    ("imf_core.config_base", "imf_core.study_reader", "imf_core.runtime"),
    ("imf_core.parts",),
    ("imf_core.config_train",),
    ("imf_core.config",),
    ("imf_core.data",),
    ("imf_core.answers",),
    ("imf_core.encode",),
    ("imf_core.prepare", "imf_core.model"),
    ("imf_core.checkpoint",),
    ("imf_core.evaluate",),
    ("imf_core.train",),
    ("imf_core.predict",),
    ("imf_core.ensemble", "imf_core.recommend", "imf_core.card", "imf_core.complete"),
    ("imf_core.tasks", "imf_core.interface"),
    ("imf_core.commands", "imf_core.testing"),
    ("imf_core.cli",),
    ("tune", "tune.durations", "tune.environment", "tune.sources", "tune.uris"),
    ("tune.space",),
    ("tune.settings",),
    ("tune.study", "tune.hosts"),
    ("tune.plan", "tune.tracking"),
    ("tune.trial", "tune.report", "tune.budget"),
    ("tune.runs",),
    ("tune.pipeline",),
    ("tune.options", "tune.interface"),
    ("tune.search",),
)
FLOOR_OF = {module: level for level, floor in enumerate(FLOORS) for module in floor}
PACKAGES = ("imf_core", "tune")

# library -> where it may be imported: a folder (ends in "/") or a file
GATES: dict[str, tuple[str, ...]] = {
    "ray": ("tune/",),
    "optuna": ("tune/study/", "tune/report/"),
    "mlflow": ("tune/tracking/",),
    "transformers": ("imf_core/encode/",),
    "huggingface_hub": ("imf_core/encode/hub.py", "imf_core/checkpoint/hub.py"),
    "torchvision": ("imf_core/encode/",),
    "timm": ("imf_core/encode/",),
    "fastapi": ("imf_core/commands/serve/service.py",),
    "starlette": ("imf_core/commands/serve/service.py",),
    "uvicorn": ("imf_core/commands/serve/serve.py", "imf_core/commands/serve/connections.py"),
    "torch_geometric": ("imf_core/encode/structure/", "imf_core/recommend/"),
    "tune": ("tune/",),
}
UNSAFE_SERIALISERS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
BROAD = {"Exception", "BaseException", "builtins.Exception", "builtins.BaseException"}
BROAD_ALLOWED = {
    "tune/trial/trial.py",
    "tune/hosts/cluster.py",  # a Ray that does not start raises a plain Exception
}
# Who may ask for the lines of the test split: the audit, as a command and before a search, the converter, which looks at
# nothing, and the splitter. The readers themselves hand the wish on.
TEST_READS = {"read_raw", "read_files", "GraphSource.open"}
TEST_READERS = {
    "imf_core/commands/data/audit.py", "imf_core/commands/data/convert.py", "imf_core/commands/data/split.py",
    "imf_core/interface/data.py", "imf_core/tasks/link.py", "imf_core/data/formats/readers.py", "imf_core/prepare/link_data.py",
}


# --- reading a source file ------------------------------------------------------------------------------------------


def module_of(path: str) -> str:
    """`imf_core/data/__init__.py` -> `imf_core.data`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def nodes(source: str, types: bool = True) -> tuple[ast.AST, ...]:
    """All nodes of a file, parsed once for all rules; `types=False` leaves out what stands under `if TYPE_CHECKING:`."""
    tree = ast.parse(source)
    for node in [] if types else list(ast.walk(tree)):
        if isinstance(node, ast.If) and dotted(node.test, aliases(source)) == "typing.TYPE_CHECKING":
            node.body = []
    return tuple(ast.walk(tree))


def imports(source: str, path: str, *, types: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever in the file; `from a import b` is `a.b`, relative ones resolved."""
    package = module_of(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    names = aliases(source)
    for node in nodes(source, types):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, stem if alias.name == "*" else f"{stem}.{alias.name}"
        elif isinstance(node, ast.Call) and dotted(node.func, names) in {"importlib.import_module", "__import__"}:
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


@cache
def aliases(source: str) -> Mapping[str, str]:
    """What each imported name stands for: `import numpy as np` -> `{"np": "numpy"}`."""
    found: dict[str, str] = {}
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def dotted(node: ast.expr | None, names: Mapping[str, str]) -> str:
    """The dotted name that an expression spells, aliases resolved; empty where it is something else."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def listed(module: str) -> str:
    """The longest listed module that is `module` or contains it."""
    parts = module.split(".")
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in FLOOR_OF), "")


# --- the rules ------------------------------------------------------------------------------------------------------


def floor_problems(source: str, path: str) -> list[str]:
    """Imports from a higher floor or from another folder of the same floor; a file that has no floor."""
    module = module_of(path)
    place = listed(module)
    if module in PACKAGES:
        return _eager(source, path)
    if place in {"", *PACKAGES} and module != place:
        return [f"{path}: has no floor; name it in FLOORS of tests/test_architecture.py"]
    return [
        f"{path}:{line}: imports {name} (floor {FLOOR_OF[other]}) from floor {FLOOR_OF[place]}"
        for line, name in imports(source, path)
        if (other := listed(name)) and other != place and other not in PACKAGES and FLOOR_OF[other] >= FLOOR_OF[place]
    ]


def _eager(source: str, path: str) -> list[str]:
    """What a package imports at once: its public names are of any floor, but only for type checkers, and else lazy."""
    return [
        f"{path}:{line}: imports {name}; name it in export()"
        for line, name in imports(source, path, types=False)
        if not name.startswith(("typing.", "importlib.metadata.")) and name != "imf_core.lazy.export"
    ]


def gate_problems(source: str, path: str) -> list[str]:
    """Libraries imported outside their gate; Ray's `tune` under the name of our package."""
    problems = []
    for line, name in imports(source, path):
        library = name.split(".")[0]
        places = GATES.get(library)
        if places and not any(path.startswith(place) if place.endswith("/") else path == place for place in places):
            problems.append(f"{path}:{line}: imports {library}; its place is {', '.join(places)}")
    if aliases(source).get("tune", "tune") != "tune":
        problems.append(f"{path}: another module is called tune here; write `import ray.tune as ray_tune`")
    return problems


def safety_problems(source: str, path: str) -> list[str]:
    """Files that can run code when read, text run as code, failures swallowed whole."""
    problems = [
        f"{path}:{line}: imports {name}; what it reads can run code, use safetensors or JSON"
        for line, name in imports(source, path)
        if name.split(".")[0] in UNSAFE_SERIALISERS
    ]
    names = aliases(source)
    for node in nodes(source):
        if isinstance(node, ast.Call):
            function = dotted(node.func, names)
            if function in {"eval", "exec", "builtins.eval", "builtins.exec"}:
                problems.append(f"{path}:{node.lineno}: calls {function}()")
            if function == "torch.load" and _given(node, "weights_only") is not True:
                problems.append(f"{path}:{node.lineno}: torch.load without weights_only=True")
            if function == "numpy.load" and _given(node, "allow_pickle") not in {None, False}:
                problems.append(f"{path}:{node.lineno}: numpy.load with allow_pickle")
        elif isinstance(node, ast.ExceptHandler) and path not in BROAD_ALLOWED:
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(kind is None or dotted(kind, names) in BROAD for kind in kinds):
                problems.append(f"{path}:{node.lineno}: broad except; name what can fail here")
    return problems


def look_problems(source: str, path: str) -> list[str]:
    """Raw graphs read with their test triples by anyone but the audit and the converter."""
    names = aliases(source)
    return [
        f"{path}:{node.lineno}: reads test triples; only finalising and the audit look at them"
        for node in nodes(source)
        if isinstance(node, ast.Call)
        and any(f".{dotted(node.func, names)}".endswith(f".{function}") for function in TEST_READS)
        and _given(node, "test") not in {None, False}
        and path not in TEST_READERS
    ]


def _given(call: ast.Call, name: str) -> object:
    """The constant passed as keyword `name`; None where it is left out, the source text where it is no constant."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else ast.unparse(keyword.value)
    return None


def shadow_problems(paths: Iterable[str]) -> list[str]:
    """Modules at the top of tune/ that hide another: `python tune/search.py` puts that folder first on the path."""
    taken = sys.stdlib_module_names | (GATES.keys() - {"tune"}) | {"imf_core", "torch", "numpy", "tune"}
    names = {path: path.removesuffix("/__init__.py").removesuffix(".py") for path in paths if path.startswith("tune/")}
    return [f"{path}: hides the module {name[5:]}" for path, name in names.items() if "/" in name and name[5:] in taken]


def cycle_problems(sources: Mapping[str, str]) -> list[str]:
    """Files that import one another in a circle, types aside; a floor alone does not forbid it."""
    known = {module_of(path) for path in sources}
    graph: dict[str, set[str]] = {}
    for path, source in sources.items():
        module = module_of(path)
        targets = {name if name in known else name.rpartition(".")[0] for _, name in imports(source, path, types=False)}
        graph[module] = (targets & known) - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [f"import cycle: {' -> '.join(error.args[1])}"]
    return []


RULES = (floor_problems, gate_problems, safety_problems, look_problems)

# --- the tree -------------------------------------------------------------------------------------------------------

SOURCES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}


def test_the_tree_is_found() -> None:
    assert {"imf_core/errors.py", "imf_core/config.py", "tune/__init__.py"} <= SOURCES.keys()


def test_every_file_keeps_the_rules() -> None:
    problems = [problem for path, source in SOURCES.items() for rule in RULES for problem in rule(source, path)]
    assert not problems, "\n".join(problems)


def test_no_module_of_tune_hides_another() -> None:
    assert shadow_problems(SOURCES) == []


def test_imports_have_no_cycle() -> None:
    assert cycle_problems(SOURCES) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_no_work(package) -> None:
    code = f"import sys, {package}; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert package in loaded
    assert loaded & {"torch", "numpy", "pydantic", "pandas", "ray", "optuna", "mlflow", "typer", "rich"} == set()


# --- each rule can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imf_core/errors.py", "from imf_core.data.graph.graph import KnowledgeGraph"),
        ("imf_core/config.py", "import imf_core.model.imf"),
        ("imf_core/data/graph/graph.py", "from imf_core.encode import text"),
        ("imf_core/data/graph/graph.py", "from imf_core.prepare import link_data"),
        ("imf_core/data/__init__.py", "from ..prepare.link_data import prepare"),
        ("imf_core/data/brand_new.py", "from ..model.imf import Imf"),
        ("imf_core/encode/text/ngrams.py", "from imf_core.prepare.link_data import prepare"),
        ("imf_core/model/imf.py", "from imf_core.train.fit import fit"),
        ("imf_core/train/fit.py", "def run():\n    from imf_core.predict import Predictor"),
        ("imf_core/predict.py", "from imf_core import cli"),
        ("imf_core/train/fit.py", "import typing\nif typing.TYPE_CHECKING:\n    from imf_core import predict"),
        ("imf_core/cli.py", "import tune.search"),
        ("imf_core/cli.py", "import importlib\nimportlib.import_module('tune.search')"),
        ("tune/settings.py", "from tune.study.searcher import open_study"),
        ("tune/study/records.py", "from tune.tracking.tracker import Tracker"),
        ("tune/tracking/tracker.py", "from tune.trial.worker import loop"),
        ("tune/trial/worker.py", "from tune.report.html import write_html"),
        ("tune/trial/trial.py", "from ..runs.finalise import finalise"),
        ("tune/runs/finalise.py", "from tune.pipeline import report"),
        ("tune/report/files.py", "from tune import search"),
        ("tune/unlisted.py", ""),
        ("imf_core/unlisted.py", ""),
        ("tune/__init__.py", "from tune.space.space import SearchSpace"),
        ("imf_core/__init__.py", "import torch"),
    ],
)
def test_a_wrong_floor_is_seen(path, source) -> None:
    assert len(floor_problems(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imf_core/config.py", "from imf_core.errors import ConfigError"),
        ("imf_core/data/graph/graph.py", "from .readers import read\nfrom ..errors import DataError\nimport numpy as np"),
        ("imf_core/prepare/link_data.py", "from imf_core.encode.text.ngrams import encode\nfrom .graph import KnowledgeGraph"),
        ("imf_core/model/imf.py", "from imf_core.data import prepared\nfrom imf_core import __version__"),
        ("tune/settings.py", "from imf_core.cli import main\nfrom tune.space.space import SearchSpace"),
        ("tune/search.py", "from tune import report, records\nimport ray.tune as ray_tune"),
        ("tune/__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tune.interface import Study"),
    ],
)
def test_a_right_floor_passes(path, source) -> None:
    assert floor_problems(source, path) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imf_core/train/fit.py", "import ray"),
        ("imf_core/train/fit.py", "from ray.train import report"),
        ("imf_core/train/fit.py", "def lazily():\n    import optuna"),
        ("imf_core/cli.py", "import mlflow.pytorch"),
        ("imf_core/cli.py", "from tune import search"),
        ("imf_core/cli.py", "__import__('ray')"),
        ("tune/trial/trial.py", "import optuna"),
        ("tune/trial/trial.py", "from mlflow.tracking import MlflowClient"),
        ("tune/sub/tracking.py", "import mlflow"),
        ("tune/space/space.py", "import transformers"),
        ("imf_core/prepare/link_data.py", "from torchvision import models"),
        ("imf_core/model/imf.py", "import timm"),
        ("imf_core/model/imf.py", "from torch_geometric.nn import GATConv"),
        ("imf_core/encode/text/ngrams.py", "import torch_geometric"),
        ("imf_core/commands/model/predict_file.py", "from fastapi import FastAPI"),
        ("imf_core/commands/serve/serve.py", "from starlette.responses import Response"),
        ("imf_core/cli.py", "def serve():\n    import uvicorn"),
        ("tune/trial/trial.py", "from ray import tune"),
        ("tune/trial/trial.py", "import ray.tune as tune"),
    ],
)
def test_a_library_outside_its_gate_is_seen(path, source) -> None:
    assert len(gate_problems(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tune/trial/trial.py", "import ray\nimport ray.tune as ray_tune\nfrom ray.train import report\nimport tune.study"),
        ("tune/study/searcher.py", "import optuna\nfrom tune import settings"),
        ("tune/tracking/tracker.py", "import mlflow"),
        ("imf_core/encode/image/bitmap.py", "import timm, torchvision, transformers"),
        ("imf_core/encode/structure/attention.py", "from torch_geometric.nn import GATConv"),
    ],
)
def test_a_library_in_its_gate_passes(path, source) -> None:
    assert gate_problems(source, path) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "import dill as d",
        "import cloudpickle",
        "from torch import load as read\nread(path)",
        "import torch as th\nth.load(path, weights_only=False)",
        "from torch import load\nload(path, weights_only=flag)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "import builtins\nbuiltins.eval('1')",
        "try:\n    pass\nexcept Exception:\n    pass",
        "try:\n    pass\nexcept (OSError, BaseException) as error:\n    raise",
        "try:\n    pass\nexcept:\n    pass",
        "import builtins\ntry:\n    pass\nexcept builtins.Exception:\n    pass",
    ],
)
def test_an_unsafe_line_is_seen(source) -> None:
    assert len(safety_problems(source, "tune/trial/worker.py")) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("imf_core/checkpoint/checkpoint.py", "import torch\ntorch.load(path, weights_only=True)\nmodel.eval()"),
        ("imf_core/data/features/modality.py", "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)"),
        ("imf_core/data/graph/graph.py", "try:\n    pass\nexcept (OSError, ValueError):\n    pass"),
        ("tune/trial/trial.py", "try:\n    pass\nexcept Exception:\n    raise"),
    ],
)
def test_a_safe_line_passes(path, source) -> None:
    assert safety_problems(source, path) == []


@pytest.mark.parametrize(
    "source",
    [
        "from imf_core.data.formats.readers import read_raw\nread_raw(folder, test=True)",
        "from imf_core.data.formats.readers import read_raw as lines\nlines(folder, test=wanted)",
        "from imf_core.data import readers\nreaders.read_raw(folder, test=True)",
        "from imf_core.data.formats.readers import read_files\nread_files(files, test=True)",
        "from imf_core.prepare.link_data import GraphSource\nGraphSource.open(config, test=True)",
    ],
)
def test_a_look_at_test_triples_is_seen(source) -> None:
    assert len(look_problems(source, "tune/trial/trial.py")) == 1
    assert look_problems(source, "imf_core/commands/data/audit.py") == []
    assert look_problems(source.replace("test=True", "test=False").replace("test=wanted", ""), "tune/trial/trial.py") == []


@pytest.mark.parametrize("name", ["types.py", "queue.py", "logging/__init__.py", "resource.py", "ray.py", "tune.py"])
def test_a_hiding_module_is_seen(name) -> None:
    assert len(shadow_problems(["tune/__init__.py", "tune/search.py", f"tune/{name}"])) == 1


def test_a_cycle_is_seen() -> None:
    assert cycle_problems({"imf_core/a.py": "from imf_core import b", "imf_core/b.py": "from .a import thing"})
    assert cycle_problems({"imf_core/a.py": "from imf_core import b", "imf_core/b.py": "import numpy"}) == []
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import thing\nelse:\n    import json"
    assert cycle_problems({"imf_core/a.py": "from imf_core import b", "imf_core/b.py": for_types}) == []
    at_run_time = for_types.replace("import json", "from imf_core import a")
    assert cycle_problems({"imf_core/a.py": "from imf_core import b", "imf_core/b.py": at_run_time})
