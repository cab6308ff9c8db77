"""What the pages tell a reader to type exists: scripts, modules, subcommands, targets and flags; what takes a moment is run.

The README and `docs/` show what is printed in two forms, and both are compared: a block `text` right below a block `python`,
and a block `console`, whose lines with `$` are commands. `...` stands for what is left out.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import command_line
import numpy as np
import pytest
from click.testing import CliRunner
from small_search import search_here
from small_study import RECORDS
from tiny_checkpoint import tiny_checkpoint, tiny_graph
from tiny_interactions import write_interactions

from imf_core import cli
from imf_core.parts import registry

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "cluster/README.md", "results/README.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted(ROOT.glob("docs/**/*.md"))]
PROGRAMS = ("imf", "python", "make", "ray")
OMITTED = {"...", "ARGUMENTS"}  # stand for what the reader fills in
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEAD, RELATION = "LATIN SMALL LETTER E WITH ACUTE", "canonical_base"  # of the question that the README asks


def commands(page: Path) -> list[str]:
    """The commands of a page, from its blocks and within its lines, each once."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(text) if language != "python"]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    each = [part for line in (*lines, *spans) for part in re.split(r"; (?:do )?", line)]  # of several in a row, or in a loop
    written = [re.sub(r"^\.venv/bin/", "", re.split(r"\s+#\s", line)[0].strip()) for line in each]
    return list(dict.fromkeys(line for line in written if line.split(" ")[0] in PROGRAMS and " " in line))


def words(command: str) -> list[str]:
    """The words of a command, without what the shell takes for itself."""
    parts = [part for part in shlex.split(command) if part not in OMITTED]
    return parts[: next((place for place, part in enumerate(parts) if part in (">", "&", "|")), len(parts))]


def help_of(program: str, arguments: list[str]) -> str:
    """The help of a command, asked for behind its arguments: the program reads those first, and refuses unknown ones."""
    if program == "imf":
        return command_line.run(*arguments, "--help")
    if program == "ray":
        from ray.scripts.scripts import cli

        shown = CliRunner().invoke(cli, [*arguments, "--help"])
        assert shown.exit_code == 0, shown.output
        return shown.output
    out = io.StringIO()
    module = arguments[0] == "-m"
    name, rest = (arguments[1], arguments[2:]) if module else (arguments[0], arguments[1:])
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(patch.object(sys, "argv", [name, *rest, "--help"]))
        stack.enter_context(patch.object(sys, "path", [str(ROOT), *sys.path]))
        ended = stack.enter_context(pytest.raises(SystemExit))
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    assert not ended.value.code, ended.value
    return out.getvalue()


