"""Trials in Weights & Biases as well as in MLflow: what `--wandb` asks for."""

from __future__ import annotations

import os
from typing import Any

import ray.tune as ray_tune

from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of
from tune.settings import SearchConfig
from tune.study.history import History
from tune.study.outcome import name_of


def wandb_callbacks(settings: SearchConfig, history: History | None = None) -> list[ray_tune.Callback]:
    """Ray's own callback, which makes a run for each trial, in a group for the study; none where no project is named.

    Ray takes each part of a trial that a race pauses for a trial of its own: they are one run here, with the epochs as its
    steps, also when an interrupted study goes on. Offline (WANDB_MODE=offline), where Weights & Biases begins a new file for
    each part, the parts have the same id, and are in the study's folder `wandb`, for `wandb sync`.

    Args:
        settings: of the search.
        history: of the study; None: the callback is made to see whether it can be.

    Raises:
        ConfigError: the package is not installed, or there is no key.
    """
    if not settings.wandb:
        return []
    from ray.air.integrations.wandb import WandbLoggerCallback  # here: it imports wandb

    began = str(history.study["at"]) if history is not None else ""  # tells it from other studies of its name

    class RunOfTrial(WandbLoggerCallback):
        """A run for each trial of ours."""

        def log_trial_start(self, trial: Any) -> None:
            """The settings that Ray adds to those of a run."""
            self.kwargs |= {"id": sha256_of([began, name_of(trial)])[:16], "resume": "allow"}
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            """The epoch counts: Ray's iterations begin anew with each part."""
            super().log_trial_result(iteration, trial, {**result, "training_iteration": result["epoch"]})

    where: dict[str, Any] = {"dir": str(settings.study_dir), "mode": os.environ.get("WANDB_MODE")}
    facts = {"key": "wandb", "value": settings.wandb}
    try:
        callback = RunOfTrial(project=settings.wandb, group=settings.study, **where)
    except RuntimeError as error:
        problem, remedy = "--wandb needs a package that is not installed", "pip install 'imf-search[wandb]'"
        raise ConfigError(problem, remedy=remedy, **facts) from error
    try:
        callback.setup()
    except ValueError as error:
        remedy = "wandb login, or set WANDB_API_KEY; WANDB_MODE=offline keeps the runs in the study's folder"
        raise ConfigError("Weights & Biases has no key of yours", remedy=remedy, **facts) from error
    return [callback]
