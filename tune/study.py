"""The Optuna side of a search: sampler, searcher, export and warm start.

The study lives in memory and is saved with Tune's own snapshot, so that both are rolled back together after a crash;
`export_study` copies it to SQLite. Counts of trials by outcome come from `tune.records`: Optuna knows no early stop of Tune's.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.optuna import OptunaSearch

from imf_core.errors import ConfigError
from tune.parameter import Parameter
from tune.records import load_records, ranked
from tune.schedule import is_finite
from tune.settings import METRIC, MODE, TIME_ATTR
from tune.space import SearchSpace

STARTUP = 10  # random draws before TPE has enough to go by; these do not depend on the order in which trials finish
_CANDIDATES = 24


def make_sampler(seed: int, startup: int = STARTUP) -> optuna.samplers.TPESampler:
    """TPE with every option that matters written out, so that a new Optuna does not change the draws.

    Args:
        seed: equal seeds draw equal points, one trial at a time.
        startup: random draws until so many trials have finished with a value, >= 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, which conditional parameters need
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, n_ei_candidates=_CANDIDATES, multivariate=True, group=True, constant_liar=True,
        )


def sampler_settings(seed: int, startup: int = STARTUP, concurrency: int = 1) -> dict[str, Any]:
    """What `make_sampler` was told, with Optuna's version, for the log; and what can be repeated."""
    if concurrency == 1:
        note = "one trial at a time: the same seed repeats every draw"
    else:
        note = f"{concurrency} trials at a time: the first {startup} draws repeat, later ones depend on the order of finishing"
    return {
        "sampler": "TPE", "optuna": optuna.__version__, "seed": seed, "startup": startup, "candidates": _CANDIDATES,
        "multivariate": True, "group": True, "constant_liar": True, "note": note,
    }


