"""What the tests of tracking share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_search import empty_database

from tune.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one database for the whole module: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow store #1")
    (folder / "mlflow.db").write_bytes(empty_database())
    Tracker.open(f"sqlite:///{folder / 'mlflow.db'}", "imf", folder / "artifacts", "first", {"trials": 4}).finish()
    yield folder
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"):  # set by mlflow itself when a model is logged
        os.environ.pop(name, None)
