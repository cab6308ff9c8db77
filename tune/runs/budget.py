"""A time budget that leaves time to finalise: the search ends while its winner can still be retrained within it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray.tune as ray_tune

from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, can_be_taken, winner

if TYPE_CHECKING:
    from tune.runs.ledger import Ledger

_START = 3.0  # seconds that a run takes besides its epochs
_SLACK = 1.1  # runs are not equally long
_MOST = 0.5  # of the budget: a search that has no time at all finds nothing to finalise


@dataclass(frozen=True)
class Reserve:
    """How long finalising will take, from what the best trial so far took.

    Args:
        runs: of finalising: seeds and ablations.
        concurrency: of them at a time.
        max_epochs: of a run, where the best trial was not left to its own end.
        budget: seconds of the search with its finalising.
        trials: folder of the trials, from which one of the seeds is taken over; None: all are trained again.
    """

    runs: int
    concurrency: int
    max_epochs: int
    budget: float
    trials: Path | None = None

    def __call__(self, records: Iterable[TrialRecord]) -> float:
        """Seconds; 0 where nothing is known yet, at most half the budget."""
        best = winner(records)
        if best is None or not best.epochs:
            return 0.0
        epochs = best.epochs if best.state is TrialState.COMPLETED else self.max_epochs
        each = best.seconds / best.epochs * epochs * _SLACK + _START
        taken = self.trials is not None and can_be_taken(best, self.trials)
        return min(_MOST * self.budget, math.ceil((self.runs - taken) / max(1, self.concurrency)) * each)


class Deadline(ray_tune.Stopper):
    """Tells Tune that the time is over when the ledger says so."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger: Ledger | None = ledger

    def __getstate__(self) -> dict[str, object]:
        return {"_ledger": None}  # not into Tune's snapshots, which are never gone on from

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        """No trial is stopped alone."""
        return False

    def stop_all(self) -> bool:
        """Whether the search is to end."""
        return self._ledger is not None and self._ledger.over
