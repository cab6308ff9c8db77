"""Early stopping: ASHA on real epochs, or none; neither ever sees a number that is not finite."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from imf_core.errors import ConfigError
from tune.settings import METRIC, TIME_ATTR
from tune.study.history import DriverOnly, Event, History, TrialHistory
from tune.study.outcome import name_of

ASHA_REDUCTION = 3.0  # one trial in so many passes a rung
_MIN_CORRELATION, _MIN_PAIRS = 0.7, 6  # between an early rung and the grace, before the early rung may stop trials


def is_finite(result: Mapping[str, Any], metric: str = METRIC) -> bool:
    """Whether the report carries the metric as a finite number."""
    value = result.get(metric)
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


class FiniteFifo(DriverOnly, FIFOScheduler):
    """Every trial runs to its end, except one that reports a non-finite metric."""

    @property
    def metric(self) -> str:
        """Ray refuses a report without it."""
        return METRIC

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP after a report without a finite metric."""
        return str(TrialScheduler.CONTINUE if is_finite(result) else TrialScheduler.STOP)


class Asha(FiniteFifo):
    """Asynchronous successive halving. It ends a trial at its first non-finite report and keeps that report out of the rungs.

    A trial that reaches `max_epochs` ends by itself: stopping it there would cut off its last save. Its value joins the rungs
    with its end. Rungs know trials by name, so a trial that goes on after an interruption is not judged twice at one rung.

    Args:
        rungs: decide.
        max_epochs: length of a full trial.
        history: of the study; the rungs are filled from its events.
    """

    def __init__(self, rungs: Rungs, max_epochs: int, history: History | None = None) -> None:
        super().__init__()
        self.rungs, self.max_epochs = rungs, max_epochs
        if history is not None:
            history.follow(self._on_event)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP after a report; a report without a finite metric is STOP."""
        if not is_finite(result):
            return str(TrialScheduler.STOP)
        epoch = result.get(TIME_ATTR, 0)
        stop = epoch < self.max_epochs and self.rungs.stops(name_of(trial), epoch, result[METRIC])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def _on_event(self, event: Event, trial: TrialHistory | None, new: bool) -> None:
        """Fill the rungs; a report that was judged when it came in is in them already."""
        if trial is None or METRIC not in event.get("numbers", {}):
            return
        if event["epoch"] < self.max_epochs or event["event"] == "tell":
            self.rungs.stops(trial.name, event["epoch"], event["numbers"][METRIC])


class Rungs:
    """The rungs of ASHA (Li et al., MLSys 2020, arXiv 1810.05934), one bracket: grace, grace * reduction, ... epochs.

    The decisions are those of Ray's `AsyncHyperBandScheduler`; a test compares the two.

    How early a learning curve predicts its end differs between graphs, and a fixed grace is either late or wrong. With a
    learned grace there are rungs below it that stop nobody at first. As soon as the trials that reached the grace have the same
    order there as they had at an early rung, that rung stops trials too. All of it follows from the reports in their order.

    Args:
        grace: first rung that stops trials without having been learned, epochs.
        max_epochs: length of a full trial.
        reduction: about one trial in so many passes each rung.
        learns: add the early rungs.
    """

    def __init__(self, grace: int, max_epochs: int, reduction: float, learns: bool = False) -> None:
        self.grace, self.reduction = grace, reduction
        count = int(np.log(max_epochs / grace) / np.log(reduction) + 1)
        early = int(math.log(grace) / math.log(reduction) + 1e-9) if learns else 0
        epochs = [grace * reduction**step for step in reversed(range(count))]
        epochs += [grace / reduction**step for step in range(1, 1 + early)]
        self.recorded: dict[float, dict[str, float]] = {epoch: {} for epoch in epochs}  # rung -> value by trial, latest first
        self._learned: set[float] = set()

    def stops(self, name: str, epoch: int, value: float) -> bool:
        """Record a report at the highest rung that the trial has reached, once; whether the trial is to stop there."""
        rung = next((rung for rung in self.recorded if epoch >= rung), None)
        if rung is None or name in self.recorded[rung]:
            return False
        values = self.recorded[rung]
        behind = bool(values) and value < np.nanpercentile(list(values.values()), (1 - 1 / self.reduction) * 100)
        values[name] = value
        return bool(behind and self._may_stop(rung))

    def _may_stop(self, rung: float) -> bool:
        """Whether a rung stops trials; once learned it always does: the trials that it stops cannot speak against it."""
        if rung >= self.grace or rung in self._learned:
            return True
        early, late = self.recorded[rung], self.recorded[self.grace]
        pairs = [(early[name], late[name]) for name in early if name in late]
        if len(pairs) < _MIN_PAIRS:
            return False
        from scipy.stats import spearmanr  # half a second to load

        before, after = zip(*pairs, strict=True)
        if len(set(before)) == 1 or len(set(after)) == 1 or spearmanr(before, after).statistic < _MIN_CORRELATION:
            return False
        self._learned.add(rung)
        return True


def default_grace(max_epochs: int) -> int:
    """Epochs before a trial may be stopped: an eighth of the longest run; of a short one a quarter, up to 3.

    A first epoch says how many steps it had rather than what the settings are worth: large batches trail small ones there,
    whatever comes of them.
    """
    return max(1, max_epochs // 8, min(3, max_epochs // 4))


def make_scheduler(
    kind: str, max_epochs: int, grace: int | None = None, reduction: float = ASHA_REDUCTION, history: History | None = None
) -> FiniteFifo:
    """Build the scheduler. It carries its metric itself: leave it out of `ray.tune.TuneConfig`.

    Args:
        kind: `asha` or `none`.
        max_epochs: length of a full trial, >= 1.
        grace: first rung, 1 <= grace <= max_epochs; None: learned, at most `default_grace`.
        reduction: > 1; about one trial in `reduction` passes each rung.
        history: of the study, which `asha` goes on from.

    Raises:
        ConfigError: unknown kind, or a value out of range.
    """
    if kind == "none":
        return FiniteFifo()
    if kind != "asha":
        raise ConfigError(f"unknown scheduler {kind!r}", remedy="choose asha or none", key="scheduler", value=kind)
    if max_epochs < 1:
        raise ConfigError(f"max_epochs = {max_epochs} is below 1", remedy="train an epoch or more", key="train.max_epochs")
    first = default_grace(max_epochs) if grace is None else grace
    if not 1 <= first <= max_epochs:
        raise ConfigError(
            f"grace_epochs = {first} is outside 1..{max_epochs} (train.max_epochs)",
            remedy="lower the grace or raise train.max_epochs", key="grace_epochs", value=first,
        )
    if not (math.isfinite(reduction) and reduction > 1):
        raise ConfigError(f"reduction_factor = {reduction} is not above 1", remedy="2 to 4 is usual", key="reduction_factor")
    return Asha(Rungs(first, max_epochs, reduction, learns=grace is None), max_epochs, history)
