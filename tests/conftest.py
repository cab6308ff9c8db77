"""What every test relies on: a quiet, offline environment, set before anything is imported, and the shared folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

for _name, _value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "IMF_CACHE": str(REPOSITORY / ".cache" / "imf"),  # the bundled data set is generated once, not once a run
}.items():
    os.environ.setdefault(_name, _value)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real graphs and recorded figures that may lie beside the repository; tests that need it skip without."""
    folder = Path(os.environ.get("IMF_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set IMF_SHARED to its place to run this test")
    return folder
