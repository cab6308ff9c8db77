"""The search is run from wherever it lies: the tree, a copy in a home folder (`ray submit`), a module (case SUB-1)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)


def python(*arguments: str, home: Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a shell of that home would."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "IMF_HOME", "RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**environment, "HOME": str(home), "COLUMNS": "140", **variables},
        capture_output=True, text=True, check=False, timeout=100,
    )


LIBRARIES = next(path for path in sys.path if path.endswith("site-packages"))


@pytest.fixture
def home(repository: Path, tmp_path: Path) -> Path:
    """A home folder with nothing but the script in it, as `ray submit` leaves it."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(repository / "tune" / "search.py", folder / "search.py")
    return folder


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A source tree whose package says that it was found, and ends there: the real one takes seconds to import."""
    root = tmp_path / "tree"
    (root / "imf_core").mkdir(parents=True)
    (root / "tune").mkdir()
    for name in ("search.py", "environment.py"):
        shutil.copy(repository / "tune" / name, root / "tune" / name)
    (root / "tune" / "options.py").write_text("import imf_core\n")
    (root / "imf_core" / "__init__.py").write_text("import sys\nprint('found', __file__)\nsys.exit(0)\n")
    return root


def found(done: subprocess.CompletedProcess[str], tree: Path) -> bool:
    """Whether the tree's package was imported. -S keeps the installed package away, hence the libraries by hand."""
    return done.returncode == 0 and done.stdout == f"found {tree / 'imf_core' / '__init__.py'}\n"


def test_sub_1_a_copy_alone_shows_its_help(repository: Path, home: Path) -> None:
    done = python(str(home / "search.py"), "--help", home=home, cwd=Path("/"), IMF_HOME=str(repository))
    assert done.returncode == 0, done.stderr
    assert "--expect-nodes" in done.stdout


def test_sub_1_a_copy_finds_the_tree_that_is_named(home: Path, tree: Path) -> None:
    done = python("-S", str(home / "search.py"), home=home, cwd=Path("/"), PYTHONPATH=LIBRARIES, IMF_HOME=str(tree))
    assert found(done, tree)


def test_sub_1_a_copy_finds_the_tree_in_its_home(home: Path, tree: Path) -> None:
    tree = tree.rename(home / "imf")
    assert found(python("-S", str(home / "search.py"), home=home, cwd=Path("/"), PYTHONPATH=LIBRARIES), tree)


def test_sub_1_a_copy_finds_the_tree_it_is_run_from(home: Path, tree: Path) -> None:
    assert found(python("-S", str(home / "search.py"), home=home, cwd=tree, PYTHONPATH=LIBRARIES), tree)


def test_the_tree_runs_as_a_file_from_elsewhere(home: Path, tree: Path) -> None:
    assert found(python("-S", str(tree / "tune" / "search.py"), home=home, cwd=home, PYTHONPATH=LIBRARIES), tree)


def test_the_tree_runs_as_a_module(home: Path, tree: Path) -> None:
    (tree / "tune" / "__init__.py").write_text("")
    assert found(python("-S", "-m", "tune.search", home=home, cwd=tree, PYTHONPATH=LIBRARIES), tree)


def test_sub_1_a_copy_without_the_packages_says_what_to_mount_or_set(home: Path) -> None:
    done = python("-S", str(home / "search.py"), "--help", home=home, cwd=Path("/"))
    assert done.returncode == 2
    assert "IMF_HOME" in done.stderr
    assert "~/imf" in done.stderr
    assert "ModuleNotFoundError" not in done.stderr


def test_sub_3_a_copy_that_is_not_the_code_s_own_is_refused(tree: Path, home: Path) -> None:
    """`ray submit` brings the script alone: where the packages on the head are older, it would run half of each."""
    with (home / "search.py").open("a") as script:
        script.write("# newer\n")
    done = python("-S", str(home / "search.py"), home=home, cwd=Path("/"), PYTHONPATH=LIBRARIES, IMF_HOME=str(tree))
    assert done.returncode == 2
    assert "ray rsync-up" in done.stderr


def test_submit_hands_on_every_argument_unharmed(repository: Path, tmp_path: Path) -> None:
    """The launcher joins the arguments with blanks for a remote shell; a stand-in for `ray` does the same."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ray").write_text(
        '#!/bin/bash\necho "$@" >> "$RECORD"\n[ "$1" = submit ] || exit 0\n'
        'while [ "$1" != -- ]; do shift; done; shift\nexec bash -c "printf \'<%s>\' $*"\n'
    )
    (tools / "ray").chmod(0o755)
    given = ["--data", "my graph", "--set", 'model.decision_weights={"a": 1}', "--study", "$HOME", "--seed=3"]
    done = subprocess.run(
        ["bash", str(repository / "cluster" / "submit.sh"), "cluster.yaml", "--tmux", "--", *given], text=True, check=True,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record")}, capture_output=True,
    )
    assert done.stdout == "".join(f"<{argument}>" for argument in given)
    first, second = (tmp_path / "record").read_text().splitlines()
    assert first == "rsync-up cluster.yaml"
    assert second.startswith("submit --tmux cluster.yaml tune/search.py -- ")
