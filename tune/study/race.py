"""Race and resume: each trial is judged after a few epochs and paused; the better ones go on from where they were.

Promotion as in ASHA (Li et al., MLSys 2020, arXiv 1810.05934, algorithm 2): of the trials that have reached a rung, the best in
`reduction` may train to the next one. Nothing is stopped for good as long as it may still be among those: it is paused, its
training state is kept, and it goes on when more trials have reached its rung. So the first points of a study get the first
rung each, the best quarter the second, the best of these finishes; and a free worker begins a new trial only if no paused one
deserves more.

A learning curve does not depend on how far its trial may train: no learning rate follows `train.max_epochs`. The first epochs
of all trials are therefore comparable, and a trial that goes on has the very curve of one that was never paused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from imf_core.errors import ConfigError
from tune.study.history import History

_RUNGS = 4  # below the last, at most: each pause costs a save and a start
REDUCTION = 4.0  # on made-up graphs better than 2, 3 and 6 (`python -m benchmarks.race_simulation`)
MOST_PAUSED = 8  # training states that are kept, at least


@dataclass(frozen=True)
class Leg:
    """What a free worker is to do.

    Args:
        name: of the paused trial that goes on; empty: a new trial begins.
        until: the epoch after which it is judged.
    """

    name: str
    until: int


class Race:
    """Decides which trial trains next and how far, from the events of a study alone.

    Args:
        rungs: rising numbers of epochs after which a trial is judged; the last is the length of a full trial.
        reduction: one in so many passes a rung, > 1.
        most_paused: paused trials that are kept; of more, the worst are given up.
    """

    def __init__(self, rungs: tuple[int, ...], reduction: float = REDUCTION, most_paused: int = MOST_PAUSED) -> None:
        self.rungs, self.reduction, self.most_paused = rungs, reduction, most_paused

    def next_leg(self, history: History, first: int, may_begin: bool) -> Leg | None:
        """What a free worker is to do; None: nothing, until another trial is judged.

        Args:
            history: of the study.
            first: number of points that are given: all of them get the first rung before any goes on.
            may_begin: whether a new trial may begin.
        """
        begin = Leg("", self.rungs[0]) if may_begin else None
        given = list(history.trials.values())[:first]
        waits = len(given) < first or any(trial.end is None and trial.last_epoch < self.rungs[0] for trial in given)
        if may_begin and waits:
            return begin
        return self._deserving(history) or begin

    def surplus(self, history: History) -> list[str]:
        """Paused trials to give up, so that `most_paused` are left: those that came least far, the worst first."""
        paused = sorted(history.paused, key=lambda trial: (trial.last_epoch, trial.value or 0.0, -trial.number))
        return [trial.name for trial in paused[: max(0, len(paused) - self.most_paused)]]

    def _deserving(self, history: History) -> Leg | None:
        """The paused trial that goes on: the best that its rung lets pass. The lowest rung comes first: its legs are short."""
        trials = [trial for trial in history.trials.values() if not trial.failed]
        for rung, later in zip(self.rungs, self.rungs[1:], strict=False):
            reached = [(value, trial) for trial in trials if (value := trial.value_at(rung)) is not None]
            reached.sort(key=lambda entry: (-entry[0], entry[1].number))
            for _, trial in reached[: math.ceil(len(reached) / self.reduction)]:
                if trial.waits and trial.last_epoch < later:
                    return Leg(trial.name, later)
        return None


def rungs_of(max_epochs: int, first: int | None = None, step: float = 3.0, eval_every: int = 1) -> tuple[int, ...]:
    """The rungs of a full trial: `first`, then `step` times as many epochs each, then all.

    Args:
        max_epochs: of a full trial, >= 1.
        first: epochs before a trial is judged, 1..max_epochs; None: one; of a long run more, so that there are four rungs below
            the last.
        step: > 1.
        eval_every: epochs between evaluations; rungs are multiples of it.

    Raises:
        ConfigError: a value is out of range.
    """
    if max_epochs < 1:
        raise ConfigError(f"max_epochs = {max_epochs} is below 1", remedy="train an epoch or more", key="train.max_epochs")
    if first is not None and not 1 <= first <= max_epochs:
        raise ConfigError(
            f"grace_epochs = {first} is outside 1..{max_epochs} (train.max_epochs)",
            remedy="lower the grace or raise train.max_epochs", key="grace_epochs", value=first,
        )
    first = first or max(1, round(max_epochs / step**_RUNGS))
    return tuple(dict.fromkeys(_rising(max_epochs, first, step, eval_every)))


def _rising(max_epochs: int, first: int, step: float, eval_every: int) -> Iterator[int]:
    epochs = float(first)
    while epochs * math.sqrt(step) < max_epochs:  # a rung just before the end would decide nothing
        yield min(max_epochs, math.ceil(round(epochs) / eval_every) * eval_every)
        epochs *= step
    yield max_epochs
