"""Which parameter a search says has mattered, also where some trials have a parameter and others have not."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from tune.study.sampler import importances


def searched(trials: int, seed: int = 0, flat: bool = False) -> optuna.Study:
    """A study whose value hangs on `lr` alone, with a parameter that only half of the trials have."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        trial.suggest_int("width", 1, 8)
        if trial.suggest_categorical("fusion", ("sum", "low_rank")) == "low_rank":
            trial.suggest_int("rank", 1, 4)
        return 0.5 if flat else 1.0 - abs(np.log10(lr) + 2.0)

    study.optimize(objective, n_trials=trials)
    return study


def test_importances_with_a_conditional_parameter() -> None:
    found = importances(searched(40))
    assert set(found) == {"lr", "width", "fusion", "rank"}
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(found, key=lambda name: found[name]) == "lr"
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(share >= 0 for share in found.values())
    assert list(importances(searched(40)).items()) == list(found.items())


def test_no_importances_where_they_would_say_nothing() -> None:
    assert importances(searched(3)) == {}
    assert importances(searched(12, flat=True)) == {}
    assert importances(optuna.create_study()) == {}
    study = searched(4)
    assert sum(importances(study).values()) == pytest.approx(1.0)
    lost = searched(3)
    lost.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, params={}, distributions={}))
    assert importances(lost) == {}


def test_a_failing_computation_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def refuse(*arguments: object, **keywords: object) -> None:
        asked.append(keywords["params"])
        raise ValueError("no grid")

    monkeypatch.setattr("optuna.importance.get_param_importances", refuse)
    assert importances(searched(8)) == {}
    assert asked == [["fusion", "lr", "rank", "width"]]  # in an order of their own: a set's differs between processes
