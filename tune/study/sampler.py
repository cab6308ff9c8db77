"""Optuna's sampler with every option written out, the ranges in its form, and the export that its own tools read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from imf_core.files.atomic import atomic_file
from tune.space.parameter import Parameter
from tune.uris import sqlite_url

STARTUP = 10  # random draws before TPE has enough to go by; these do not depend on the order in which trials finish
_CANDIDATES = 24
_LEAST_TRIALS, _BEST_TRIALS = 4, 5  # for importances: fewer say nothing; so many count as the best of a small study


def make_sampler(seed: int, startup: int = STARTUP, kind: str = "tpe") -> optuna.samplers.BaseSampler:
    """TPE with every option that matters written out, so that a new Optuna does not change the draws; or another sampler.

    Args:
        seed: equal seeds draw equal points, one trial at a time.
        startup: random draws until so many trials have finished with a value, >= 1.
        kind: `tpe`; `gp`: a Gaussian process and the expected improvement; or `random`: every draw is one.
    """
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if kind == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, which conditional parameters need
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=startup, n_ei_candidates=_CANDIDATES, multivariate=True, group=True, constant_liar=True,
        )


def sampler_settings(seed: int, startup: int = STARTUP, concurrency: int = 1, kind: str = "tpe") -> dict[str, Any]:
    """What `make_sampler` was told, with Optuna's version, for the log; and what can be repeated."""
    if kind == "random":
        return {"sampler": "random", "optuna": optuna.__version__, "seed": seed, "note": "the same seed repeats every draw"}
    if kind == "gp":
        note = "one trial at a time: the same seed repeats every draw"
        return {"sampler": "GP", "optuna": optuna.__version__, "seed": seed, "startup": startup, "note": note}
    if concurrency == 1:
        note = "one trial at a time: the same seed repeats every draw"
    else:
        note = f"{concurrency} trials at a time: the first {startup} draws repeat, later ones depend on the order of finishing"
    return {
        "sampler": "TPE", "optuna": optuna.__version__, "seed": seed, "startup": startup, "candidates": _CANDIDATES,
        "multivariate": True, "group": True, "constant_liar": True, "note": note,
    }


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's form of a parameter's range."""
    if parameter.kind == "categorical":
        return CategoricalDistribution(parameter.labels)
    if parameter.kind == "int":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each parameter decides whether a trial is among the best ones: shares that sum to 1, the largest first.

    By PED-ANOVA (Watanabe et al., IJCAI 2023), which compares where the best trials lie with where all lie. fANOVA and the mean
    decrease of impurity fit a random forest to the parameters that *every* trial has, so a conditional one (the rank of a
    fusion, the weight of a branch) would be left out, and a forest of a dozen trials says more of its seed than of the search.
    PED-ANOVA treats where a parameter is absent as a region of its own and draws no random number: nothing is to be seeded.

    Args:
        study: its finished trials with a finite value count; one that was stopped early counts with its best value.

    Returns:
        empty with fewer than 4 such trials, where they do not differ, or where it cannot be computed.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    done = [trial for trial in done if trial.values and math.isfinite(trial.values[0])]
    if len(done) < _LEAST_TRIALS:
        return {}
    # Here, because it loads scikit-learn: two seconds at the start of every search.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    # Sorted: left to itself it iterates a set, whose order, and with it the last digit, differs from process to process.
    names = sorted({name for trial in done for name in trial.params})
    # A tenth of the trials is its usual "best"; of a small study that would be one or two.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, _BEST_TRIALS / len(done))))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials have a conditional parameter is known here
            shares = get_param_importances(study, evaluator=evaluator, params=names, normalize=False, target=_mrr)
    except (ArithmeticError, AssertionError, ValueError):  # a range that cannot be cut into a grid, or Optuna's own checks
        return {}
    total = sum(shares.values())
    if not (math.isfinite(total) and total > 0):
        return {}
    return {name: shares[name] / total for name in sorted(names, key=lambda name: (-shares[name], name))}


def export_study(study: optuna.Study, path: Path | str, outcomes: Mapping[str, str] | None = None) -> Path:
    """Copy the finished trials into an SQLite file that Optuna's own tools read; an older export is replaced in one step.

    Args:
        path: for example `results/<study>/optuna.db`; its folder is made.
        outcomes: state of each trial by Tune's trial id (`tune.study.records`); `pruned` and `stopped` become Optuna's PRUNED.
    """
    path = Path(path).absolute()
    several = len(study.directions) > 1  # Optuna knows no pruned trial of several objectives
    trials = [_with_outcome(trial, outcomes or {}, several) for trial in study.trials if trial.state.is_finished()]
    with atomic_file(path) as scratch:
        storage = optuna.storages.RDBStorage(sqlite_url(scratch))
        copy = optuna.create_study(storage=storage, study_name=study.study_name, directions=study.directions)
        for key, value in study.user_attrs.items():
            copy.set_user_attr(key, value)
        copy.add_trials(trials)
        storage.remove_session()
        storage.engine.dispose()
    return path


def _mrr(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _with_outcome(trial: FrozenTrial, outcomes: Mapping[str, str], several: bool) -> FrozenTrial:
    outcome = outcomes.get(str(trial.user_attrs.get("trial_id")))
    if outcome is not None:
        trial.user_attrs = {**trial.user_attrs, "outcome": str(outcome)}
        if outcome in ("pruned", "stopped") and not several and trial.state == TrialState.COMPLETE:
            trial.state = TrialState.PRUNED
    return trial
