"""Estimate of the disk space that a study needs, made before it starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imf_core.errors import ResourceError
from imf_core.tasks.protocols import StudyData
from imf_core.train.estimate import MemoryEstimate

_RECORDS = 16 * 2**20  # journal, records, logs, plots, MLflow


@dataclass(frozen=True)
class DiskEstimate:
    """Peak disk usage of a study.

    Args:
        parts: bytes by purpose.
        folder: on the disk in question.
    """

    parts: Mapping[str, int]
    folder: Path

    @property
    def total(self) -> int:
        """Sum of the parts, bytes."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """The total and its parts in MiB, largest first, on one line."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in parts if size)
        return f"about {self.total / 2**20:.0f} MiB of disk ({listed})"

    def shortage(self) -> str | None:
        """A warning if the disk is too full; None if the study fits."""
        free = shutil.disk_usage(self.folder).free
        if self.total <= free:
            return None
        return (
            f"the study needs about {self.total / 2**20:.0f} MiB of disk and {self.folder} has {free / 2**20:.0f} MiB free: "
            "free some space, or choose another --storage"
        )


def refuse_unwritable(folder: Path) -> None:
    """Refuse a folder into which nothing can be written, before anything is computed for it. It is not made.

    Raises:
        ResourceError: the system does not let it be written.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ResourceError(
            f"nothing can be written into {place}: {error.strerror or error}",
            remedy="choose another --storage, or make it writable", path=str(place),
        ) from error


def disk_estimate(
    data: StudyData, scores: int, memory: MemoryEstimate, concurrency: int, seeds: int, trials: int, keep: int, folder: Path,
    paused: int = 0,
) -> DiskEstimate:
    """Estimate peak disk usage: shared data, training states of running trials, checkpoints, branch scores.

    A trial's training state is deleted when the trial ends, unless it is paused; while it is being replaced, two copies exist.

    Args:
        data: shared by all trials.
        scores: largest branch scores of one trial, bytes.
        memory: estimate for one worker.
        concurrency: number of concurrent trials.
        seeds: number of seeds with which the winner is retrained.
        trials: number of trials; branch scores are kept for those that complete.
        keep: number of trials whose checkpoints are kept.
        folder: folder of the study; it need not exist.
        paused: number of paused trials whose training state is kept.
    """
    weights, features = (memory.parts.get(name, 0) for name in ("weights and optimizer", "features"))
    finals = seeds + 1 + len(data.modalities) + 2  # control and ablations; the best is copied to `best` and to MLflow
    while not folder.exists():
        folder = folder.parent
    return DiskEstimate({
        "data": data.nbytes,
        "training states": (2 * concurrency + paused) * weights,
        "final checkpoints": finals * (weights // 4 + features),
        "checkpoints of trials": (keep + concurrency if keep else 0) * (weights // 4 + features),
        "branch scores": trials * scores,
        "records": _RECORDS,
    }, Path(os.path.realpath(folder)))
