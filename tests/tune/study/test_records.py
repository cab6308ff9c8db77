"""Records of trials: states, counting once, best values, retries, the file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_tune import TuneCalls

from imf_core.errors import DataError
from tune.budget.deadline import Deadline, Reserve
from tune.runs.ledger import Ledger
from tune.runs.trial_folders import TrialFolders
from tune.study import records as records_module
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states, load_records, ranked, winner


def make_trial(folder: Path, trial_id: str, **params: Any) -> Any:
    place = folder / "trials" / trial_id
    place.mkdir(parents=True)
    staging = str(folder / "staging" / trial_id)
    return SimpleNamespace(trial_id=trial_id, config={"params": params}, status="RUNNING", path=str(place), local_path=staging)


def calls(folder: Path, *trials: Any, history: History | None = None, keep: int | None = None, **more: Any) -> TuneCalls:
    """A ledger and what Tune tells it of the trials."""
    history, folders = history or History(), TrialFolders(more.pop("trials_dir", folder / "trials"), keep)
    return TuneCalls(history, [Ledger(folder, history, more.pop("max_epochs", 5), folders, **more)], trials)


def records_of(tune: TuneCalls) -> list[TrialRecord]:
    return list(tune.callbacks[0].records)


def write_outcome(trial: Any, state: str, epochs: int, reason: str = "", error_type: str | None = None) -> None:
    values = {"state": state, "reason": reason, "error_type": error_type, "epochs": epochs}
    (Path(trial.path) / "outcome.json").write_text(json.dumps(values))


def test_counts_and_epochs_come_from_tune(tmp_path: Path) -> None:
    # TUNE-7 says of such a study "3 COMPLETE"; here: one completed, two pruned, one failed, with their epochs.
    trials = [make_trial(tmp_path, f"t{number}", **{"train.lr": 0.1 * (number + 1)}) for number in range(4)]
    tune = calls(tmp_path, *trials, max_epochs=3)
    tune.start(*trials)
    tune.report(trials[0], 0.1, 0.3, 0.2, mean_rank=48.0)
    write_outcome(trials[0], "completed", 3, "all epochs")
    tune.complete(trials[0])
    for trial in trials[1:3]:
        tune.report(trial, 0.05, stop=True)
        tune.complete(trial)
    Path(trials[3].local_path).mkdir(parents=True)
    error = "Failure # 1 (occurred at x)\n\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1)\n  File\nValueError: a bad value\n"
    (Path(trials[3].local_path) / "error.txt").write_text(error)
    tune.error(trials[3])
    tune.end()

    kept = load_records(tmp_path)
    assert kept == records_of(tune)
    assert count_states(kept) == {"completed": 1, "pruned": 2, "stopped": 0, "failed": 1, "diverged": 0}
    assert [(record.number, record.epochs) for record in kept] == [(0, 3), (1, 1), (2, 1), (3, 0)]
    first = kept[0]
    assert (first.best_mrr, first.best_epoch, first.metrics["mean_rank"], first.seconds) == (0.3, 2, 48.0, 6.0)
    assert first.curve == ((1, 0.1), (2, 0.3), (3, 0.2))
    assert first.params == {"train.lr": 0.1}
    assert kept[3].reason == "ValueError: a bad value"
    assert Path(kept[3].log_path).read_text() == error
    assert winner(kept) is kept[0]


def test_budget_ends_trials_of_which_tune_says_nothing(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path, f"t{number}") for number in range(3)]
    tune = calls(tmp_path, *trials, max_epochs=10, deadline=Deadline(0.0))
    tune.start(*trials[:2])
    tune.report(trials[0], 0.1, 0.2)
    tune.end()
    assert [(record.state, record.epochs) for record in records_of(tune)] == [("stopped", 2), ("stopped", 0)]
    assert "time budget" in records_of(tune)[0].reason  # and the third, which never started, is no trial

    stopper = calls(tmp_path / "a", max_epochs=10, deadline=Deadline(0.0))  # a stop of the search's own counts as the budget
    stopper.report(trials[0], 0.1, stop=True)
    stopper.complete(trials[0])
    assert records_of(stopper)[0].state is TrialState.STOPPED

    interrupted = calls(tmp_path / "b", trials[0], max_epochs=10, deadline=Deadline(1000.0))
    interrupted.report(trials[0], 0.1)
    interrupted.end()
    assert "time budget" not in records_of(interrupted)[0].reason


def test_a_trial_whose_files_cannot_be_seen(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0")
    tune = calls(tmp_path, trial, max_epochs=10)
    tune.report(trial, 0.1, 0.2)
    tune.complete(trial)  # no scheduler said stop, and there is no outcome.json
    assert records_of(tune)[0].state is TrialState.COMPLETED


def test_a_value_that_is_not_finite_never_becomes_best(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path, f"t{number}") for number in range(3)]
    tune = calls(tmp_path, *trials)
    tune.report(trials[0], 0.31, math.nan)
    tune.report(trials[1], math.inf)
    tune.report(trials[2], math.nan)
    tune.result(trials[2], {"epoch": 2, "mrr": math.nan, "best_mrr": 0.0, "best_epoch": 0})
    for trial in trials:
        write_outcome(trial, "diverged", 1)
        tune.error(trial)
    records = records_of(tune)
    assert [record.best_mrr for record in records] == [0.31, None, None]
    assert {record.state for record in records} == {TrialState.DIVERGED}
    assert winner(records) is None
    assert "NaN" not in (tmp_path / "trials.json").read_text()
    assert records[0].curve == ((1, 0.31),)


def test_a_trial_that_the_scheduler_stopped_at_a_value_that_is_not_finite_diverged(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0")
    tune = calls(tmp_path, trial)
    tune.report(trial, 0.31)
    tune.result(trial, {"epoch": 2, "mrr": math.nan, "best_mrr": math.nan}, stop=True)
    tune.complete(trial)
    (record,) = records_of(tune)
    assert (record.state, record.epochs, record.best_mrr) == (TrialState.DIVERGED, 2, 0.31)
    assert winner([record]) is None


def test_a_best_epoch_whose_report_was_lost(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0")
    tune = calls(tmp_path, trial)
    tune.result(trial, {"epoch": 3, "mrr": 0.2, "best_mrr": 0.4, "best_epoch": 2, "mean_rank": 40.0})
    tune.end()
    (record,) = records_of(tune)
    assert (record.best_mrr, record.best_epoch, record.metrics) == (0.4, 2, {})  # and not the mean rank of epoch 3


def test_the_budget_leaves_time_to_finalise(tmp_path: Path) -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=4, budget=1000.0)
    deadline = Deadline(1000.0, reserve)
    trials = [make_trial(tmp_path, f"t{number}") for number in range(2)]
    tune = calls(tmp_path, *trials, max_epochs=4, deadline=deadline)
    assert not deadline.over  # nothing is known yet
    for trial, mrr in zip(trials, (0.2, 0.3), strict=True):
        tune.report(trial, mrr, mrr)  # two epochs of two seconds
        write_outcome(trial, "completed", 2)
        tune.complete(trial)
    assert not deadline.over
    late = Deadline(20.0, reserve)
    calls(tmp_path, max_epochs=4, deadline=late, records=records_of(tune))
    assert late.over and late.stop_all()  # three rounds of 2 epochs, 2 s each, and their starts


def test_only_the_best_checkpoints_stay(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path, f"t{number}") for number in range(5)]
    tune = calls(tmp_path, *trials, max_epochs=1, keep=2)
    there: list[list[str]] = []
    for trial, mrr in zip(trials, (0.2, 0.4, 0.1, 0.3, 0.5), strict=True):
        tune.report(trial, mrr)
        (Path(trial.path) / "best").mkdir()
        write_outcome(trial, "failed" if mrr == 0.5 else "completed", 1)
        tune.complete(trial)
        there.append(sorted(folder.parent.name for folder in tmp_path.glob("trials/*/best")))
    assert there == [["t0"], ["t0", "t1"], ["t0", "t1"], ["t1", "t3"], ["t1", "t3"]]


def test_a_retried_trial_counts_once(tmp_path: Path) -> None:
    trial, again = make_trial(tmp_path, "t0"), make_trial(tmp_path, "t1")
    tune = calls(tmp_path, trial, again, max_epochs=4)
    tune.start(trial)
    tune.report(trial, 0.1, 0.2)
    write_outcome(trial, "failed", 2, "worker lost")
    tune.recover(trial)
    tune.start(trial)
    tune.report(trial, 0.25, first=3, stop=True)  # goes on from its checkpoint, then ASHA ends it
    tune.complete(trial)
    assert records_of(tune)[0].state is TrialState.PRUNED  # the outcome of the failed attempt does not count

    tune.start(again)
    tune.recover(again)
    tune.recover(again)
    write_outcome(again, "completed", 4)
    os.utime(Path(again.path) / "outcome.json", ns=(1, 1))
    tune.complete(again)
    assert [(record.number, record.retries) for record in records_of(tune)] == [(0, 1), (1, 2)]
    assert [epoch for epoch, _ in records_of(tune)[0].curve] == [1, 2, 3]
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 2


def test_a_trial_with_a_folder_of_its_own(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0")
    trial.path, own = str(tmp_path / "tune" / "t0"), tmp_path / "trials" / "t0"
    tune = calls(tmp_path, trial, max_epochs=4)
    tune.start(trial)
    (own / "outcome.json").write_text('{"state": "diverged", "reason": "loss is nan", "error_type": "DivergedError"}')
    tune.recover(trial)
    tune.error(trial)  # the retry gave up at once and wrote nothing new
    (record,) = records_of(tune)
    assert (record.state, record.reason, record.log_path) == (TrialState.DIVERGED, "loss is nan", str(own))

    elsewhere = calls(tmp_path, trial, max_epochs=4, trials_dir=tmp_path / "runs")
    (tmp_path / "runs" / "t0").mkdir(parents=True)
    (tmp_path / "runs" / "t0" / "outcome.json").write_text('{"state": "failed", "reason": "'"'x'"'", "error_type": "KeyError"}')
    elsewhere.start(trial)
    elsewhere.error(trial)
    assert records_of(elsewhere)[0].reason == "KeyError: 'x'"


def test_a_second_end_changes_nothing(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0", x=1)
    tune = calls(tmp_path, trial)
    tune.start(trial)
    tune.report(trial, 0.5, stop=True)
    tune.complete(trial)
    (first,) = records_of(tune)
    tune.complete(trial)
    tune.end()
    assert records_of(tune) == [first]


def history(*told: tuple[str, str, dict[str, Any]]) -> History:
    return History.of([{"event": "study"}, *({"event": kind, "trial": name, "at": 50.0, **more} for kind, name, more in told)])


def heard(epoch: int, mrr: float) -> dict[str, Any]:
    return {"epoch": epoch, "seconds": 2.0 * epoch, "numbers": {"mrr": mrr, "best_mrr": mrr, "mean_rank": 9.0}}


def test_a_trial_that_was_interrupted_goes_on_where_the_journal_left_it(tmp_path: Path) -> None:
    """Its stopped record is replaced at its end; epochs, curve, retries and seconds go on."""
    trial = make_trial(tmp_path, "trial-000", **{"train.lr": 0.1})
    before = calls(tmp_path, trial)
    before.start(trial)
    before.report(trial, 0.3)
    before.end()
    assert [record.state for record in load_records(tmp_path)] == [TrialState.STOPPED]
    told = history(
        ("ask", "trial-000", {"params": {"train.lr": 0.1}}), ("report", "trial-000", heard(1, 0.3)), ("retry", "trial-000", {}),
        ("report", "trial-000", heard(2, 0.4)), ("ask", "trial-001", {"params": {"train.lr": 0.2}}),
    )
    told.append("session")
    newer = make_trial(tmp_path, "another id", **{"train.lr": 0.1})
    newer.config["name"] = "trial-000"
    later = calls(tmp_path, newer, history=told, records=load_records(tmp_path))
    assert records_of(later) == []
    later.start(newer)
    later.report(newer, 0.35, first=3)
    write_outcome(newer, "completed", 3)
    later.complete(newer)
    later.end()
    first, second = load_records(tmp_path)
    assert (first.number, first.state, first.best_mrr, first.best_epoch) == (0, TrialState.COMPLETED, 0.4, 2)
    assert (first.epochs, first.curve, first.retries) == (3, ((1, 0.3), (2, 0.4), (3, 0.35)), 1)
    assert first.seconds == 4.0 + 6.0  # two epochs then, and what this session says of its own time
    assert first.params == {"train.lr": 0.1}
    # Begun, and not begun again before this session ended.
    assert (second.trial_id, second.state, second.epochs) == ("trial-001", TrialState.STOPPED, 0)


def test_the_seconds_of_all_sessions_count() -> None:
    told = history(("ask", "trial-000", {"params": {}}))
    for epoch in (1, 2, 3):  # each session trains one epoch, and Ray counts its seconds anew
        told.append("session")
        told.report("trial-000", {"epoch": epoch, "best_mrr": 0.1, "time_total_s": 2.0})
    assert told.trials["trial-000"].seconds == 6.0


@pytest.mark.parametrize("how", ["pruned", "completed", "failed"])
def test_an_end_that_the_kill_kept_from_the_records_is_made_up_for(tmp_path: Path, how: str) -> None:
    make_trial(tmp_path, "trial-000")
    last = {} if how == "failed" else {**heard(2, 0.4), "stopped": how == "pruned"}
    if how != "pruned":
        values = {"state": how, "reason": "said so", "error_type": None, "epochs": 2 if how == "completed" else 0}
        (tmp_path / "trials" / "trial-000" / "outcome.json").write_text(json.dumps(values))
    told = history(
        ("ask", "trial-000", {"params": {"a": 1}}), ("report", "trial-000", heard(1, 0.3)),
        ("tell", "trial-000", {"value": 0.4, "error": how == "failed", "diverged": False, **last}),
    )
    (record,) = records_of(calls(tmp_path, history=told, deadline=Deadline(0.0)))
    assert load_records(tmp_path) == [record]
    assert (record.state, record.epochs) == (TrialState(how), 1 if how == "failed" else 2)
    assert records_of(calls(tmp_path, history=told, records=[record])) == [record]


def test_a_full_disk_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(path: Path, text: str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records_module, "atomic_write_text", full)
    trials = [make_trial(tmp_path, "t0"), make_trial(tmp_path, "t1")]
    tune = calls(tmp_path, *trials)
    tune.start(*trials)
    for trial in trials:
        tune.complete(trial)
    assert len(records_of(tune)) == 2
    assert caplog.text.count("No space left") == 1


def test_ranked_puts_lost_trials_last() -> None:
    def record(number: int, state: str, best: float | None) -> TrialRecord:
        return TrialRecord(number, f"t{number}", TrialState(state), {}, best, 1, 1, 1.0)

    given = [record(0, "failed", 0.9), record(1, "completed", 0.2), record(2, "pruned", 0.4), record(3, "stopped", None),
             record(4, "diverged", 0.8), record(5, "completed", 0.4)]
    assert [item.number for item in ranked(given)] == [2, 5, 1, 3, 0, 4]
    assert winner(given) is given[2]
    assert winner([]) is None


def test_records_refuse_what_they_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the trials"):
        load_records(tmp_path)
    (tmp_path / "trials.json").write_text("{}")
    with pytest.raises(DataError, match="not a list"):
        load_records(tmp_path)
    (tmp_path / "trials.json").write_text('[{"number": 1}]')
    with pytest.raises(DataError, match="not a trial record"):
        load_records(tmp_path)


def test_an_end_costs_the_same_after_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is composed once, and the folder of a trial without a checkpoint is looked at once."""
    trials = [make_trial(tmp_path, f"t{number}", **{"train.lr": 0.1}) for number in range(6)]
    tune = calls(tmp_path, *trials, max_epochs=3, keep=1)
    composed: list[str] = []
    real = TrialRecord.to_json

    def counted(record: TrialRecord) -> dict[str, Any]:
        composed.append(record.trial_id)
        return real(record)

    monkeypatch.setattr(TrialRecord, "to_json", counted)
    for number, trial in enumerate(trials):
        tune.start(trial)
        tune.report(trial, 0.1 * (number + 1), stop=True)
        (tmp_path / "trials" / trial.trial_id / "best").mkdir(parents=True)
        tune.complete(trial)
    assert composed == [trial.trial_id for trial in trials]
    assert load_records(tmp_path) == records_of(tune)
    assert [path.parent.name for path in (tmp_path / "trials").glob("*/best")] == ["t5"]