CASES = [pytest.param(command, id=f"{page.relative_to(ROOT)}: {command}") for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", CASES)
def test_a_command_exists_with_its_flags(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    program, *arguments = words(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [part for part in arguments if "=" not in part and part not in targets] == []
        return
    if "--" in arguments:  # what follows is for the script
        cut = arguments.index("--")
        arguments, passed_on = arguments[:cut], arguments[cut + 1 :]
        script = passed_on if passed_on[:1] == ["python"] else ["python", arguments[-1], *passed_on]
        assert help_of("python", script[1:])
    flags = {part.split("=")[0] for part in arguments if re.match(r"--?[a-z]", part)}
    shown = help_of(program, arguments)
    assert sorted(flag for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", shown)) == []


def test_the_commands_are_found() -> None:
    """A page whose commands nobody finds would pass."""
    programs = [command.split()[0] for page in PAGES for command in commands(page)]
    assert all(programs.count(program) >= 5 for program in PROGRAMS), programs


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 120


# --- run ----------------------------------------------------------------------------------------------------------------

GUIDES = [page for page in PAGES if page.parent.name == "docs" or page == PAGES[0]]
RUN = (
    "audit ", "card ", "compare ", "complete ", "config", "convert ", "convert-features features", "evaluate ", "export ",
    "predict ", "recommender audit ", "recommender config", "split ",
)
COMPILED = ("tune.search(", "mlflow.")  # need Ray or a finished study; tested beside the functions
BLOCKS = [(page, *FENCE.findall(page.read_text(encoding="utf-8"))) for page in GUIDES]
# (page, code, what it prints or "")
SNIPPETS = [
    (page, block, shown if following == "text" else "")
    for page, *blocks in BLOCKS for (language, block), (following, shown) in pairwise([*blocks, ("", "")])
    if language == "python"
]
SESSIONS = [(page, block) for page, *blocks in BLOCKS for language, block in blocks if language == "console"]
COMMANDS = list(dict.fromkeys(
    command for page in GUIDES for command in commands(page)
    if command.startswith("imf ") and command.removeprefix("imf ").startswith(RUN)
    and not any(f"$ {command}\n" in session for _, session in SESSIONS)  # run there
))


def case(page: Path, number: int) -> str:
    return f"{page.name} {number}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the commands of README and guides begin with: graphs, interactions, questions, features, checkpoints, a study."""
    graph = tiny_graph(tmp_path / "mygraph", first=(HEAD.encode(), b"NAME"))
    for file in graph.glob("*.t*"):
        file.write_text(file.read_text().replace("\tnext\t", f"\t{RELATION}\t").replace("\t[rest]\t", "\tRELATION\t"))
    (graph / "relations.txt").write_text(f"{RELATION}\nRELATION\n")
    results = tmp_path / "results"
    for seed, study in enumerate(("demo", "new", "old")):
        tiny_checkpoint(graph, results / study / "best", seed=seed)
    (results / "demo" / "trials.json").write_text(json.dumps([record.to_json() for record in RECORDS]))
    write_interactions(tmp_path / "mydata")
    shutil.copytree(ROOT / "examples" / "capitals", tmp_path / "capitals")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.tsv").write_text("Berlin\tcapital_of\tGermany\nParis\tcapital_of\n")
    (tmp_path / "questions.tsv").write_text(f"{HEAD}\t{RELATION}\t?\n?\tRELATION\tNAME\n")
    (tmp_path / "triples.tsv").write_text(f"{HEAD}\t{RELATION}\tNAME\n")
    (tmp_path / "modalities").mkdir()
    np.save(tmp_path / "features.npy", np.eye(2))
    (tmp_path / "names.txt").write_text("NAME\ne2\n")
    shown = next(snippet for _, snippet, _ in SNIPPETS if "class Minkowski" in snippet)
    (tmp_path / "minkowski.py").write_text(shown.partition("\n\nmodel = ")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_readme_and_guides_runs(home: Path, command: str) -> None:
    names = {"<study>": "demo", "tsv|openke|nt": "openke", "DIR": "mygraph", "CHECKPOINT": "results/demo/best"}
    for name, value in names.items():
        command = command.replace(name, value)
    with registry.scope():
        assert command_line.run(*words(command)[1:])


def test_the_plan_is_shown(home: Path) -> None:
    command = next(command for page in GUIDES for command in commands(page) if command.endswith("mygraph --dry-run"))
    done = search_here(home, *words(command)[2:])
    assert done.returncode == 0, done.stderr


def same(shown: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)


@pytest.mark.parametrize(
    ("page", "snippet", "shown"), SNIPPETS, ids=[case(page, number) for number, (page, *_) in enumerate(SNIPPETS)]
)
def test_a_snippet_runs(
    home: Path, page: Path, snippet: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile(snippet, page.name, "exec", dont_inherit=True)
    if not any(call in snippet for call in COMPILED):
        with registry.scope():
            exec(code, {})
        printed = capsys.readouterr().out
        assert printed
        assert not shown or same(shown, printed), printed


@pytest.mark.parametrize(("page", "session"), SESSIONS, ids=[case(page, number) for number, (page, _) in enumerate(SESSIONS)])
def test_a_session_prints_what_the_page_shows(
    home: Path, page: Path, session: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        monkeypatch.setattr(sys, "argv", words(command))
        with pytest.raises(SystemExit):
            cli.main()
        printed = "".join(capsys.readouterr()).replace(f"{home}/", "")
        assert same(shown, printed), printed
