"""The pace of a trial, measured where trials run."""

from __future__ import annotations

import time
from typing import Any

import torch

from imf_core.train.pace import epoch_seconds
from tune.trial.worker import Job, shared_data


def measure(fields: dict[str, Any], workers: int) -> tuple[float | None, float]:
    """Train some seconds of an epoch and forget them.

    Args:
        fields: `Job.to_json()` of a trial; nothing is written.
        workers: that share an epoch.

    Returns:
        seconds of an epoch, None if it could not be measured; and when this process was ready to train, in seconds since 1970.
    """
    job = Job(**fields)
    torch.set_num_threads(job.threads)
    task = job.task
    config, data = task.config.build(job.config), shared_data(job.prepared, task)
    model = task.build(config, data)
    device = torch.device("cuda" if job.gpu and torch.cuda.is_available() else "cpu")
    ready = time.time()
    seconds = epoch_seconds(lambda report: task.fit(model, data, config, report, device=device))
    return (seconds / workers if seconds is not None else None), ready
