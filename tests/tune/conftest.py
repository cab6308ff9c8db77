"""What the tests of the search share: a finished study, and a database of MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from killed_search import ARGUMENTS, trials
from small_search import empty_database, ready_database, run_search, write_graph

from tune.tracking.tracker import Tracker


@dataclass(frozen=True)
class Searched:
    """A finished study: the folder it was started in, its own, and what was printed."""

    home: Path
    folder: Path
    stdout: str


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Searched:
    """The search from end to end, as a user starts it, one trial at a time: all that a finished study shows is tested on it.

    Tests that ask for it are marked `cluster`, so that one process makes it.
    """
    home = ready_database(tmp_path_factory.mktemp("searched"))
    write_graph(home / "graph")
    done = run_search(repository, home, *ARGUMENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {trial["state"] for trial in trials(home)} >= {"pruned", "completed"}
    return Searched(home, home / "results" / "s", done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one database for the whole module: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow store #1")
    (folder / "mlflow.db").write_bytes(empty_database())
    Tracker.open(f"sqlite:///{folder / 'mlflow.db'}", "imf", folder / "artifacts", "first", {"trials": 4}).finish()
    return folder
