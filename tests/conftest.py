"""What every test relies on: a quiet, offline environment, set before anything is imported, groups, and the shared folder."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tune.environment import environment

if TYPE_CHECKING:
    from imf_core.prepare.link_data import LinkData

REPOSITORY = Path(__file__).resolve().parents[1]
RAY = "ray"  # name of a group of tests

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # tiny tensors: threads would only wait for each other
    "RAY_worker_niceness": "0",  # Ray's workers give way to the other tests otherwise, whose group ends last
    "IMF_CACHE": str(REPOSITORY / ".cache" / "imf"),  # the bundled data set is generated once, not once a run
}.items():
    os.environ.setdefault(_name, _value)
environment("local")  # what Ray and MLflow read when they are imported

settings.register_profile("fast", max_examples=25, deadline=None)
settings.register_profile("nightly", deadline=None)  # each test's own number of examples, see `tests/support/examples.py`
settings.load_profile("fast")


def pytest_collection_finish() -> None:
    """What collecting has loaded stays: the garbage collector need not walk a million objects time and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _local_tracking() -> Iterator[None]:
    """Searches log beside their studies, whatever the shell says or `mlflow.set_tracking_uri` has put into the environment."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


class Groups(LoadScopeScheduling):
    """Tests of a file share a process, so that a module fixture is made once, and so do all files that start Ray.

    Ray clusters on one machine disturb each other. The marks of `--dist loadgroup` would say the same, but xdist 3.8
    ignores them under pytest 9.2 (https://github.com/pytest-dev/pytest-xdist/issues/1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid.partition("::")[0])

    def _assign_work_unit(self, node: Any) -> None:
        """The group of Ray takes longest by far: whatever else there is must not keep it waiting."""
        if RAY in self.workqueue:
            self.workqueue.move_to_end(RAY, last=False)
        super()._assign_work_unit(node)


@lru_cache
def group_of(file: str) -> str:
    """Name of the group whose tests run in one process."""
    return RAY if "mark.cluster" in (REPOSITORY / file).read_text(encoding="utf-8") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    """Called by pytest-xdist."""
    return Groups(config, log)


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


@pytest.fixture(scope="session")
def toy() -> LinkData:
    """A graph of 30 entities with a pattern to learn, an image for two thirds of them, and a text for all."""
    from imf_core.testing.base import toy

    return toy()
