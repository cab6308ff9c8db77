"""How a trial ended, what it reported, and files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imf_core.files.atomic import atomic_write_text
from tune.study.outcome import TrialState, classify, last_error, reported_numbers, trial_params


@pytest.mark.parametrize(
    ("outcome", "status", "epochs", "budget_over", "expected"),
    [
        ({"state": "completed", "reason": "no better for 5 epochs"}, "TERMINATED", 7, False, TrialState.COMPLETED),
        ({"state": "completed"}, "TERMINATED", 7, True, TrialState.COMPLETED),
        ({"state": "completed"}, "ERROR", 7, False, TrialState.FAILED),
        ({"state": "failed", "error_type": "ValueError"}, "ERROR", 2, False, TrialState.FAILED),
        ({"state": "diverged"}, "ERROR", 2, False, TrialState.DIVERGED),
        ({"state": "diverged"}, "TERMINATED", 2, False, TrialState.DIVERGED),
        (None, "ERROR", 2, False, TrialState.FAILED),
        (None, "TERMINATED", 10, False, TrialState.COMPLETED),
        (None, "TERMINATED", 1, False, TrialState.PRUNED),
        (None, "TERMINATED", 4, True, TrialState.STOPPED),
        (None, "TERMINATED", 0, False, TrialState.STOPPED),
        (None, "TERMINATED", 10, True, TrialState.COMPLETED),
    ],
)
def test_classify(outcome: Any, status: str, epochs: int, budget_over: bool, expected: TrialState) -> None:
    state, reason = classify(outcome, status, epochs, 10, budget_over)
    assert state is expected
    assert reason


def test_atomic_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = atomic_write_text(tmp_path / "new" / "a.json", "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def broken(source: str, target: Path) -> None:
        raise OSError("cut off")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="cut off"):
        atomic_write_text(path, "new")
    assert path.read_bytes() == b"old\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_trial_reports_and_says() -> None:
    result = {"mrr": np.float32(0.5), "num_parameters": 10, "time_total_s": 1.0, "pid": 7, "done": False, "flag": True}
    assert reported_numbers(result) == {"mrr": 0.5, "num_parameters": 10.0}
    params = {"dim": np.int64(4), "modalities": ("text",), "weights": {"a": np.float64(0.5)}}
    assert trial_params(SimpleNamespace(config=params)) == {"dim": 4, "modalities": ["text"], "weights": {"a": 0.5}}
    died = "Failure # 1 (occurred at x)\nold\nFailure # 2 (occurred at y)\nThe actor died unexpectedly.\n\tclass_name: X\n"
    assert last_error(died) == "The actor died unexpectedly."
    assert last_error("") == ""


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    path = atomic_write_text(tmp_path / "report.md", f"the entity {name}")
    assert path.read_text(encoding="utf-8") == "the entity caf\\udce9"
    atomic_write_text(tmp_path / "x.json", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": name}
