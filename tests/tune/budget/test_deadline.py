"""What a time budget reserves for finalising, and when it is over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tune.budget.allotment import Pace
from tune.budget.deadline import Deadline, Reserve
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord

OWN = TrialRecord(0, "a", TrialState.COMPLETED, {}, 0.3, 4, epochs=5, seconds=50.0)
PACE = Pace(epoch=8.0, start=3.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_finalising_takes() -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=10, budget=1000.0, pace=PACE)
    closing = Pace(10.0, 3.0).closing(5)
    assert closing > 10
    assert reserve([OWN]) == pytest.approx(3 + 3 * 50 * 1.1 + 2 + closing)  # three rounds, one after another
    stopped = replace(OWN, state=TrialState.PRUNED)  # it would have gone on for five epochs more
    assert reserve([stopped]) == pytest.approx(3 + 3 * 100 * 1.1 + 2 + closing)
    long = reserve([replace(OWN, seconds=5000.0)])
    assert long == 500.0 + Pace(1000.0, 3.0).closing(5)  # the runs never take more than half


def test_before_the_first_trial_has_ended_the_pace_tells() -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=10, budget=1000.0, pace=PACE)
    assert reserve([]) == pytest.approx(3 + 2 * 80 * 1.1 + 1 + PACE.closing(5))  # the winner's own seed is a trial's
    assert replace(reserve, pace=None)([]) == 0.0


def test_a_seed_that_the_search_has_trained_takes_no_time_again(tmp_path: Path) -> None:
    reserve = Reserve(runs=5, concurrency=2, max_epochs=10, budget=1000.0, pace=PACE, trials_dir=tmp_path)
    without = reserve([OWN])  # its checkpoint is gone
    (tmp_path / "a" / "best").mkdir(parents=True)
    assert without - reserve([OWN]) == pytest.approx(50 * 1.1 + 1)
    stopped = replace(OWN, state=TrialState.PRUNED)
    assert reserve([stopped]) == replace(reserve, trials_dir=None)([stopped])  # not trained to its end


def test_the_time_does_not_run_out_before_there_is_a_result() -> None:
    clock, results = Clock(), list[str]()
    deadline = Deadline(60.0, clock=clock, has_result=lambda: bool(results))
    clock.now = 100.0
    assert not deadline.over and not deadline.stop_all()
    results.append("an epoch")
    assert deadline.over and deadline.stop_all()


def test_a_user_ends_it_before() -> None:
    finished, stopped = Deadline(), Deadline()
    assert not finished.stop_all()
    finished.finishing = stopped.stopping = True
    assert finished.stop_all() and finished.over  # its winner is finalised
    assert stopped.stop_all() and not stopped.over  # the trials are not ended for good
