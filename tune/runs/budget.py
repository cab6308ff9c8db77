"""A time budget that leaves time to finalise: the search ends while its winner can still be retrained within it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray.tune as ray_tune

from tune.study.history import DriverOnly
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, can_be_reused, winner

_START_SECONDS = 3.0  # that a run takes besides its epochs
_SLACK = 1.1  # runs are not equally long
_MAX_SHARE = 0.5  # of the budget: a search that has no time at all finds nothing to finalise


@dataclass(frozen=True)
class Reserve:
    """How long finalising will take, from what the best trial so far took.

    Args:
        runs: of finalising: seeds and ablations.
        concurrency: of them at a time.
        max_epochs: of a run, where the best trial was not left to its own end.
        budget: seconds of the search with its finalising.
        trials_dir: folder of the trials: the winner is reused as the run of its own seed; None: all seeds are trained again.
    """

    runs: int
    concurrency: int
    max_epochs: int
    budget: float
    trials_dir: Path | None = None

    def __call__(self, records: Sequence[TrialRecord]) -> float:
        """Seconds; 0 before the first usable trial, at most half the budget."""
        best = winner(records)
        if best is None or not best.epochs:
            return 0.0
        epochs = best.epochs if best.state is TrialState.COMPLETED else self.max_epochs
        run_seconds = best.seconds / best.epochs * epochs * _SLACK + _START_SECONDS
        reused = self.trials_dir is not None and can_be_reused(best, self.trials_dir)
        return min(_MAX_SHARE * self.budget, math.ceil((self.runs - reused) / max(1, self.concurrency)) * run_seconds)


class Deadline(DriverOnly, ray_tune.Stopper):
    """Ends the search when its time budget, less what is reserved, has run out.

    Args:
        seconds: of the budget, from now; None: there is none.
        reserve: seconds to leave of the budget, from the ended trials; None: none.
        clock: seconds since 1970.
    """

    def __init__(
        self, seconds: float | None = None, reserve: Callable[[Sequence[TrialRecord]], float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._reserve = clock, reserve
        self._end = math.inf if seconds is None else clock() + seconds
        self._reserved, self._over = 0.0, False

    def update(self, records: Sequence[TrialRecord]) -> None:
        """A trial has ended. The reserve follows from the ended trials, and Ray asks for the time many times a second."""
        if self._reserve is not None:
            self._reserved = self._reserve(records)

    @property
    def over(self) -> bool:
        """Whether the time has run out; once it has, it stays so."""
        self._over = self._over or self._clock() + self._reserved >= self._end
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
        return self.over
