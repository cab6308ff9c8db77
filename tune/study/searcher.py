"""The searchers that Ray Tune asks for trials: Optuna's for a search, a list of names for the runs of finalising.

What Ray reports of a trial goes into the history before Tune goes on. The Optuna study lives in memory and follows the
history: an interrupted search replays it to a fresh study, and the sampler is then in the same state, to the bit. Counts of
trials by outcome come from `tune.study.records`: Optuna does not know that Tune stopped a trial early.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of
from tune.settings import METRIC, MODE
from tune.space.space import SearchSpace
from tune.study.history import DriverOnly, Event, History, TrialHistory, trial_name
from tune.study.sampler import distribution, make_sampler

_MAX_DRAWS = 100  # for a setting that was not tried; a space that gives none by then is exhausted
_SMALL = 1000  # settings of a space that are known one by one: none is left out, and none is drawn again and again
_REPEATS = 3  # of settings that were tried, before a small space gives one that was not


class RecordingSearcher(DriverOnly, Searcher):
    """Writes what Ray Tune reports of its trials into a history; subclasses say which trials there are.

    Metric and mode are its own: leave both out of `ray.tune.TuneConfig`.

    Args:
        history: of the study.
        costs: numbers that every report carries besides the metric, and that are minimised.

    Attributes:
        left: trials that may still begin in this session, those that are begun again or go on included; default: any number.
            Give Tune no limit of its own (`num_samples=-1`).
    """

    def __init__(self, history: History, costs: Sequence[str] = ()) -> None:
        self.history, self.costs = history, tuple(costs)
        self.left = math.inf
        self._names: dict[str, str] = {}  # Ray's id -> name
        self._waiting: list[str] = []  # trials that were begun and do not run; they come first
        self._begun_again: set[str] = set()
        self._handed_out: set[str] = set()  # trials that `left` no longer counts
        metric: Any = [METRIC, *self.costs] if self.costs else METRIC
        mode: Any = [MODE, *["min"] * len(self.costs)] if self.costs else MODE
        super().__init__(metric, mode)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Add a report to the history."""
        if (name := self._open_name(trial_id)) is not None:
            self.history.report(name, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a trial. Tune leaves the report on which the scheduler said stop to this call."""
        if (name := self._open_name(trial_id)) is None:
            return
        if error:
            self.history.refuse_full_disk(name)
            if self._counted_twice(name):
                self._begun_again.add(name)
                self._waiting.append(name)
                self._handed_out.discard(name)
                self.left += 1
                return
        elif self._pauses(name, result or {}):
            return
        self.history.tell(name, result, error)

    def _pauses(self, name: str, result: Mapping[str, Any]) -> bool:
        """Whether a trial that Tune ends goes on later; it is then paused."""
        return False

    def _counted_twice(self, name: str) -> bool:
        """Whether Tune ends a trial for the very death for which it has just decided to retry it.

        Where a worker dies while it takes over another trial, Tune hears of the actor's failure and of that of its task
        `reset`, in one go. It retries the trial for the first; the second finds it waiting, which ends it whatever
        `max_failures` says. Once in a session such a trial is begun again; one whose worker dies so again has failed.
        """
        last = self.history.events[-1]
        return (last["event"], last.get("trial")) == ("retry", name) and name not in self._begun_again

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its journal."""

    def _open_name(self, trial_id: str) -> str | None:
        name = self._names.get(trial_id, "")
        return name if name in self.history.trials and self.history.trials[name].end is None else None


class NamedRuns(RecordingSearcher):
    """Hands out runs by name, each once: `{"run": name}`.

    Args:
        history: of the runs.
        numbers: the number of each by its name, in the order in which they are handed out.
    """

    def __init__(self, history: History, numbers: Mapping[str, int]) -> None:
        super().__init__(history)
        self._numbers = dict(numbers)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next run."""
        if self._waiting:
            name = self._waiting.pop(0)
        elif self._numbers:
            name = next(iter(self._numbers))
            self.history.ask(name, {"run": name}, number=self._numbers.pop(name))
        else:
            return Searcher.FINISHED
        self._names[trial_id] = name
        return {"run": name}


class StudySearch(RecordingSearcher):
    """Optuna's ask and tell around a `SearchSpace`: each trial has a name and an end, and no setting is trained twice.

    A trial without a finite value is FAIL in the study, never RUNNING and never a number; one that the scheduler stopped counts
    with its best value so far. A setting that was tried already is told its value again and another one is drawn.

    Args:
        space: what is searched.
        history: of the study; its events are replayed. None: a new one, in memory.
        sampler: draws the points; None: `make_sampler(seed=0)`.
        base: the space's default point is the first trial.
        points: tried first, after the default point, in this order; repeats are dropped.
        known: points whose value is known already; they inform the sampler and are not trained.
        costs: numbers that a trial reports and that are minimised, besides the MRR that is maximised.

    Attributes:
        too_late: whether a trial that would begin now would end without a result; default: never.
        closed: no further trial was begun because it was too late.
        exhausted: no further trial was begun because every setting was tried.
        settings: all of them, if the space is small; None if it is not.

    Raises:
        ConfigError: a point does not fit the space, with parameter, value and range; a known value is not finite; or the
            sampler draws another point than the history has.
    """

    def __init__(
        self, space: SearchSpace, history: History | None = None, sampler: BaseSampler | None = None, *, base: bool = True,
        points: Iterable[Mapping[str, Any]] = (), known: Iterable[tuple[Mapping[str, Any], float]] = (),
        costs: Sequence[str] = (),
    ) -> None:
        super().__init__(history if history is not None else History(), costs)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.exhausted, self.closed = space, False, False
        self.too_late: Callable[[], bool] = lambda: False
        self.settings = space.every_point(_SMALL)
        self._running: dict[str, optuna.Trial] = {}
        self._known: list[dict[str, Any]] = []
        self.study = optuna.create_study(
            sampler=sampler or make_sampler(0), pruner=optuna.pruners.NopPruner(),
            study_name=str(self.history.study.get("name", "search")) if self.history.events else "search",
            directions=[StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * len(self.costs)],
        )
        self.first_points: list[dict[str, Any]] = []
        for point in (*([space.default_point()] if base else []), *points):
            if (clean := space.validate_point(point)) not in self.first_points:
                self.first_points.append(clean)
        self._give_first()
        self.study.set_user_attr("space", space.fingerprint)
        for point, value in known:
            self.add_known(point, value)
        self.history.follow(self._on_event)
        self._waiting += self.open  # the interrupted ones

    @property
    def open(self) -> list[str]:
        """Names of the trials that were begun, have no end, and are not paused."""
        return [name for name in self._running if not self.history.trials[name].paused]

    @property
    def idle(self) -> bool:
        """Whether there is nothing more to begin."""
        return not self._waiting and (self.exhausted or not self.left)

    def add_known(self, point: Mapping[str, Any], value: float) -> None:
        """Tell the sampler of a result without training it.

        Raises:
            ConfigError: the point does not fit the space, or the value is not finite.
        """
        if not math.isfinite(value):
            raise ConfigError(f"the known value {value!r} is not finite", remedy="leave the point out", key=METRIC, value=value)
        params = self.space.validate_point(point)
        ranges = {name: distribution(self.space[name]) for name in params}
        if not self.costs:  # its costs are not known
            self.study.add_trial(create_trial(value=value, params=params, distributions=ranges))
        self._known.append(params)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """A trial's name and its point: flat, dotted names; parameters whose condition is false are absent.

        A trial that goes on also has `known`: the last epoch that the history has of it; in a race `until`: where it pauses.
        None: ask again when a trial has paused or ended.
        """
        if trial_id not in self._names:
            name = self._next()
            if name is None:
                return None if self._waits else Searcher.FINISHED  # type: ignore[return-value]  # Ray asks again after None
            self._names[trial_id] = name
            self._count(name)
        trial = self.history.trials[self._names[trial_id]]
        known = {"known": trial.last_epoch} if trial.reports else {}
        until = {"until": trial.until} if trial.until is not None else {}
        return {"name": trial.name, "params": dict(trial.params), **known, **until}

    @property
    def _waits(self) -> bool:
        """Whether there may be something to train once another trial has paused."""
        return False

    def _next(self) -> str | None:
        """The name of the trial that trains next; None: there is none, for good or until another has paused or ended."""
        if self.idle:
            return None
        if self.too_late():
            self.closed = True
            return None
        name = self._begun()
        self.exhausted |= name is None
        return name

    def _begun(self, **facts: Any) -> str | None:
        """The name of the trial that trains next: an interrupted one, or a new one; None where no point is left.

        Args:
            facts: of a new trial, for the history.
        """
        name = self._waiting.pop(0) if self._waiting else trial_name(len(self.history.trials))
        if name not in self.history.trials:
            point = self._draw(name)
            if point is None:
                return None
            self.history.ask(name, point, **facts)
        return name

    def _count(self, name: str) -> None:
        """Take a trial off `left`, once."""
        self.left -= name not in self._handed_out
        self._handed_out.add(name)

    def end_unfinished(self) -> list[str]:
        """End every trial that is still RUNNING in the study, for its export; the history keeps it open, so it can go on.

        Returns:
            their names; each keeps its best value so far, or is FAIL without one.
        """
        names = list(self._running)
        for name in names:
            trial = self.history.trials[name]
            self._end(trial, trial.value)
        return names

    def _on_event(self, event: Event, trial: TrialHistory | None, new: bool) -> None:
        """Follow the history; a point of an earlier session is drawn again, so that the sampler's state is the same."""
        if trial is None:
            return
        if event["event"] == "ask" and trial.name not in self._running:
            drawn = self._repeated(trial)
            if drawn != trial.params:
                raise ConfigError(
                    f"the sampler does not repeat what it drew: for {trial.name} it draws {drawn}, then it was {trial.params}",
                    remedy="begin a new study with --warm-start on this one's folder", key="study", value=self.study.study_name,
                )
        if new and not self.costs and trial.value is not None:  # Optuna keeps curves of one objective only
            self._running[trial.name].report(trial.value, trial.last_epoch)
        if event["event"] == "tell":
            self._end(trial, event["value"])

    def _draw(self, name: str) -> dict[str, Any] | None:
        """A point that was not tried, for the trial of this name; None where there is none."""
        for draw in range(_MAX_DRAWS):
            if self.settings is not None and draw in (0, _REPEATS):
                untried = self._untried()
                if not untried:
                    return None
                if draw:
                    self.study.enqueue_trial(untried[0])
            if self.settings is None or draw < _REPEATS:
                self._offer(draw)
            asked = self.study.ask()
            point = self.space.suggest(asked)
            earlier = self._earlier(point, asked.number)
            if earlier is None and point not in self._known:
                asked.set_user_attr("trial_id", name)
                self._running[name] = asked
                return point
            self._tell(asked, earlier.values if earlier else None)
        return None

    def _give_first(self) -> None:
        """Line up the points that are tried first."""
        for point in self.first_points:
            self.study.enqueue_trial(point)

    def _offer(self, draw: int) -> None:
        """Put a point before those of the study's sampler; here none.

        Args:
            draw: how many points were drawn in vain for this trial.
        """

    def _repeated(self, trial: TrialHistory) -> dict[str, Any] | None:
        """The point of an earlier session's trial, drawn again."""
        return self._draw(trial.name)

    def _untried(self) -> list[dict[str, Any]]:
        """The settings of a small space that no trial has and whose value is not known; scattered, but always in this order."""
        trials = self.study.get_trials(deepcopy=False)
        tried = {_key(trial.params) for trial in trials if trial.state != TrialState.WAITING}
        tried |= {_key(point) for point in self._known}
        return sorted(
            (point for point in self.settings or () if _key(point) not in tried),
            key=lambda point: sha256_of([json.dumps(point, sort_keys=True)]),
        )

    def _earlier(self, point: Mapping[str, Any], number: int) -> optuna.trial.FrozenTrial | None:
        """The first trial of the study, before this number, that has a point; it may still be running."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.params == point and trial.number != number and trial.state != TrialState.WAITING:
                return trial
        return None

    def _end(self, trial: TrialHistory, value: float | None) -> None:
        running = self._running.pop(trial.name)
        running.set_user_attr("epochs", trial.last_epoch)
        running.set_user_attr("diverged", trial.diverged)
        last = trial.reports[trial.last_epoch]["numbers"] if trial.reports else {}
        costs = [last[cost] for cost in self.costs if cost in last]
        self._tell(running, None if value is None or len(costs) < len(self.costs) else [value, *costs])

    def _tell(self, trial: optuna.Trial, values: Sequence[float] | None) -> None:
        self.study.tell(trial, values, state=TrialState.FAIL if values is None else TrialState.COMPLETE)


def _key(point: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A point to compare: Optuna's steps and ours differ in the last digit."""
    return tuple(sorted((name, float(f"{value:.12g}") if isinstance(value, float) else value) for name, value in point.items()))
