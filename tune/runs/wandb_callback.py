"""Trials in Weights & Biases as well as in MLflow: what `--wandb` asks for."""

from __future__ import annotations

import os
from typing import Any

import ray.tune as ray_tune

from imf_core.errors import ConfigError
from tune.settings import SearchConfig


def wandb_callbacks(settings: SearchConfig) -> list[ray_tune.Callback]:
    """Ray's own callback, which makes a run for each trial, in a group for the study; none where no project is named.

    Offline (WANDB_MODE=offline), the runs are in the study's folder `wandb`, for `wandb sync`.

    Raises:
        ConfigError: the package is not installed, or there is no key.
    """
    if not settings.wandb:
        return []
    from ray.air.integrations.wandb import WandbLoggerCallback  # here: it imports wandb

    where: dict[str, Any] = {"dir": str(settings.study_dir), "mode": os.environ.get("WANDB_MODE")}
    facts = {"key": "wandb", "value": settings.wandb}
    try:
        callback = WandbLoggerCallback(project=settings.wandb, group=settings.study, **where)
    except RuntimeError as error:
        problem, remedy = "--wandb needs a package that is not installed", "pip install 'imf-search[wandb]'"
        raise ConfigError(problem, remedy=remedy, **facts) from error
    try:
        callback.setup()
    except ValueError as error:
        remedy = "wandb login, or set WANDB_API_KEY; WANDB_MODE=offline keeps the runs in the study's folder"
        raise ConfigError("Weights & Biases has no key of yours", remedy=remedy, **facts) from error
    return [callback]
