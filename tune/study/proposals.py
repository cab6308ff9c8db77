"""The points that a race tries: near the best ones, and from Optuna's sampler.

A point depends on the seed, the number of its trial and what is known when it is drawn, and on nothing else: no state of a
random generator has to be kept or replayed. The sampler is told the trials anew for each draw, each with its value so far; it
thus sees a paused trial's value grow, which Optuna's own study could not show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.space.parameter import Parameter
from tune.space.space import SearchSpace
from tune.study.history import History, TrialHistory
from tune.study.sampler import distribution, make_sampler

_NEAR = 2  # of three draws, so many are near a good point
_BEST = 3  # good points: one of them is taken
_WIDTH = 0.15  # standard deviation of a step, as a share of the range
_CHANGED = 2.0  # settings that a step changes, on average
MOST_GP = 100  # trials: a Gaussian process of more takes longer to fit than it saves


class Proposals:
    """Draws the points of a race.

    Args:
        space: what is searched.
        seed: of the draws.
        kind: `tpe`, `gp` or `random`; `random`: every point is drawn at random.
        startup: the sampler draws at random until so many values are known.
        known: points with values that are known without training.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, kind: str = "tpe", startup: int = 5,
        known: Iterable[tuple[Mapping[str, Any], float]] = (),
    ) -> None:
        self.space, self.seed, self.kind, self.startup = space, seed, kind, startup
        self.known = [(dict(point), value) for point, value in known]

    def draw(self, history: History, attempt: int = 0) -> dict[str, Any]:
        """A point for the next trial.

        Args:
            history: of the study.
            attempt: how many points were drawn in vain for this trial, because they had been tried.
        """
        number = len(history.trials)
        rng = np.random.default_rng((self.seed, number, attempt))
        good = self._good(history)
        if self.kind != "random" and good and (number + attempt) % (_NEAR + 1) < _NEAR:
            return self._near(good[int(rng.integers(min(_BEST, len(good))))], rng)
        return self._sampled(history, int(rng.integers(2**31)))

    def _good(self, history: History) -> list[dict[str, Any]]:
        """Points with a value, the best first."""
        trials = [trial for trial in history.trials.values() if trial.value is not None and not trial.failed]
        values = [(trial.value or 0.0, trial.params) for trial in trials] + [(value, point) for point, value in self.known]
        return [dict(point) for _, point in sorted(values, key=lambda entry: -entry[0])]

    def _near(self, point: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """A step away from a point: some settings move within their ranges, or change to another choice."""
        names = [name for name in self.space.names if name in point]
        chosen = [name for name in names if rng.random() < _CHANGED / len(names)] or [names[int(rng.integers(len(names)))]]
        moved = {name: _moved(self.space[name], point[name], rng) for name in chosen}
        return self.space.near({**point, **moved})

    def _sampled(self, history: History, seed: int) -> dict[str, Any]:
        """A point of Optuna's sampler, which is told all trials as they are now."""
        trials = [trial for trial in history.trials.values() if not trial.failed]
        kind = "tpe" if self.kind == "gp" and len(trials) >= MOST_GP else self.kind
        study = optuna.create_study(direction="maximize", sampler=make_sampler(seed, self.startup, kind))
        if kind == "gp":
            study.add_trials(self._completed(trials))
            ranges = {parameter.name: distribution(parameter) for parameter in self.space.parameters}
            return self.space.near(study.ask(ranges).params)
        study.add_trials([_frozen(trial.params, self._ranges(trial.params), trial) for trial in trials])
        study.add_trials([
            create_trial(value=value, params=dict(point), distributions=self._ranges(point)) for point, value in self.known
            if self.space.is_complete(point)
        ])
        return self.space.suggest(study.ask())

    def _ranges(self, point: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        return {name: distribution(self.space[name]) for name in point}

    def _completed(self, trials: Sequence[TrialHistory]) -> list[FrozenTrial]:
        """The trials with the values that they are expected to end with, in a space without conditions.

        A Gaussian process needs one value for each point and the same settings in all: one whose condition is false has the
        value of the base.
        """
        values = expected_ends({trial.name: dict(trial.best_by_epoch) for trial in trials})
        points = [(trial.params, values[trial.name]) for trial in trials if trial.name in values]
        points += [(point, value) for point, value in self.known if self.space.is_complete(point)]
        ranges = {parameter.name: distribution(parameter) for parameter in self.space.parameters}
        base = {parameter.name: parameter.default for parameter in self.space.parameters}
        return [create_trial(value=value, params={**base, **point}, distributions=ranges) for point, value in points]


def expected_ends(curves: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """The value that each learning curve is expected to reach by the longest one's end.

    From one epoch to a later one the logarithm of the MRR is mapped linearly, as in the curves that have both (least squares,
    slope between 0 and 1); nothing is expected to end above the best value that was seen.

    Args:
        curves: best MRR so far by epoch, by the name of the trial; an empty one is left out.
    """
    curves = {name: curve for name, curve in curves.items() if curve}
    longest = max((max(curve) for curve in curves.values()), default=0)
    best = max((value for curve in curves.values() for value in curve.values()), default=0.0)
    ends = {}
    for name, curve in curves.items():
        last = max(curve)
        longer = [other for other in curves.values() if last in other and max(other) > last]
        pairs = [(_log(other[last]), _log(other[max(other)])) for other in longer]
        if last == longest or not pairs:
            ends[name] = curve[last]
            continue
        before, after = (np.array(side) for side in zip(*pairs, strict=True))
        spread = before - before.mean()
        fitted = (spread @ (after - after.mean())) / max(float(spread @ spread), 1e-9)
        slope = float(np.clip(fitted, 0.0, 1.0)) if len(pairs) > 2 else 0.5
        end = math.exp(after.mean() + slope * (_log(curve[last]) - before.mean()))
        ends[name] = min(best, max(curve[last], end))
    return ends


def _moved(parameter: Parameter, value: Any, rng: np.random.Generator) -> Any:
    """A value near another one in a parameter's range."""
    if parameter.kind == "categorical":
        return parameter.labels[int(rng.integers(len(parameter.labels)))]
    low, high, at = (math.log(number) if parameter.log else float(number) for number in (parameter.low, parameter.high, value))
    near = at + rng.normal() * _WIDTH * (high - low)
    return parameter.clamp(math.exp(near) if parameter.log else near)


def _frozen(params: Mapping[str, Any], ranges: Mapping[str, BaseDistribution], trial: TrialHistory) -> FrozenTrial:
    """A trial in Optuna's form: complete, or pruned with its curve, or running without a value yet."""
    if trial.value is None:
        return create_trial(state=TrialState.RUNNING, params=dict(params), distributions=dict(ranges))
    if trial.end is not None and not trial.stopped:
        return create_trial(value=trial.value, params=dict(params), distributions=dict(ranges))
    values = dict(trial.best_by_epoch)
    return create_trial(state=TrialState.PRUNED, params=dict(params), distributions=dict(ranges), intermediate_values=values)


def _log(value: float) -> float:
    return math.log(max(value, 1e-6))
