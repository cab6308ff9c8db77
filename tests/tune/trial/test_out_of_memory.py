"""A trial that runs out of memory is begun once more with half the batch; what it then is, it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import TuneCalls

from imf_core.config import Config
from imf_core.errors import ResourceError
from tune.runs.ledger import Ledger
from tune.runs.trial_folders import TrialFolders
from tune.study.history import History
from tune.trial import trial as trial_module
from tune.trial.out_of_memory import mark_killed, ran_out, reduced_settings
from tune.trial.trial import TrialSpec, run_trial
from tune.trial.worker import Job

OUT_OF_MEMORY = ResourceError("out of memory (bad_alloc) with 8 MiB for scores", remedy="lower train.batch_size")
CONFIG = Config().updated({"train.batch_size": 256})


class Training:
    """Stands in for the training: fails while the batch is above a size."""

    def __init__(self, fits: int, error: Exception = OUT_OF_MEMORY) -> None:
        self.fits, self.error, self.jobs = fits, error, list[Job]()

    def __call__(self, job: Job, report: Any) -> Any:
        self.jobs.append(job)
        if job.config["train"]["batch_size"] > self.fits:
            raise self.error
        return SimpleNamespace(reason="all epochs", notes=(), epochs=3)

    @property
    def sizes(self) -> list[int]:
        return [job.config["train"]["batch_size"] for job in self.jobs]


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, training: Training) -> dict[str, Any]:
    monkeypatch.setattr(trial_module, "run_job", training)
    spec = TrialSpec(prepared="", folder=str(folder), variants={"one": CONFIG.model_dump()})
    try:
        run_trial({"run": "one"}, spec)
    except ResourceError:
        pass
    return dict(json.loads((folder / "one" / "outcome.json").read_text()))


def test_half_the_batch_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(fits=128)
    outcome = run(tmp_path, monkeypatch, training)
    assert training.sizes == [256, 128]
    assert outcome["state"] == "completed"
    assert outcome["reason"] == "all epochs; reduced after running out of memory: train.batch_size=128"
    assert training.jobs[1].reduced == {"train.batch_size": 128}
    # A later attempt, of this session or another, begins with what fitted.
    later = Training(fits=128)
    run(tmp_path, monkeypatch, later)
    assert later.sizes == [128]


def test_a_trial_that_does_not_fit_then_either_fails_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(fits=64)
    outcome = run(tmp_path, monkeypatch, training)
    assert training.sizes == [256, 128]
    assert (outcome["state"], outcome["error_type"]) == ("failed", "ResourceError")
    assert "out of memory" in outcome["reason"]


def test_another_error_is_no_reason_to_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(fits=64, error=ResourceError("two CPUs are missing"))
    assert run(tmp_path, monkeypatch, training)["state"] == "failed"
    assert training.sizes == [256]
    assert reduced_settings(tmp_path / "one") == {}


def test_a_worker_that_was_killed_for_memory_comes_back_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark_killed(tmp_path / "one")
    training = Training(fits=1024)
    run(tmp_path, monkeypatch, training)
    run(tmp_path, monkeypatch, training)
    assert training.sizes == [128, 128]


def calls(folder: Path, trial: Any) -> TuneCalls:
    history = History()
    return TuneCalls(history, [Ledger(folder, history, 3, TrialFolders(folder / "trials"))], [trial])


@pytest.mark.parametrize(("text", "killed"), [("ray.exceptions.OutOfMemoryError: Task was killed", True), ("KeyError", False)])
def test_the_driver_notes_why_a_worker_died(tmp_path: Path, text: str, killed: bool) -> None:
    place = tmp_path / "trials" / "trial-000"
    place.mkdir(parents=True)
    (place / "error.txt").write_text(f"Failure # 1 (occurred at x)\n{text}\n")
    trial = SimpleNamespace(trial_id="x", config={"name": "trial-000", "params": {}}, path=str(place), local_path=str(place))
    tune = calls(tmp_path, trial)
    tune.start(trial)
    tune.recover(trial)
    assert (place / "killed_for_memory").exists() == killed


def test_the_end_of_a_trial_frees_its_disk(tmp_path: Path) -> None:
    for name, told in (("trial-000", "complete"), ("trial-001", None)):
        place = tmp_path / "trials" / name
        (place / "state").mkdir(parents=True)
        config = {"name": name, "params": {}}
        trial = SimpleNamespace(trial_id="x", config=config, path=str(place), local_path=str(place))
        tune = calls(tmp_path, trial)
        tune.start(trial)
        tune.report(trial, 0.1, stop=told is not None)
        if told:
            tune.complete(trial)
        tune.end()
        assert (place / "state").exists() == (told is None)  # one that was cut short goes on from it


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (MemoryError(), True), (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("WorkerGroupError: rank 1: ResourceError: out of memory (bad_alloc)"), True),
        ("ray.exceptions.OutOfMemoryError: ...", True), (ValueError("no memory of that"), False), ("killed", False),
    ],
)
def test_what_counts_as_out_of_memory(said: Any, expected: bool) -> None:
    assert ran_out(said) == expected