class StudySearch(OptunaSearch):
    """Ray's `OptunaSearch` around a `SearchSpace`, with an end for every trial.

    A trial without a finite value is FAIL in the study, never RUNNING and never a number; one that the scheduler stopped counts
    with its best value so far. Metric and mode are its own: leave both out of `ray.tune.TuneConfig`.

    Args:
        space: what is searched.
        seed, startup: of the sampler.
        points: tried right after the space's default point, in this order; repeats are dropped.
        known: points whose value is known already; they inform the sampler and are not trained.
        name: name of the study.

    Raises:
        ConfigError: a point does not fit the space, with parameter, value and range; or a known value is not finite.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, startup: int = STARTUP, points: Iterable[Mapping[str, Any]] = (),
        known: Iterable[tuple[Mapping[str, Any], float]] = (), name: str = "search",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        first: list[dict[str, Any]] = []
        for point in (space.default_point(), *points):
            clean = space.validate_point(point)
            if clean not in first:
                first.append(clean)
        self._best: dict[str, float] = {}
        self._last_epoch: dict[str, int] = {}
        self._diverged: set[str] = set()
        self._typed_space = space
        super().__init__(
            space=space, metric=METRIC, mode=MODE, points_to_evaluate=first, sampler=make_sampler(seed, startup),
            study_name=name,
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
        return [dict(point) for point in self._points_to_evaluate]

    def add_known(self, point: Mapping[str, Any], value: float) -> None:
        """Tell the sampler of a result without training it.

        Raises:
            ConfigError: the point does not fit the space, or the value is not finite.
        """
        if not math.isfinite(value):
            raise ConfigError(f"the known value {value!r} is not finite", remedy="leave the point out", key=METRIC, value=value)
        params = self._typed_space.validate_point(point)
        ranges = {name: distribution(self._typed_space[name]) for name in params}
        self.study.add_trial(optuna.trial.create_trial(value=value, params=params, distributions=ranges))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The point of a trial: flat, dotted names; parameters whose condition is false are absent."""
        point = super().suggest(trial_id) or {}
        self._ot_trials[trial_id].set_user_attr("trial_id", trial_id)
        return point

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a report; one that is not finite marks the trial as diverged."""
        if trial_id not in self._ot_trials or trial_id in self._completed_trials:
            return
        if not is_finite(result):
            self._diverged.add(trial_id)
            return
        self._best[trial_id] = max(float(result[METRIC]), self._best.get(trial_id, -math.inf))
        epoch = int(result.get(TIME_ATTR, result.get("training_iteration", 0)))
        if epoch <= self._last_epoch.get(trial_id, -1):
            return  # a retried trial repeats epochs
        self._last_epoch[trial_id] = epoch
        try:
            self._ot_trials[trial_id].report(self._best[trial_id], epoch)
        except UpdateFinishedTrialError:
            self._completed_trials.add(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End a trial: COMPLETE with its best value so far, or FAIL if it erred, diverged or reported nothing."""
        if trial_id not in self._ot_trials or trial_id in self._completed_trials:
            return
        if result and METRIC in result:
            self.on_trial_result(trial_id, result)  # the report on which the scheduler says stop does not come alone
        value = None if error or trial_id in self._diverged else self._best.get(trial_id)
        self._end(trial_id, value)

    def restore(self, checkpoint_path: str) -> None:
        """Load a saved state; trials of the study that Tune does not know are failed.

        Raises:
            ConfigError: the file is cut short.
        """
        try:
            super().restore(checkpoint_path)
        except EOFError as error:
            raise ConfigError(
                f"the saved search {checkpoint_path} is damaged: it ends too early",
                remedy="start a new study with --warm-start on this one's folder", path=str(checkpoint_path),
            ) from error
        mine = {trial.number for trial in self._ot_trials.values()}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in mine:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def fail_unfinished(self, live: Collection[str] = ()) -> list[str]:
        """End every trial that is still RUNNING, for the end of a search.

        Args:
            live: ids of trials that go on.

        Returns:
            ids of those ended; each keeps its best value so far, or is FAIL without one.
        """
        open_ids = [trial_id for trial_id in self._ot_trials if trial_id not in self._completed_trials and trial_id not in live]
        for trial_id in open_ids:
            self.on_trial_complete(trial_id)
        return open_ids

    def _end(self, trial_id: str, value: float | None) -> None:
        trial = self._ot_trials[trial_id]
        try:
            trial.set_user_attr("epochs", self._last_epoch.get(trial_id, 0))
            trial.set_user_attr("diverged", trial_id in self._diverged)
            self.study.tell(
                trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE, skip_if_finished=True
            )
        except UpdateFinishedTrialError:
            pass  # a study that is ahead of Tune's snapshot: the trial has its end already
        self._completed_trials.add(trial_id)


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a parameter's range."""
    if parameter.kind == "categorical":
        return CategoricalDistribution(parameter.labels)
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def export_study(search: StudySearch, path: Path | str, outcomes: Mapping[str, str] | None = None) -> Path:
    """Copy the finished trials into an SQLite file that Optuna's own tools read; an older export is replaced in one step.

    Args:
        path: for example `results/<study>/optuna.db`; its folder is made.
        outcomes: state of each trial by Tune's trial id (`tune.records`); `pruned` and `stopped` become Optuna's PRUNED.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    trials = [_with_outcome(trial, outcomes or {}) for trial in search.study.trials if trial.state.is_finished()]
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{part}")
        copy = optuna.create_study(storage=storage, study_name=search.study.study_name, direction="maximize")
        for key, value in search.study.user_attrs.items():
            copy.set_user_attr(key, value)
        copy.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_points(results_dir: Path | str, space: SearchSpace, k: int = 5) -> list[dict[str, Any]]:
    """The best points of an earlier study, best first.

    Args:
        results_dir: folder of the study, with its `trials.json`.
        k: at most so many.

    Raises:
        DataError: no readable `trials.json`.
        ConfigError: no trial with a finite value, or a point that does not fit the space.
    """
    records = ranked(load_records(results_dir))
    usable = [record for record in records if record.state.usable and is_finite({METRIC: record.best_mrr})]
    if not usable:
        raise ConfigError(
            f"warm start: no trial in {results_dir} has a finite value", remedy="name a study that finished a trial",
            key="warm_start", value=str(results_dir),
        )
    points: list[dict[str, Any]] = []
    for record in usable[:k]:
        try:
            points.append(space.validate_point(record.params))
        except ConfigError as error:
            raise ConfigError(
                f"warm start: trial {record.number} of {results_dir} does not fit this search: {error.problem}",
                remedy=f"{error.remedy}; or search the same parameters as then", **error.facts,
            ) from error
    return points


def _with_outcome(trial: FrozenTrial, outcomes: Mapping[str, str]) -> FrozenTrial:
    outcome = outcomes.get(str(trial.user_attrs.get("trial_id")))
    if outcome is not None:
        trial.user_attrs = {**trial.user_attrs, "outcome": str(outcome)}
        if outcome in ("pruned", "stopped") and trial.state == TrialState.COMPLETE:
            trial.state = TrialState.PRUNED
    return trial
