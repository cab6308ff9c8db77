"""Records of trials: states, counting once, best values, retries, the file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imf_core.errors import DataError
from tune.runs.budget import Reserve
from tune.runs.ledger import Ledger
from tune.study import records as records_module
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states, load_records, ranked, winner


def make_trial(folder: Path, trial_id: str, **params: Any) -> Any:
    place = folder / "trials" / trial_id
    place.mkdir(parents=True)
    staging = str(folder / "staging" / trial_id)
    return SimpleNamespace(trial_id=trial_id, config={"params": params}, status="RUNNING", path=str(place), local_path=staging)


def report(ledger: Ledger, trial: Any, trials: list[Any], *values: float, first: int = 1, stop: bool = False) -> None:
    best, best_epoch = math.nan, None
    for epoch, mrr in enumerate(values, start=first):
        if math.isfinite(mrr) and not mrr <= best:
            best, best_epoch = mrr, epoch
        result = {"epoch": epoch, "mrr": mrr, "best_mrr": best, "best_epoch": best_epoch, "mean_rank": 50.0 - epoch}
        result |= {"time_total_s": 2.0 * epoch, "training_iteration": epoch, "config": trial.config, "trial_id": trial.trial_id}
        result["done"] = stop and epoch == first + len(values) - 1
        ledger.on_trial_result(iteration=0, trials=trials, trial=trial, result=result)


def write_outcome(trial: Any, state: str, epochs: int, reason: str = "", error_type: str | None = None) -> None:
    values = {"state": state, "reason": reason, "error_type": error_type, "epochs": epochs}
    (Path(trial.path) / "outcome.json").write_text(json.dumps(values))


def test_counts_and_epochs_come_from_tune(tmp_path: Path) -> None:
    # TUNE-7 says of such a study "3 COMPLETE"; here: one completed, two pruned, one failed, with their epochs.
    ledger = Ledger(tmp_path, max_epochs=3)
    ledger.setup(stop=None, num_samples=4)
    trials = [make_trial(tmp_path, f"t{number}", **{"train.lr": 0.1 * (number + 1)}) for number in range(4)]
    for trial in trials:
        ledger.on_trial_start(iteration=0, trials=trials, trial=trial)
    report(ledger, trials[0], trials, 0.1, 0.3, 0.2)
    write_outcome(trials[0], "completed", 3, "all epochs")
    ledger.on_trial_complete(iteration=0, trials=trials, trial=trials[0])
    for trial in trials[1:3]:
        report(ledger, trial, trials, 0.05, stop=True)
        ledger.on_trial_complete(iteration=0, trials=trials, trial=trial)
    Path(trials[3].local_path).mkdir(parents=True)
    error = "Failure # 1 (occurred at x)\n\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=1)\n  File\nValueError: a bad value\n"
    (Path(trials[3].local_path) / "error.txt").write_text(error)
    ledger.on_trial_error(iteration=0, trials=trials, trial=trials[3])
    ledger.on_experiment_end(trials=trials)

    kept = load_records(tmp_path)
    assert kept == ledger.records
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
    ledger = Ledger(tmp_path, max_epochs=10, budget_s=0.0)
    ledger.setup()
    trials = [make_trial(tmp_path, f"t{number}") for number in range(3)]
    for trial in trials[:2]:
        ledger.on_trial_start(iteration=0, trials=trials, trial=trial)
    report(ledger, trials[0], trials, 0.1, 0.2)
    ledger.on_experiment_end(trials=trials)
    assert [(record.state, record.epochs) for record in ledger.records] == [("stopped", 2), ("stopped", 0)]
    assert "time budget" in ledger.records[0].reason  # and the third, which never started, is no trial

    stopper = Ledger(tmp_path / "a", max_epochs=10, budget_s=0.0)  # a stop rule of the search's own counts as the budget
    stopper.setup()
    report(stopper, trials[0], trials, 0.1, stop=True)
    stopper.on_trial_complete(iteration=0, trials=trials, trial=trials[0])
    assert stopper.records[0].state is TrialState.STOPPED

    interrupted = Ledger(tmp_path / "b", max_epochs=10, budget_s=1000.0)
    interrupted.setup()
    report(interrupted, trials[0], trials, 0.1)
    interrupted.end(trials)
    assert "time budget" not in interrupted.records[0].reason


def test_a_trial_whose_files_cannot_be_seen(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=10)
    trial = make_trial(tmp_path, "t0")
    report(ledger, trial, [trial], 0.1, 0.2)
    ledger.on_trial_complete(iteration=0, trials=[trial], trial=trial)  # no scheduler said stop, and there is no outcome.json
    assert ledger.records[0].state is TrialState.COMPLETED


def test_a_value_that_is_not_finite_never_becomes_best(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=5)
    trials = [make_trial(tmp_path, f"t{number}") for number in range(3)]
    report(ledger, trials[0], trials, 0.31, math.nan)
    report(ledger, trials[1], trials, math.inf)
    report(ledger, trials[2], trials, math.nan)
    start = {"epoch": 2, "mrr": math.nan, "best_mrr": 0.0, "best_epoch": 0}
    ledger.on_trial_result(iteration=0, trials=trials, trial=trials[2], result=start)
    for trial in trials:
        write_outcome(trial, "diverged", 1)
        ledger.on_trial_error(iteration=0, trials=trials, trial=trial)
    assert [record.best_mrr for record in ledger.records] == [0.31, None, None]
    assert {record.state for record in ledger.records} == {TrialState.DIVERGED}
    assert winner(ledger.records) is None
    assert "NaN" not in (tmp_path / "trials.json").read_text()
    assert ledger.records[0].curve == ((1, 0.31),)


def test_a_best_epoch_whose_report_was_lost(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=5)
    trial = make_trial(tmp_path, "t0")
    result = {"epoch": 3, "mrr": 0.2, "best_mrr": 0.4, "best_epoch": 2, "mean_rank": 40.0}
    ledger.on_trial_result(iteration=0, trials=[trial], trial=trial, result=result)
    ledger.end([trial])
    (record,) = ledger.records
    assert (record.best_mrr, record.best_epoch, record.metrics) == (0.4, 2, {})  # and not the mean rank of epoch 3


def test_the_budget_leaves_time_to_finalise(tmp_path: Path) -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=4, budget=1000.0)
    ledger = Ledger(tmp_path, max_epochs=4, budget_s=1000.0, reserve=reserve)
    ledger.setup()
    trials = [make_trial(tmp_path, f"t{number}") for number in range(2)]
    assert not ledger.over  # nothing is known yet
    for trial, mrr in zip(trials, (0.2, 0.3), strict=True):
        report(ledger, trial, trials, mrr, mrr)  # two epochs of two seconds
        write_outcome(trial, "completed", 2)
        ledger.on_trial_complete(iteration=0, trials=trials, trial=trial)
    assert not ledger.over
    late = Ledger(tmp_path, max_epochs=4, budget_s=20.0, records=ledger.records, reserve=reserve)
    late.setup()
    assert late.over  # three rounds of 2 epochs, 2 s each, and their starts


def test_what_finalising_takes() -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=10, budget=1000.0)
    own = TrialRecord(0, "a", TrialState.COMPLETED, {}, 0.3, 4, epochs=5, seconds=50.0)
    assert reserve([]) == 0.0
    assert reserve([own]) == pytest.approx(3 * (50 * 1.1 + 3))
    stopped = replace(own, state=TrialState.PRUNED)  # it would have gone on for five epochs more
    assert reserve([stopped]) == pytest.approx(3 * (100 * 1.1 + 3))
    assert reserve([replace(own, seconds=5000.0)]) == 500.0  # never more than half


def test_a_seed_that_the_search_has_trained_takes_no_time_again(tmp_path: Path) -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=10, budget=1000.0, trials=tmp_path)
    own = TrialRecord(0, "a", TrialState.COMPLETED, {}, 0.3, 4, epochs=5, seconds=50.0)
    assert reserve([own]) == pytest.approx(3 * (50 * 1.1 + 3))  # its checkpoint is gone
    (tmp_path / "a" / "best").mkdir(parents=True)
    assert reserve([own]) == pytest.approx(2 * (50 * 1.1 + 3))
    stopped = replace(own, state=TrialState.PRUNED)
    assert reserve([stopped]) == pytest.approx(3 * (100 * 1.1 + 3))  # not trained to its end


def test_only_the_best_checkpoints_stay(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=1, keep=2)
    trials = [make_trial(tmp_path, f"t{number}") for number in range(5)]
    there: list[list[str]] = []
    for trial, mrr in zip(trials, (0.2, 0.4, 0.1, 0.3, 0.5), strict=True):
        report(ledger, trial, trials, mrr)
        (Path(trial.path) / "best").mkdir()
        write_outcome(trial, "failed" if mrr == 0.5 else "completed", 1)
        ledger.on_trial_complete(iteration=0, trials=trials, trial=trial)
        there.append(sorted(folder.parent.name for folder in tmp_path.glob("trials/*/best")))
    assert there == [["t0"], ["t0", "t1"], ["t0", "t1"], ["t1", "t3"], ["t1", "t3"]]


def test_a_retried_trial_counts_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=4)
    trial = make_trial(tmp_path, "t0")
    ledger.on_trial_start(iteration=0, trials=[trial], trial=trial)
    report(ledger, trial, [trial], 0.1, 0.2)
    write_outcome(trial, "failed", 2, "worker lost")
    ledger.on_trial_recover(iteration=0, trials=[trial], trial=trial)
    ledger.on_trial_start(iteration=0, trials=[trial], trial=trial)
    report(ledger, trial, [trial], 0.25, first=3, stop=True)  # goes on from its checkpoint, then ASHA ends it
    ledger.on_trial_complete(iteration=0, trials=[trial], trial=trial)
    assert ledger.records[0].state is TrialState.PRUNED  # the outcome of the failed attempt does not count

    again = make_trial(tmp_path, "t1")
    ledger.on_trial_start(iteration=0, trials=[trial, again], trial=again)
    ledger.on_trial_recover(iteration=0, trials=[trial, again], trial=again)
    ledger.on_trial_recover(iteration=0, trials=[trial, again], trial=again)
    write_outcome(again, "completed", 4)
    os.utime(Path(again.path) / "outcome.json", ns=(1, 1))
    ledger.on_trial_complete(iteration=0, trials=[trial, again], trial=again)
    assert [(record.number, record.retries) for record in ledger.records] == [(0, 1), (1, 2)]
    assert [epoch for epoch, _ in ledger.records[0].curve] == [1, 2, 3]
    assert len(json.loads((tmp_path / "trials.json").read_text())) == 2


def test_a_trial_with_a_folder_of_its_own(tmp_path: Path) -> None:
    trial = make_trial(tmp_path, "t0")
    trial.path, own = str(tmp_path / "tune" / "t0"), tmp_path / "trials" / "t0"
    ledger = Ledger(tmp_path, max_epochs=4)
    ledger.on_trial_start(iteration=0, trials=[trial], trial=trial)
    (own / "outcome.json").write_text('{"state": "diverged", "reason": "loss is nan", "error_type": "DivergedError"}')
    ledger.on_trial_recover(iteration=0, trials=[trial], trial=trial)
    ledger.on_trial_error(iteration=0, trials=[trial], trial=trial)  # the retry gave up at once and wrote nothing new
    (record,) = ledger.records
    assert (record.state, record.reason, record.log_path) == (TrialState.DIVERGED, "loss is nan", str(own))

    elsewhere = Ledger(tmp_path, max_epochs=4, trials=tmp_path / "runs")
    (tmp_path / "runs" / "t0").mkdir(parents=True)
    (tmp_path / "runs" / "t0" / "outcome.json").write_text('{"state": "failed", "reason": "'"'x'"'", "error_type": "KeyError"}')
    elsewhere.on_trial_error(iteration=0, trials=[trial], trial=trial)
    assert elsewhere.records[0].reason == "KeyError: 'x'"


def test_a_second_end_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, max_epochs=5)
    trial = make_trial(tmp_path, "t0", x=1)
    ledger.on_trial_start(iteration=0, trials=[trial], trial=trial)
    report(ledger, trial, [trial], 0.5, stop=True)
    first = ledger.close(trial, "TERMINATED")
    ledger.on_trial_complete(iteration=0, trials=[trial], trial=trial)
    ledger.on_experiment_end(trials=[trial])
    assert ledger.records == [first]


def history(*told: tuple[str, str, dict[str, Any]]) -> History:
    return History.of([{"event": "study"}, *({"event": kind, "trial": name, "at": 50.0, **more} for kind, name, more in told)])


def heard(epoch: int, mrr: float) -> dict[str, Any]:
    return {"epoch": epoch, "seconds": 2.0 * epoch, "numbers": {"mrr": mrr, "best_mrr": mrr, "mean_rank": 9.0}}


def test_a_trial_that_was_interrupted_goes_on_where_the_journal_left_it(tmp_path: Path) -> None:
    """Its stopped record is replaced at its end; epochs, curve, retries and seconds go on."""
    trial = make_trial(tmp_path, "trial-000", **{"train.lr": 0.1})
    before = Ledger(tmp_path, max_epochs=5)
    before.on_trial_start(iteration=0, trials=[trial], trial=trial)
    report(before, trial, [trial], 0.3)
    before.on_experiment_end(trials=[trial])
    assert [record.state for record in load_records(tmp_path)] == [TrialState.STOPPED]
    told = history(
        ("ask", "trial-000", {"params": {"train.lr": 0.1}}), ("report", "trial-000", heard(1, 0.3)), ("retry", "trial-000", {}),
        ("report", "trial-000", heard(2, 0.4)), ("ask", "trial-001", {"params": {"train.lr": 0.2}}),
    )
    later = Ledger(tmp_path, max_epochs=5, records=load_records(tmp_path), history=told)
    assert later.records == []
    newer = make_trial(tmp_path, "another id", **{"train.lr": 0.1})
    newer.config["name"] = "trial-000"
    later.on_trial_start(iteration=0, trials=[newer], trial=newer)
    report(later, newer, [newer], 0.35, first=3)
    write_outcome(newer, "completed", 3)
    later.on_trial_complete(iteration=0, trials=[newer], trial=newer)
    later.on_experiment_end(trials=[newer])
    first, second = load_records(tmp_path)
    assert (first.number, first.state, first.best_mrr, first.best_epoch) == (0, TrialState.COMPLETED, 0.4, 2)
    assert (first.epochs, first.curve, first.retries) == (3, ((1, 0.3), (2, 0.4), (3, 0.35)), 1)
    assert first.seconds == 4.0 + 6.0  # two epochs then, and what this session says of its own time
    assert first.params == {"train.lr": 0.1}
    # Begun, and not begun again before this session ended.
    assert (second.trial_id, second.state, second.epochs) == ("trial-001", TrialState.STOPPED, 0)


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
    ledger = Ledger(tmp_path, max_epochs=5, history=told)
    (record,) = load_records(tmp_path)
    assert [record] == ledger.records
    assert (record.state, record.epochs) == (TrialState(how), 1 if how == "failed" else 2)
    again = Ledger(tmp_path, max_epochs=5, records=[record], history=told)
    assert again.records == [record]


def test_a_full_disk_does_not_end_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(path: Path, text: str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records_module, "atomic_write_text", full)
    ledger = Ledger(tmp_path, max_epochs=5)
    trials = [make_trial(tmp_path, "t0"), make_trial(tmp_path, "t1")]
    for trial in trials:
        ledger.on_trial_start(iteration=0, trials=trials, trial=trial)
        ledger.on_trial_complete(iteration=0, trials=trials, trial=trial)
    assert len(ledger.records) == 2
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
    ledger = Ledger(tmp_path, max_epochs=3, keep=1)
    trials = [make_trial(tmp_path, f"t{number}", **{"train.lr": 0.1}) for number in range(6)]
    composed: list[str] = []
    real = TrialRecord.to_json

    def counted(record: TrialRecord) -> dict[str, Any]:
        composed.append(record.trial_id)
        return real(record)

    monkeypatch.setattr(TrialRecord, "to_json", counted)
    for place, trial in enumerate(trials):
        ledger.on_trial_start(iteration=0, trials=trials, trial=trial)
        report(ledger, trial, trials, 0.1 * (place + 1), stop=True)
        (tmp_path / "trials" / trial.trial_id / "best").mkdir(parents=True)
        ledger.on_trial_complete(iteration=0, trials=trials, trial=trial)
    assert composed == [trial.trial_id for trial in trials]
    assert load_records(tmp_path) == ledger.records
    assert [path.parent.name for path in (tmp_path / "trials").glob("*/best")] == ["t5"]
