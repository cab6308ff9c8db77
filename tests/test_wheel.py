"""The wheel: what it holds, and that it works in a clean environment, outside the source tree."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_graph

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("imf_core", "tune")
FOR_READERS = {"imf_core/README.md"}  # of the source; no program reads it
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def source_files() -> list[str]:
    """Files of the two packages that git tracks or would track."""
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGES]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this is no checkout: nothing tells files of the source from those that were made")
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    return sorted(name for name in names if (ROOT / name).is_file())


def test_every_file_beside_the_code_is_in_the_wheel() -> None:
    listed = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = {f"{package}/{pattern}" for package in listed for pattern in listed[package]}
    beside = {name for name in source_files() if not name.endswith(".py")} - FOR_READERS
    assert len(beside) >= 6
    assert [name for name in beside if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in beside)] == []
    folders = {Path(name).parent for name in source_files() if name.endswith(".py")}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []  # would not be found


# --- built and installed ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installed:
    """A clean environment with the wheel: its files, its programs, a folder elsewhere."""

    files: tuple[str, ...]
    python: Path
    home: Path

    def run(self, *command: str) -> str:
        """What a command prints; it must succeed. Nothing leads it to the source tree."""
        hidden = ("PYTHONPATH", "IMF_HOME", "VIRTUAL_ENV")
        variables = {name: value for name, value in os.environ.items() if name not in hidden}
        variables |= {"HOME": str(self.home), "COLUMNS": "200", "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            command, cwd=self.home, env=variables, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def must_run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel is built from a copy, since building writes into the source; the libraries are those of this environment."""
    place = tmp_path_factory.mktemp("wheel")
    others = [f"{folder}/{file.name}" for folder in ("tests", "benchmarks") for file in (ROOT / folder).glob("*.py")]
    for name in (*source_files(), *others, "pyproject.toml", "README.md", "LICENSE"):
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / "source" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    builds = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    isolation = ("--no-build-isolation",) if builds else ()
    must_run(*pip, "wheel", "--no-deps", *isolation, "-w", str(place), str(place / "source"))
    shutil.rmtree(place / "source")
    (wheel,) = place.glob("*.whl")
    venv.create(place / "env", with_pip=False)
    python = place / "env" / "bin" / "python"
    (library,) = (place / "env" / "lib").glob("python*/site-packages")
    # Paths alone: what an editable install of the source hooks in by a .pth file of its own is not read from there.
    (library / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    must_run(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    home = place / "home"
    tiny_graph(home / "mygraph", first=(b"NAME",))
    for file in (home / "mygraph").glob("*.t*"):
        file.write_text(file.read_text().replace("[rest]", "RELATION"))
    with zipfile.ZipFile(wheel) as archive:
        return Installed(tuple(sorted(archive.namelist())), python, home)


@pytest.fixture
def python(installed: Installed) -> str:
    return str(installed.python)


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_nothing_else(installed: Installed) -> None:
    shipped = [name for name in installed.files if ".dist-info/" not in name]
    assert shipped == [name for name in source_files() if name not in FOR_READERS]
    assert any(name.endswith("/licenses/LICENSE") for name in installed.files)


@pytest.mark.slow
def test_the_code_is_the_installed_one(installed: Installed, python: str) -> None:
    asked = "import imf_core, tune; print(imf_core.__file__); print(tune.__file__); print(imf_core.__version__)"
    core, search, version = installed.run(python, "-c", asked).splitlines()
    inside = str(installed.python.parents[1])
    assert core.startswith(inside) and search.startswith(inside)
    assert version == PROJECT["project"]["version"]


@pytest.mark.slow
def test_the_commands_answer(installed: Installed, python: str) -> None:
    imf = str(installed.python.with_name("imf"))
    assert installed.run(imf, "--version") == f"imf-search {PROJECT['project']['version']}\n"
    assert "evaluate" in installed.run(imf, "--help")
    assert "--trials" in installed.run(python, "-m", "tune.search", "--help")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_search_of_the_bundled_graph_and_an_answer(installed: Installed, python: str) -> None:
    small = ("model.dim=16", "model.relation_dim=8", "train.max_epochs=1", "model.modalities=[]")
    settings = [part for setting in small for part in ("--set", setting)]
    arguments = ("--data", "unicode", "--trials", "2", "--seeds", "1", "--study", "s", *settings)
    installed.run(python, "-m", "tune.search", *arguments)
    folder = installed.home / "results" / "s"
    assert "<style>" in (folder / "report.html").read_text()
    question = ("--head", "LATIN SMALL LETTER E WITH ACUTE", "-r", "canonical_base")
    shown = installed.run(str(installed.python.with_name("imf")), "predict", str(folder / "best"), *question)
    assert "(LATIN SMALL LETTER E WITH ACUTE, canonical_base, ?)" in shown and "LATIN" in shown.split("\n", 1)[1]
    again = re.search(r"\S+ \S+/tune/search\.py --storage \S+ --study s --extend", (folder / "report.md").read_text())
    assert again is not None and str(installed.python.parents[1]) in again[0]
    assert "--trials" in installed.run(*again[0].split()[:2], "--help")


@pytest.mark.slow
def test_the_python_of_the_first_page(installed: Installed, python: str) -> None:
    page = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    snippets = [text for text in FENCE.findall(page) if "imf.train(" in text]
    assert snippets
    for snippet in snippets:
        assert installed.run(python, "-c", snippet)
