"""Dividing a time budget: what is given up and in which order, and that a whole study keeps to it on a simulated clock."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.budget.allotment import Allotment, Pace, Study, allot, final_seconds
from tune.budget.deadline import Deadline, FinalsAllowed, Reserve, pace_of
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, winner

PACE = Pace(epoch=2.0, start=1.0)
ASKED = Study(trials=12, given=4, concurrency=2, max_epochs=8, grace=2, runs=6)


def test_with_time_nothing_is_given_up() -> None:
    assert allot(10_000, PACE, ASKED) == Allotment(max_epochs=8, runs=6, trials=12)


def test_what_is_given_up_first() -> None:
    """Ablations and control, seeds beyond the second, half the epochs, the second seed, a quarter of the epochs."""
    results = [allot(float(seconds), PACE, ASKED) for seconds in range(200, 10, -1)]
    steps = list(dict.fromkeys((result.runs, result.max_epochs) for result in results))
    assert steps[0] == (6, 8) and steps[-1] == (1, 2)
    assert steps == sorted(steps, reverse=True)  # nothing comes back
    down = [(6, 8), (4, 8), (2, 8), (2, 7), (2, 6), (2, 5), (2, 4), (1, 4), (1, 3), (1, 2)]  # two final runs at a time
    assert [step for step in steps if step in down] == down
    trials = [result.trials for result in results]
    assert trials[-1] == 0 and max(trials) == 12
    assert min(result.trials for result in results if result.max_epochs > 2) >= 6  # four given ones, and two drawn


def test_epochs_that_must_stay_stay() -> None:
    assert {allot(float(seconds), PACE, replace(ASKED, fixed_epochs=True)).max_epochs for seconds in range(10, 200)} == {8}


def test_the_final_runs_that_there_is_time_for(tmp_path: Path) -> None:
    (tmp_path / "a" / "best").mkdir(parents=True)
    own = TrialRecord(0, "a", TrialState.COMPLETED, {}, 0.3, 4, epochs=5, seconds=50.0)

    def allowed(seconds: float, trial: TrialRecord = own) -> FinalsAllowed:
        return Reserve(5, 2, 10, 1000.0, PACE, tmp_path).allowed(seconds, trial)

    assert allowed(1000.0) == FinalsAllowed(5)
    assert allowed(85.0) == FinalsAllowed(3)  # its own seed is done, and two run at a time
    assert allowed(30.0) == allowed(0.0) == FinalsAllowed(1)
    cut = replace(own, state=TrialState.STOPPED)  # not trained to its end: up to ten epochs of 10 s
    assert allowed(1000.0, cut) == FinalsAllowed(5)
    assert allowed(140.0, cut) == FinalsAllowed(2)
    assert allowed(70.0, cut) == FinalsAllowed(1, 5)  # from the beginning
    (tmp_path / "a" / "state").mkdir()
    assert allowed(70.0, cut) == FinalsAllowed(1, 10)  # from where it was
    assert allowed(39.0, cut) == FinalsAllowed(1, 7)
    assert allowed(0.0, cut) == FinalsAllowed(1, 5)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def simulated(budget: float, asked: Study, base: float, start: float, seed: int, folder: Path) -> tuple[float, int, int]:
    """A study with trials of random speeds: seconds of the whole command, records, and final runs.

    Trials take 0.6 to 2 times the base's seconds an epoch, 0.9 to 1.1 times their own in each epoch; some end early.
    """
    rng, clock = random.Random(seed), Clock()
    measured = Pace(base * rng.uniform(0.8, 1.2), start)
    result = allot(budget, measured, asked)
    reserve = Reserve(result.runs, asked.concurrency, result.max_epochs, budget, measured, folder)
    reported: list[int] = []
    deadline = Deadline(budget, reserve, clock, lambda: bool(reported))
    records: list[TrialRecord] = []
    speeds: dict[int, float] = {}
    running: list[tuple[float, int, int]] = []  # time of the next report, trial, epoch
    begun: dict[int, float] = {}
    lengths: dict[int, int] = {}

    def begin() -> None:
        number = len(begun)
        late = bool(begun) and (deadline.seconds_left or 0.0) < measured.run(1)
        if number < asked.trials and not late:
            begun[number], speeds[number] = clock.now, base * rng.uniform(0.6, 2.0)
            lengths[number] = result.max_epochs if rng.random() < 0.5 else min(asked.grace, result.max_epochs)
            first = start if number < asked.concurrency else 1.0  # processes are used again
            heapq.heappush(running, (clock.now + first + speeds[number] * rng.uniform(0.9, 1.1), number, 1))

    def end(number: int, epoch: int, state: TrialState) -> None:
        value = rng.random() if epoch else None
        seconds = clock.now - begun[number]
        records.append(TrialRecord(number, f"t{number}", state, {}, value, epoch or None, epochs=epoch, seconds=seconds))
        deadline.update(records)

    for _ in range(asked.concurrency):
        begin()
    while running:
        at, number, epoch = running[0]
        ends = clock.now + (deadline.seconds_left or 0.0)
        if reported and at >= ends:
            clock.now = max(clock.now, ends)
            break
        heapq.heappop(running)
        clock.now = at
        reported.append(number)
        if epoch == lengths[number]:
            completed = epoch == result.max_epochs
            if completed:
                (folder / f"t{number}" / "best").mkdir(parents=True, exist_ok=True)
            end(number, epoch, TrialState.COMPLETED if completed else TrialState.PRUNED)
            begin()
        elif not deadline.over:
            heapq.heappush(running, (at + speeds[number] * rng.uniform(0.9, 1.1), number, epoch + 1))
    for _, number, epoch in running:
        (folder / f"t{number}" / "state").mkdir(parents=True, exist_ok=True)
        end(number, epoch - 1, TrialState.STOPPED)
    best = winner(records)
    assert best is not None
    pace = pace_of(best, measured)
    allowed = reserve.allowed(budget - clock.now, best)
    reused = int((folder / best.trial_id / "best").is_dir())
    epochs = allowed.max_epochs or (best.epochs if reused else result.max_epochs)
    done = best.epochs if not reused and (folder / best.trial_id / "state").is_dir() else 0
    if allowed.max_epochs is not None:
        finals = pace.run(max(0, epochs - done))
    else:
        finals = pace.run(epochs * rng.uniform(0.9, 1.1), math.ceil((allowed.runs - reused) / asked.concurrency))
    return clock.now + finals + pace.closing(allowed.runs), len(records), allowed.runs


@settings(deadline=None)
@given(
    base=st.floats(0.05, 20), start=st.floats(0.5, 10), trials=st.integers(1, 40), concurrency=st.integers(1, 8),
    max_epochs=st.integers(1, 50), seeds=st.integers(1, 5), ablations=st.integers(0, 4), scale=st.floats(0.2, 3.0),
    seed=st.integers(0, 10_000), early=st.booleans(),
)
def test_a_study_keeps_to_its_budget(
    tmp_path_factory: pytest.TempPathFactory, base: float, start: float, trials: int, concurrency: int, max_epochs: int,
    seeds: int, ablations: int, scale: float, seed: int, early: bool,
) -> None:
    """Budget + 10 %, wherever there is time for three trials of the fewest epochs, and the start and the end of the command."""
    grace = max(1, max_epochs // 8) if early else max_epochs
    asked = Study(trials, 4, concurrency, max_epochs, grace, seeds + ablations)
    pace = Pace(base, start)
    least = 3 * Pace(2 * base, start).run(math.ceil(max_epochs / 4)) + pace.closing(2)
    whole = pace.run(max_epochs, math.ceil(trials / concurrency))
    whole += final_seconds(pace, max_epochs, seeds + ablations, concurrency)
    budget = max(least, scale * whole)
    seconds, records, runs = simulated(budget, asked, base, start, seed, tmp_path_factory.mktemp("trials"))
    assert seconds <= 1.1 * budget
    assert records >= 1 and 1 <= runs <= asked.runs
