"""How much disk a study will take, before it is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imf_core.tasks.protocols import StudyData
from imf_core.train.estimate import MemoryEstimate

_BOOKS = 16 * 2**20  # journal, records, logs, plots, MLflow


@dataclass(frozen=True)
class DiskEstimate:
    """Most that a study takes at a time, in bytes by what takes them.

    Args:
        parts: name -> bytes.
        folder: whose disk it is.
    """

    parts: Mapping[str, int]
    folder: Path

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line: the total and its parts in MiB, the largest first."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in parts if size)
        return f"about {self.total / 2**20:.0f} MiB of disk ({listed})"

    def shortage(self) -> str | None:
        """A warning where the disk has less room; None where it fits."""
        free = shutil.disk_usage(self.folder).free
        if self.total <= free:
            return None
        return (
            f"the study takes about {self.total / 2**20:.0f} MiB of disk and {self.folder} has {free / 2**20:.0f} MiB free: "
            "make room, or name another --storage"
        )


def disk_estimate(
    data: StudyData, scores: int, memory: MemoryEstimate, concurrency: int, seeds: int, trials: int, keep: int, folder: Path
) -> DiskEstimate:
    """What a study keeps: the data once, the training state of each running trial, a checkpoint of each final run.

    The state of a trial is removed when it ends. While one is replaced, the old and the new are there together.

    Args:
        data: what all trials share.
        scores: most bytes of branch scores that a trial keeps.
        memory: of one worker.
        concurrency: trials at a time.
        seeds: of the winner.
        trials: of the search; the branch scores of those that end by themselves are kept.
        keep: trials whose checkpoints stay.
        folder: where the study will be; it need not be there yet.
    """
    weights, features = (memory.parts.get(name, 0) for name in ("weights and optimizer", "features"))
    finals = seeds + 1 + len(data.modalities) + 2  # without a modality each; the best once more, and in MLflow
    while not folder.exists():
        folder = folder.parent
    return DiskEstimate({
        "data": data.nbytes,
        "training states": 2 * concurrency * weights,
        "final checkpoints": finals * (weights // 4 + features),
        "checkpoints of trials": (keep + concurrency if keep else 0) * (weights // 4 + features),
        "branch scores": trials * scores,
        "books": _BOOKS,
    }, Path(os.path.realpath(folder)))
