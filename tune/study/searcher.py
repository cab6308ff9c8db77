"""The Optuna side of a search: the searcher that Tune asks.

The study lives in memory. What happens to it is written to the journal before Tune goes on, and an interrupted search plays the
journal to a fresh study: the sampler then stands where it stood, to the bit. Counts of trials by
outcome come from `tune.study.records`: Optuna knows no early stop of Tune's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from imf_core.errors import ConfigError
from tune.settings import METRIC, MODE, TIME_ATTR
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.journal import Journal, finite, trial_name
from tune.study.outcome import reported_numbers
from tune.study.sampler import STARTUP, distribution, make_sampler
from tune.study.schedule import is_finite

_TRIES = 100  # draws for a setting that was not tried; a space that gives none by then is exhausted


class StudySearch(OptunaSearch):
    """Ray's `OptunaSearch` around a `SearchSpace`: each trial has a name and an end, and no setting is trained twice.

    A trial without a finite value is FAIL in the study, never RUNNING and never a number; one that the scheduler stopped counts
    with its best value so far. A setting that was tried already is told its value again and another one is drawn. Metric and
    mode are its own: leave both out of `ray.tune.TuneConfig`.

    Args:
        space: what is searched.
        seed, startup, kind: of the sampler.
        base: the space's default point is the first trial.
        points: tried first, after the default point, in this order; repeats are dropped.
        known: points whose value is known already; they inform the sampler and are not trained.
        name: name of the study.
        journal: told of every draw, report and end; None: nothing can be resumed.
        trials: folder of the trials' folders.
        costs: numbers that a trial reports and that are to be small, besides the MRR that is to be high.

    Raises:
        ConfigError: a point does not fit the space, with parameter, value and range; or a known value is not finite.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, startup: int = STARTUP, kind: str = "tpe", base: bool = True,
        points: Iterable[Mapping[str, Any]] = (), known: Iterable[tuple[Mapping[str, Any], float]] = (), name: str = "search",
        journal: Journal | None = None, trials: Path = Path(), costs: Sequence[str] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        first: list[dict[str, Any]] = []
        for point in (*([space.default_point()] if base else []), *points):
            clean = space.validate_point(point)
            if clean not in first:
                first.append(clean)
        self.exhausted = False
        self._best: dict[str, float] = {}
        self._last_epoch: dict[str, int] = {}
        self._diverged: set[str] = set()
        self._names: dict[str, str] = {}  # Ray's id -> name
        self._points: dict[str, dict[str, Any]] = {}
        self._values: dict[str, float | None] = {}  # of the ended trials; None: failed or diverged
        self._known: list[tuple[dict[str, Any], float]] = []
        self._waiting: list[str] = []
        self._typed_space = space
        self._journal, self._trials = journal, trials
        self._costs, self._paid = tuple(costs), dict[str, list[float]]()  # of each trial, as far as they are known
        several = bool(costs)
        super().__init__(
            space=space, metric=[METRIC, *costs] if several else METRIC,
            mode=[MODE, *["min"] * len(costs)] if several else MODE, points_to_evaluate=first or None,
            sampler=make_sampler(seed, startup, kind), study_name=name,
        )
        self.study.set_user_attr("space", space.fingerprint)
        for point, value in known:
            self.add_known(point, value)

    @property
    def study(self) -> optuna.Study:
        """The study in memory."""
        assert isinstance(self._ot_study, optuna.Study)
        return self._ot_study

    @property
    def first_points(self) -> list[dict[str, Any]]:
        """The points that are trials 1 to k."""
        return [dict(point) for point in self._points_to_evaluate or ()]

    @property
    def open(self) -> list[str]:
        """Names of the trials that were begun and have no end."""
        return [name for name in self._points if name not in self._completed_trials]

    def add_known(self, point: Mapping[str, Any], value: float) -> None:
        """Tell the sampler of a result without training it.

        Raises:
            ConfigError: the point does not fit the space, or the value is not finite.
        """
        if not math.isfinite(value):
            raise ConfigError(f"the known value {value!r} is not finite", remedy="leave the point out", key=METRIC, value=value)
        params = self._typed_space.validate_point(point)
        ranges = {name: distribution(self._typed_space[name]) for name in params}
        if not self._costs:  # of its costs nothing is known
            self.study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=ranges))
        self._known.append((params, value))

    def replay(self, history: History) -> None:
        """Bring a fresh study to where the journal's ended; trials that were interrupted are handed out first.

        Raises:
            ConfigError: the sampler draws another point than then.
        """
        for event in history.events:
            if event["event"] == "ask":
                drawn = self._draw()
                if drawn != (event["trial"], event["params"]):
                    raise ConfigError(
                        f"the sampler does not repeat what it drew: for {event['trial']} it draws {drawn and drawn[1]}, "
                        f"then it was {event['params']}", remedy="begin a new study with --warm-start on this one's folder",
                        key="study", value=self.study.study_name,
                    )
            elif event["event"] == "report":
                self._hear(event["trial"], event["numbers"], event["epoch"])
            elif event["event"] == "tell":
                if "best_mrr" in event.get("numbers", {}):
                    self._hear(event["trial"], event["numbers"], event["epoch"])
                self._diverged |= {event["trial"]} if event["diverged"] else set()
                self._end(event["trial"], event["value"])
        self._waiting = [trial.name for trial in history.interrupted]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """A trial's name and its point: flat, dotted names; parameters whose condition is false are absent.

        A trial that goes on from an earlier session has `known` besides: the last epoch of it that was heard of.
        """
        if trial_id not in self._names:
            if self._waiting:
                self._names[trial_id] = self._waiting.pop(0)
            else:
                drawn = self._draw()
                if drawn is None:
                    self.exhausted = True
                    return Searcher.FINISHED
                name, point = drawn
                self._write("ask", name, params=point)
                self._names[trial_id] = name
        name = self._names[trial_id]
        known = self._last_epoch.get(name)
        return {"name": name, "params": dict(self._points[name]), **({"known": known} if known else {})}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a report; one that is not finite marks the trial as diverged."""
        name = self._names.get(trial_id)
        if name is None or name in self._completed_trials:
            return
        if not is_finite(result):
            self._diverged.add(name)
        elif self._hear(name, result, _epoch(result)):
            self._write("report", name, **_described(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a trial: COMPLETE with its best value so far, or FAIL if it erred, diverged or reported nothing."""
        name = self._names.get(trial_id)
        if name is None or name in self._completed_trials:
            return
        if error and self._journal is not None:
            self._journal.refuse_full_disk(self._trials / name)
        last: dict[str, Any] = {}
        if result and METRIC in result:  # the report on which the scheduler says stop does not come alone
            last = {"stopped": _epoch(result) > self._last_epoch.get(name, 0), **_described(result)}
            if is_finite(result):
                self._hear(name, result, _epoch(result))
            else:
                self._diverged.add(name)
        value = None if error or name in self._diverged else self._best.get(name)
        self._write("tell", name, value=value, error=error, diverged=name in self._diverged, **last)
        self._end(name, value)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: a search goes on from its journal."""

    def end_unfinished(self) -> list[str]:
        """End every trial that is still RUNNING in the study, for its export; the journal keeps it open, so it can go on.

        Returns:
            their names; each keeps its best value so far, or is FAIL without one.
        """
        names = self.open
        for name in names:
            self._end(name, None if name in self._diverged else self._best.get(name))
        return names

    def _draw(self) -> tuple[str, dict[str, Any]] | None:
        """The next trial: its name and a point that was not tried; None where there is none."""
        name = trial_name(len(self._points))
        for _ in range(_TRIES):
            point = super().suggest(name) or {}
            found = self._earlier(point)
            if found is None:
                self._ot_trials[name].set_user_attr("trial_id", name)
                self._points[name] = point
                return name, point
            value = found[1]
            values = self._values_of(found[0], value)
            self.study.tell(self._ot_trials.pop(name), values, TrialState.FAIL if values is None else TrialState.COMPLETE)
        return None

    def _earlier(self, point: Mapping[str, Any]) -> tuple[str, float | None] | None:
        """Who tried a point, and its value: None while it runs or where it has none."""
        for params, value in self._known:
            if params == point:
                return "", value
        for name, params in self._points.items():
            if params == point:
                return name, self._values.get(name)
        return None

    def _hear(self, name: str, numbers: Mapping[str, Any], epoch: int) -> bool:
        """Take in a finite report; whether its epoch is new (a retried trial repeats some)."""
        value = float(numbers[METRIC])
        if all(cost in numbers for cost in self._costs):
            self._paid[name] = [float(numbers[cost]) for cost in self._costs]
        self._best[name] = max(value, self._best.get(name, -math.inf))
        if epoch <= self._last_epoch.get(name, -1):
            return False
        self._last_epoch[name] = epoch
        if not self._costs:  # Optuna keeps curves of one objective only
            self._ot_trials[name].report(self._best[name], epoch)
        return True

    def _end(self, name: str, value: float | None) -> None:
        trial = self._ot_trials[name]
        trial.set_user_attr("epochs", self._last_epoch.get(name, 0))
        trial.set_user_attr("diverged", name in self._diverged)
        values = self._values_of(name, value)
        self.study.tell(trial, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)
        self._completed_trials.add(name)
        self._values[name] = value

    def _values_of(self, name: str, value: float | None) -> list[float] | None:
        """What a trial is told to be worth: its MRR and its costs; None where one is missing."""
        if value is None or (self._costs and name not in self._paid):
            return None
        return [value, *self._paid.get(name, ())]

    def _write(self, event: str, name: str, **values: Any) -> None:
        if self._journal is not None:
            self._journal.append(event, trial=name, **values)


def _epoch(result: Mapping[str, Any]) -> int:
    return int(result.get(TIME_ATTR, result.get("training_iteration", 0)))


def _described(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal keeps of a report."""
    return {
        "epoch": _epoch(result), "seconds": round(float(result.get("time_total_s", 0.0)), 3),
        "numbers": finite(reported_numbers(result)),
    }
