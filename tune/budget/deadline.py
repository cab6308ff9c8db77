"""The end of a search: when its time budget, less what finalising takes, has run out, or when the user asks for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray.tune as ray_tune

from tune.budget.allotment import Pace, final_seconds
from tune.study.history import DriverOnly
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, can_be_reused, winner

_START_SECONDS = 10.0  # where it was not measured
_MAX_SHARE = 0.5  # of the budget: a search that has no time at all finds nothing to finalise


@dataclass(frozen=True)
class FinalsAllowed:
    """Which runs of finalising a budget still allows.

    Args:
        runs: how many, the first of the list; at least 1.
        max_epochs: of the only one, where there is not even time for it; None: as planned.
    """

    runs: int
    max_epochs: int | None = None


@dataclass(frozen=True)
class Reserve:
    """How long finalising will take, from what the best trial so far took.

    Args:
        runs: of finalising: seeds, control and ablations.
        concurrency: of them at a time.
        max_epochs: of a run, where the best trial was not left to its own end.
        budget: seconds of the search with its finalising.
        pace: measured before the first trial; None: it could not be.
        trials_dir: folder of the trials: the winner is reused as the run of its own seed; None: all seeds are trained again.
        pooled: models among which the pool is chosen.
    """

    runs: int
    concurrency: int
    max_epochs: int
    budget: float
    pace: Pace | None = None
    trials_dir: Path | None = None
    pooled: int = 0

    def __call__(self, records: Sequence[TrialRecord]) -> float:
        """Seconds; the final runs take at most half the budget. Before the first usable trial the pace tells."""
        best = winner(records)
        if best is None or not best.epochs:
            pace, epochs, reused = self.pace, self.max_epochs, True
        else:
            pace, epochs, reused = self._run_of(best)
        if pace is None:
            return 0.0
        seconds = final_seconds(pace, epochs, self.runs - reused, self.concurrency)
        return min(_MAX_SHARE * self.budget, seconds) + pace.closing(self.runs + self.pooled)

    def allowed(self, seconds: float, best: TrialRecord) -> FinalsAllowed:
        """Choose the final runs at the end of the search, when it is known how long the winner trained.

        Args:
            seconds: of the budget that are left.
            best: the winner.
        """
        pace, epochs, reused = self._run_of(best)
        allowed = int(reused)
        while allowed < self.runs:
            closing = pace.closing(allowed + 1 + self.pooled)
            if final_seconds(pace, epochs, allowed + 1 - reused, self.concurrency) + closing > seconds:
                break
            allowed += 1
        if allowed:
            return FinalsAllowed(allowed)
        left = (seconds - pace.start - pace.closing(1 + self.pooled)) / pace.epoch
        saved = self.trials_dir is not None and (self.trials_dir / best.trial_id / "state").is_dir()
        resumed = best.epochs if saved else 0
        return FinalsAllowed(1, max(1, best.best_epoch or 1, min(epochs, resumed + int(max(0.0, left)))))

    def _run_of(self, best: TrialRecord) -> tuple[Pace, int, bool]:
        """Pace and epochs of a run with a trial's settings, and whether that of its own seed is there already."""
        epochs = best.epochs if best.state is TrialState.COMPLETED else self.max_epochs
        return pace_of(best, self.pace), epochs, self.trials_dir is not None and can_be_reused(best, self.trials_dir)


def pace_of(trial: TrialRecord, measured: Pace | None) -> Pace:
    """The pace of a trial that has trained for an epoch or more."""
    measured = measured or Pace(0.0, _START_SECONDS)
    return replace(measured, epoch=trial.seconds / trial.epochs)


class Deadline(DriverOnly, ray_tune.Stopper):
    """Ends the search when its time budget, less what is reserved, has run out, or earlier when it is asked to.

    Args:
        seconds: of the budget, from now; None: there is none.
        reserve: seconds to leave of the budget, from the ended trials; None: none.
        clock: seconds since 1970.
        has_result: whether a trial has a value; before, the time does not run out: a budget that buys nothing is wasted.

    Attributes:
        finishing: the user wants the search to end now, and its winner to be finalised.
        stopping: the session is to end now; the search goes on in another one.
    """

    def __init__(
        self, seconds: float | None = None, reserve: Callable[[Sequence[TrialRecord]], float] | None = None,
        clock: Callable[[], float] = time.time, has_result: Callable[[], bool] = lambda: True,
    ) -> None:
        self._clock, self._reserve, self._has_result = clock, reserve, has_result
        self._end = math.inf if seconds is None else clock() + seconds
        self._over, self.finishing, self.stopping = False, False, False
        self._reserved = 0.0
        self.update(())

    def update(self, records: Sequence[TrialRecord]) -> None:
        """A trial has ended. The reserve follows from the ended trials, and Ray asks for the time many times a second."""
        if self._reserve is not None:
            self._reserved = self._reserve(records)

    @property
    def over(self) -> bool:
        """Whether the time has run out, or the user has ended it; once it is so, it stays so."""
        late = self._clock() + self._reserved >= self._end
        self._over = self._over or self.finishing or (late and self._has_result())
        return self._over

    @property
    def seconds_left(self) -> float | None:
        """Seconds that trials may still use, at least 0; None without a budget."""
        return None if math.isinf(self._end) else max(0.0, self._end - self._reserved - self._clock())

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether Ray is to end the search."""
        return self.stopping or self.over
