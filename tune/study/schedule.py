"""Early stopping: ASHA on real epochs, or none; neither ever sees a number that is not finite."""

from __future__ import annotations

import math
import numbers
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.schedulers.async_hyperband import _Bracket
from scipy.stats import spearmanr

from imf_core.errors import ConfigError
from tune.settings import METRIC, MODE, TIME_ATTR
from tune.study.history import History
from tune.study.outcome import name_of

_TELLS, _PAIRS = 0.7, 6  # rank correlation from which an early rung may stop trials, and trials that it takes to know


def is_finite(result: dict[str, Any], metric: str = METRIC) -> bool:
    """Whether the report carries the metric as a finite number."""
    value = result.get(metric)
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


class FiniteAsha(AsyncHyperBandScheduler):
    """ASHA that ends a trial at its first non-finite report and keeps that report out of the rungs.

    A trial that reaches `max_epochs` ends by itself: stopping it there would cut off its last save. Rungs know trials by name,
    so that a trial that goes on after an interruption is not judged again where it was judged.

    Args:
        learns: the grace is learned, see `LearnedBracket`.
        options: of Ray's scheduler; one bracket.
    """

    def __init__(self, learns: bool, **options: Any) -> None:
        super().__init__(**options, brackets=1, stop_last_trials=False)
        if learns:
            self._brackets = [LearnedBracket(options["grace_period"], options["max_t"], options["reduction_factor"])]

    def replay(self, history: History) -> None:
        """Fill the rungs from a journal, in the order of then; what was decided is not decided again."""
        for event in history.events:
            if event["event"] in ("report", "tell") and METRIC in event.get("numbers", {}) and not event.get("diverged"):
                # One bracket. A report goes no rung further once the trial is over, and a full trial was not judged at all.
                value, epoch = float(event["numbers"][METRIC]), int(event["epoch"])
                if epoch < self._max_t or event["event"] == "tell":
                    self._brackets[0].on_result(_named(event["trial"]), epoch, value)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial begins, or begins again."""
        super().on_trial_add(tune_controller, _named(name_of(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP after a report; a report without a finite metric is STOP."""
        if not is_finite(result):
            return str(TrialScheduler.STOP)
        if result.get(TIME_ATTR, 0) >= self._max_t:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, _named(name_of(trial)), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record the last report of a trial in its rung, if it is finite."""
        if is_finite(result):
            super().on_trial_complete(tune_controller, _named(name_of(trial)), result)
        else:
            self.on_trial_remove(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that failed."""
        self.on_trial_remove(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget a trial that never started or was removed."""
        self._trial_info.pop(name_of(trial), None)


class LearnedBracket(_Bracket):
    """Rungs of successive halving with earlier ones that stop nobody until they are known to tell.

    How soon a learning curve shows what comes of it differs between graphs, and a fixed grace is either late or wrong. Below
    the grace there are therefore rungs that only listen. As soon as the trials that went on to the grace show the same order
    there as they had at the early rung, that rung stops trials too. All of it follows from the reports in their order.

    Args:
        grace: first rung that stops trials without having been learned.
        max_epochs: length of a full trial.
        reduction: one in so many passes each rung.
    """

    def __init__(self, grace: int, max_epochs: int, reduction: float) -> None:
        super().__init__(grace, max_epochs, reduction, 0, stop_last_trials=False)
        self.grace = grace
        early = [grace / reduction**step for step in range(1, 1 + int(math.log(grace) / math.log(reduction) + 1e-9))]
        self._rungs += [(milestone, {}) for milestone in early]
        self._learned: set[float] = set()

    def on_result(self, trial: Any, cur_iter: int, cur_rew: float | None) -> str:
        """CONTINUE or STOP; the highest rung that the trial has reached and was not judged at decides."""
        assert cur_rew is not None
        for milestone, recorded in self._rungs:
            if cur_iter < milestone:
                continue
            if trial.trial_id in recorded:
                break
            cutoff: Any = self.cutoff(recorded)
            recorded[trial.trial_id] = cur_rew
            if cutoff is not None and cur_rew < cutoff and self.stops(milestone):
                return str(TrialScheduler.STOP)
            break
        return str(TrialScheduler.CONTINUE)

    def stops(self, milestone: float) -> bool:
        """Whether a rung stops trials; once learned it stays so: those that it stops cannot speak against it."""
        if milestone >= self.grace or milestone in self._learned:
            return True
        rungs = dict(self._rungs)
        both = [name for name in rungs[milestone] if name in rungs[self.grace]]
        if len(both) < _PAIRS:
            return False
        early, later = ([rungs[place][name] for name in both] for place in (milestone, self.grace))
        if len(set(early)) == 1 or len(set(later)) == 1 or spearmanr(early, later).statistic < _TELLS:
            return False
        self._learned.add(milestone)
        return True


def _named(name: str) -> Any:
    """A trial as the rungs know it: by its name, which a resumed trial keeps."""
    return SimpleNamespace(trial_id=name)


class FiniteFifo(FIFOScheduler):
    """Every trial runs to its end, except one that reports a non-finite metric."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE, or STOP after a report without a finite metric."""
        return str(TrialScheduler.CONTINUE if is_finite(result) else TrialScheduler.STOP)


def default_grace(max_epochs: int) -> int:
    """Epochs before a trial may be stopped: an eighth of the longest run; of a short one a quarter, up to 3.

    A first epoch says how many steps it had rather than what the settings are worth: large batches trail small ones there,
    whatever comes of them.
    """
    return max(1, max_epochs // 8, min(3, max_epochs // 4))


def make_scheduler(kind: str, max_epochs: int, grace: int | None = None, reduction: float = 3.0) -> TrialScheduler:
    """Build the scheduler. It carries metric and mode itself: leave both out of `ray.tune.TuneConfig`.

    Args:
        kind: `asha` or `none`.
        max_epochs: length of a full trial, >= 1.
        grace: first rung, 1 <= grace <= max_epochs; None: `default_grace`, and earlier ones as soon as they are known to tell,
            see `LearnedBracket`. The rungs are grace, grace * reduction, ...
        reduction: > 1; about one trial in `reduction` passes each rung.

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
    return FiniteAsha(
        grace is None, time_attr=TIME_ATTR, metric=METRIC, mode=MODE, max_t=max_epochs, grace_period=first,
        reduction_factor=reduction,
    )
