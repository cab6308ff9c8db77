"""What this package takes from Ray without Ray promising it: a new Ray fails here, in words, and not in a search."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import ray
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

ROOT = Path(__file__).parents[3]
PRIVATE = "_training_actor_item_queue"


def test_the_one_private_name_of_ray_is_there() -> None:
    """`tune/trial/trial.py` waits until the queue of reports is empty: else the last epoch of a worker group is lost."""
    assert PRIVATE in inspect.getsource(TuneReportCallback), (
        f"Ray {ray.__version__} renamed TuneReportCallback.{PRIVATE}: mend _run_distributed in tune/trial/trial.py, then raise "
        "the bound of ray in pyproject.toml"
    )
    others = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sorted((ROOT / "tune").rglob("*.py"))
        for name in re.findall(r"\b_(?:ot_\w+|Bracket|brackets|rungs|completed_trials|points_to_evaluate)\b", file.read_text())
    ]
    assert others == []


@pytest.mark.parametrize(
    ("owner", "methods"),
    [
        (Searcher, ["suggest", "on_trial_result", "on_trial_complete", "save", "FINISHED"]),
        (FIFOScheduler, ["on_trial_result", "on_trial_complete", "on_trial_error", "on_trial_add", "on_trial_remove"]),
    ],
)
def test_the_protocols_that_are_implemented_are_there(owner: type, methods: list[str]) -> None:
    assert [name for name in methods if not hasattr(owner, name)] == [], f"Ray {ray.__version__} changed {owner.__name__}"


def test_ray_is_bounded_above() -> None:
    (bound,) = re.findall(r'"ray\[[^]]*\]([^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert bound == ">=2.60,<2.61"
