"""Tracking with a real MLflow database: one run a trial, end states, names, odd values, refused stores, the model."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import TuneCalls
from mlflow.exceptions import MlflowException

from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.runs.reuse import reuse_trials
from tune.runs.trial_folders import TrialFolders
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, load_records
from tune.tracking.names import config_text, param_text
from tune.tracking.tracker import Tracker

SETTINGS = {"trials": 4, "budget": None, "data": "unicode", "modalities": ["text", "image"]}


def open_study(place: Path, study: str, experiment: str = "imf", **more: Any) -> Tracker:
    return Tracker.open(f"sqlite:///{place / 'mlflow.db'}", experiment, place / "artifacts", study, SETTINGS, **more)


def make_trial(folder: Path, trial_id: str, **params: Any) -> Any:
    path = folder / "trials" / trial_id
    path.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(trial_id=trial_id, config={"params": params}, status="RUNNING", path=str(path), local_path=str(path))


def outcome(trial: Any, state: str) -> None:
    text = json.dumps({"state": state, "reason": f"said {state}", "error_type": None, "epochs": 2})
    (Path(trial.path) / "outcome.json").write_text(text)


class Search(TuneCalls):
    """Tune's calls to the tracker's callback and the ledger, in either order."""

    def __init__(
        self, tracker: Tracker, folder: Path, *trials: Any, history: History | None = None, records: Sequence[TrialRecord] = ()
    ) -> None:
        history = history or History()
        self.ledger = Ledger(folder, history, 5, TrialFolders(folder / "trials"), records=records)
        self.logged = MlflowCallback(tracker, self.ledger)
        super().__init__(history, (self.logged, self.ledger), trials)

    def epoch(self, trial: Any, epoch: int, mrr: float, done: bool = False, **more: float) -> None:
        self.report(trial, mrr, first=epoch, stop=done, **more)


def children(tracker: Tracker) -> list[Any]:
    query = f"tags.`mlflow.parentRunId` = '{tracker.parent_id}'"
    return tracker.client.search_runs([tracker.experiment_id], query, order_by=["attributes.start_time ASC"])


def child(tracker: Tracker, trial_id: str) -> Any:
    (run,) = [run for run in children(tracker) if run.data.tags["trial_id"] == trial_id]
    return run


def artifact(tracker: Tracker, run_id: str, name: str, folder: Path) -> bytes:
    return Path(tracker.client.download_artifacts(run_id, name, str(folder))).read_bytes()


def test_odd_metric_names_and_long_parameters(place: Path, tmp_path: Path) -> None:  # MLF-1
    tracker = open_study(place, "odd")
    params = {"train.lr": 0.002, "note": "ü" * 6001, "model.modalities": ["text"]}
    trial = make_trial(tmp_path, "odd_0", **params)
    search = Search(tracker, tmp_path, trial)
    search.start(trial)
    search.epoch(trial, 1, 0.1, **{"hits@10": 0.5})
    outcome(trial, "completed")
    search.complete(trial)
    tracker.finish()
    run = child(tracker, "odd_0")
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "completed")
    assert run.data.metrics == {"mrr": 0.1, "best_mrr": 0.1, "best_epoch": 1, "hits_at_10": 0.5}  # none of Ray's own
    assert run.data.params["train.lr"] == "0.002"
    assert run.data.params["note"] == "ü" * 5997 + "..."
    assert artifact(tracker, run.info.run_id, "config.json", tmp_path) == config_text(params).encode()
    assert json.loads(config_text(params)) == params
    parent = tracker.client.get_run(tracker.parent_id)
    assert parent.data.params == {key: param_text(value) for key, value in SETTINGS.items()}
    assert artifact(tracker, tracker.parent_id, "config.json", tmp_path) == config_text(SETTINGS).encode()


def test_one_run_a_trial_whatever_is_retried(place: Path, tmp_path: Path) -> None:  # MLF-3
    tracker = open_study(place, "retried")
    trials = [make_trial(tmp_path, f"retried_{number}", batch_size=256, lr=0.1 * (number + 1)) for number in range(2)]
    search = Search(tracker, tmp_path, *trials)
    for trial in trials:
        search.start(trial)
    for epoch in (1, 2):
        for trial in trials:
            search.epoch(trial, epoch, 0.1 * epoch)
    search.recover(trials[0])
    trials[0].config["params"]["batch_size"] = 128
    search.start(trials[0])
    for epoch in (2, 3):  # epoch 2 is run again
        search.epoch(trials[0], epoch, 0.1 * epoch)
    search.complete(trials[1])

    resumed = open_study(place, "retried", resume=True)  # the driver died
    assert resumed.parent_id == tracker.parent_id
    assert child(tracker, "retried_0").info.status == "KILLED"
    told = [
        {"event": "study"}, *({"event": "ask", "trial": trial.trial_id, "params": trial.config["params"]} for trial in trials),
        *({"event": "report", "trial": "retried_0", "epoch": epoch, "at": 9.0, "seconds": 1.0, "numbers": {"mrr": 0.1 * epoch}}
          for epoch in (1, 2, 3)),
        {"event": "retry", "trial": "retried_0"}, {"event": "tell", "trial": "retried_1", "error": False},
    ]
    ended = load_records(tmp_path)
    later = Search(resumed, tmp_path, *trials, history=History.of(told), records=ended)
    later.logged.settle()
    later.start(trials[0])
    assert child(tracker, "retried_0").info.status == "RUNNING"
    for epoch in (3, 4):
        later.epoch(trials[0], epoch, 0.1 * epoch)
    outcome(trials[0], "completed")
    later.complete(trials[0])
    later.end()
    resumed.finish()

    runs = children(tracker)
    assert [run.data.tags["trial_id"] for run in runs] == ["retried_0", "retried_1"]
    assert [run.data.params["lr"] for run in runs] == ["0.1", "0.2"]
    assert (runs[0].data.params["batch_size"], runs[0].data.tags["effective_batch_size"]) == ("256", "128")
    assert "effective_batch_size" not in runs[1].data.tags
    assert "effective_lr" not in runs[0].data.tags
    assert runs[0].data.tags["retries"] == "1"
    assert [metric.step for metric in tracker.client.get_metric_history(runs[0].info.run_id, "mrr")] == [1, 2, 3, 4]
    assert {run.info.status for run in (*runs, tracker.client.get_run(tracker.parent_id))} == {"FINISHED"}
    assert len(tracker._runs("tags.study = 'retried' and tags.role = 'study'")) == 1


def test_runs_of_the_study_s_end_are_told_from_its_trials(place: Path, tmp_path: Path) -> None:
    tracker = open_study(place, "final")
    search, final = make_trial(tmp_path, "final_0", lr=0.1), make_trial(tmp_path, "final_1", run="seed-0")
    for trial in (search, final):
        assert tracker.start_trial(trial.trial_id, 0, trial.config["params"]) is not None
    tracker.finish()
    found = {run.data.tags["mlflow.runName"]: run.data.tags["role"] for run in children(tracker)}
    assert found == {"trial 000": "trial", "seed-0": "final"}


def test_end_states(place: Path, tmp_path: Path) -> None:  # MLF-4
    tracker = open_study(place, "ends")
    names = ("ok", "exception", "pruned", "lost", "diverged", "budget")
    trials = {name: make_trial(tmp_path, f"ends_{name}") for name in names}
    search = Search(tracker, tmp_path, *trials.values())
    for name, trial in trials.items():
        search.start(trial)
        search.epoch(trial, 1, 0.2, done=name == "pruned")
    outcome(trials["ok"], "completed")
    outcome(trials["exception"], "failed")
    outcome(trials["diverged"], "diverged")
    for name in ("ok", "pruned"):
        search.complete(trials[name])
    for name in ("exception", "lost", "diverged"):
        search.error(trials[name])
    search.end()
    tracker.finish()
    found = {name: child(tracker, f"ends_{name}") for name in names}
    assert {name: run.info.status for name, run in found.items()} == {
        "ok": "FINISHED", "exception": "FAILED", "pruned": "FINISHED",
        "lost": "FAILED", "diverged": "FAILED", "budget": "KILLED",
    }
    assert [name for name, run in found.items() if run.data.tags.get("pruned") == "true"] == ["pruned"]
    assert [name for name, run in found.items() if run.data.tags.get("diverged") == "true"] == ["diverged"]
    assert found["exception"].data.tags["reason"] == "said failed"
    assert tracker.client.get_run(tracker.parent_id).info.status == "FINISHED"


def test_the_next_start_closes_what_a_killed_driver_left(place: Path, tmp_path: Path) -> None:  # MLF-4
    killed = open_study(place, "killed")
    other = open_study(place, "another")
    search = Search(killed, tmp_path, make_trial(tmp_path, "killed_0"))
    search.start(search.trials[0])
    again = open_study(place, "killed")
    assert again.parent_id != killed.parent_id
    assert child(killed, "killed_0").info.status == "KILLED"
    assert killed.client.get_run(killed.parent_id).info.status == "KILLED"
    assert other.client.get_run(other.parent_id).info.status == "RUNNING"  # another study may be at work
    again.finish("FAILED")
    other.finish("KILLED")
    assert again.client.get_run(again.parent_id).info.status == "FAILED"
    assert not again._runs("attributes.status = 'RUNNING'")


def test_values_that_are_not_finite_stay_out(place: Path, tmp_path: Path) -> None:  # MLF-5
    tracker = open_study(place, "finite", experiment="imf-finite")
    trials = [make_trial(tmp_path, f"finite_{number}") for number in range(3)]
    search = Search(tracker, tmp_path, *trials)
    for trial, mrr in zip(trials, (0.31, math.nan, math.inf)):
        search.start(trial)
        search.epoch(trial, 1, mrr, train_loss=1.5)
        outcome(trial, "completed" if math.isfinite(mrr) else "diverged")
        search.complete(trial)
    tracker.finish()

    def ask(query: str) -> list[Any]:
        return tracker.client.search_runs([tracker.experiment_id], query, order_by=["metrics.mrr DESC"])

    assert ask("")[0].data.tags["trial_id"] == "finite_0"
    assert [run.data.tags["trial_id"] for run in ask("metrics.mrr > 0.3")] == ["finite_0"]
    assert {run.data.tags["trial_id"] for run in ask("tags.diverged = 'true'")} == {"finite_1", "finite_2"}
    assert all(run.data.metrics["train_loss"] == 1.5 for run in children(tracker))


def test_a_failure_to_log_is_one_warning(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    tracker = open_study(place, "broken")
    real, errors = tracker.client, iter([MlflowException("no answer\nand more"), OSError("disk full")] * 20)

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise next(errors)

    trial, lucky = make_trial(tmp_path, "broken_0"), make_trial(tmp_path, "broken_1")
    search = Search(tracker, tmp_path, trial, lucky)
    search.start(lucky)
    search.epoch(lucky, 1, 0.1)
    tracker._client = Broken()  # type: ignore[assignment]
    monkeypatch.setattr("tune.tracking.tracker._PAUSE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        search.start(trial)
        search.epoch(trial, 1, 0.1)
        search.epoch(lucky, 2, 0.2, done=True)
        search.complete(lucky)
        tracker.log_artifact(tmp_path)
    assert [record.message.count("no answer") for record in caplog.records] == [1]
    tracker._client = real
    search.epoch(trial, 2, 0.3)
    search.end()
    tracker.finish()
    assert child(tracker, "broken_1").info.status == "FINISHED"  # its end could be logged later
    assert child(tracker, "broken_0").data.metrics["mrr"] == 0.3
    assert len(search.ledger.records) == 2


def test_after_a_failure_logging_pauses(place: Path) -> None:
    tracker = open_study(place, "pause")
    calls = []

    def fail(*args: Any, **more: Any) -> None:
        calls.append(args)
        raise MlflowException("no answer")

    real = tracker.client
    tracker._client = SimpleNamespace(log_batch=fail)  # type: ignore[assignment]
    assert not any(tracker.log_epochs("run", [(epoch, {"mrr": 0.1}, 9.0)]) for epoch in range(1, 6))
    assert len(calls) == 1
    state = tracker.__getstate__()
    assert state["_client"] is None
    tracker._client = real
    tracker.finish()


def test_study_artifacts_and_tags(place: Path, tmp_path: Path) -> None:
    tracker = open_study(place, "story", tags={"data": "unicode"})
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("a")
    (tmp_path / "leaderboard.md").write_text("b")
    tracker.log_artifact(tmp_path / "plots", "plots")
    tracker.log_artifact(tmp_path / "leaderboard.md")
    tracker.finish()
    assert tracker.client.get_run(tracker.parent_id).data.tags["data"] == "unicode"
    paths = {item.path for item in tracker.client.list_artifacts(tracker.parent_id)}
    assert paths == {"plots", "leaderboard.md", "config.json"}


def steps(tracker: Tracker, run: Any) -> list[int]:
    return [metric.step for metric in tracker.client.get_metric_history(run.info.run_id, "mrr")]


def test_epochs_are_written_together_and_none_is_lost(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = open_study(place, "together")
    trial = make_trial(tmp_path, "together_0")
    search = Search(tracker, tmp_path, trial)
    search.logged.seconds = 3600.0
    batches: list[int] = []
    real = tracker.log_epochs

    def counted(run: str, epochs: Any, **more: Any) -> bool:
        batches.append(len(epochs))
        return real(run, epochs, **more)

    monkeypatch.setattr(tracker, "log_epochs", counted)
    search.start(trial)
    for epoch in range(1, 5):
        search.epoch(trial, epoch, math.nan if epoch == 3 else 0.1 * epoch, best_mrr=0.1 * epoch)
    assert batches == [1]  # the first at once, so that a trial is seen to run
    assert steps(tracker, child(tracker, "together_0")) == [1]
    search.complete(trial)
    tracker.finish()
    assert batches == [1, 3]
    run = child(tracker, "together_0")
    assert steps(tracker, run) == [1, 2, 4]
    assert run.data.tags["diverged"] == "true"


def test_epochs_that_a_killed_driver_did_not_write_are_written_by_the_next(place: Path, tmp_path: Path) -> None:
    tracker = open_study(place, "caught up")
    trial = make_trial(tmp_path, "caught_0")
    search = Search(tracker, tmp_path, trial)
    search.logged.seconds = 3600.0
    search.start(trial)
    for epoch in range(1, 4):
        search.epoch(trial, epoch, 0.1 * epoch)
    again = Search(tracker, tmp_path, trial, history=History.of(search.history.events))  # the driver is killed, another begins
    again.start(trial)
    again.epoch(trial, 4, 0.4)
    again.complete(trial)
    tracker.finish()
    run = child(tracker, "caught_0")
    assert sorted(steps(tracker, run)) == [1, 2, 3, 4]  # MLflow orders them by time
    assert run.data.metrics["mrr"] == 0.4


def test_a_trial_that_is_reused_as_a_final_run_logs_its_epochs_and_no_settings(place: Path, tmp_path: Path) -> None:
    tracker, history, trial = open_study(place, "reused"), History(), "trial-000"
    history.append("study")
    history.ask(trial, {"train.lr": 0.1, "model.dim": 16})
    flat = {"config/params/train.lr": 0.1, "config/params/model.dim": 16, "config/known": 0, "pid": 7, "time_total_s": 2.0}
    history.report(trial, {**flat, "epoch": 1, "mrr": 0.2, "best_mrr": 0.2})
    history.tell(trial, {**flat, "epoch": 2, "mrr": 0.3, "best_mrr": 0.3})
    record = TrialRecord(0, trial, TrialState.COMPLETED, {"train.lr": 0.1, "model.dim": 16}, 0.3, 2, 2, 4.0)
    (tmp_path / "trials" / trial / "best").mkdir(parents=True)
    ledger = Ledger(tmp_path / "final", History(), 5, TrialFolders(tmp_path / "final"))
    callback = MlflowCallback(tracker, ledger)
    made = reuse_trials({"winner-seed-0": record}, {"winner-seed-0": 0}, history, tmp_path / "trials", ledger, callback)
    tracker.finish()
    assert made == ["winner-seed-0"]
    run = child(tracker, "winner-seed-0")
    assert run.data.metrics == {"mrr": 0.3, "best_mrr": 0.3} and steps(tracker, run) == [1, 2]
    assert run.data.params == {"run": "winner-seed-0"}
    assert (run.info.status, run.data.tags["role"]) == ("FINISHED", "final")


def test_the_next_driver_ends_a_run_of_which_a_killed_one_knew_the_end(place: Path, tmp_path: Path) -> None:
    tracker = open_study(place, "unsettled")
    trial = make_trial(tmp_path, "unsettled_0")
    search = Search(tracker, tmp_path, trial)
    search.start(trial)
    search.epoch(trial, 1, 0.1)
    search.epoch(trial, 2, 0.2, done=True)
    search.history.tell("unsettled_0", trial.last_result)  # killed here: the second epoch is in the journal alone
    resumed = open_study(place, "unsettled", resume=True)
    Search(resumed, tmp_path, trial, history=History.of(search.history.events)).logged.settle()
    resumed.finish()
    run = child(resumed, "unsettled_0")
    assert (run.info.status, run.data.tags["state"], steps(resumed, run)) == ("FINISHED", "pruned", [1, 2])
