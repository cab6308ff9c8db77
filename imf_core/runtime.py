"""Memory of a training process: what is free, what scores may take of it, and what happens when it runs out."""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from imf_core.errors import ResourceError

Made = TypeVar("Made")

logger = logging.getLogger(__name__)

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
_KEPT = 2**30 - 1
_SHARE = 8  # scores may take one part in so many of what is free: other trials and processes want some too
_LEAST, _MOST, _MOST_ON_GPU = 8 * 2**20, 2**30, 2**33  # more makes nothing faster
_CGROUP = Path("/sys/fs/cgroup")
# How torch, its libraries and C++ say that an allocation failed, where they raise no type of its own.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks up to 1 GiB for the next tensor, instead of giving them back at once.

    A training step frees and asks for the same large blocks again and again. Each time the kernel would have to find and
    clear their pages: a quarter of a bf16 step.

    Returns:
        Whether it was done: on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _KEPT) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def free_memory(device: torch.device = torch.device("cpu")) -> int | None:  # noqa: B008
    """Bytes that this process can still get: of the machine or its container, or of the GPU; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    if found is None:
        return None
    free = 1024 * int(found[1])
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(limit) - used)) if limit.isdigit() else free


class MemoryBudget:
    """Bytes that scores may take at a time.

    Where an allocation fails, the budget is halved and the work is done again with it, and the log and `notes` say so.

    Args:
        size: bytes to begin with; at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self.notes: list[str] = []

    @classmethod
    def of(cls, megabytes: int | None, device: torch.device = torch.device("cpu")) -> MemoryBudget:  # noqa: B008
        """What `train.memory_budget_mb` allows.

        Args:
            megabytes: MiB. None: an eighth of what is free, from 8 MiB to 1 GiB (8 GiB on a GPU), and a power of two, so that
                a little more or less of free memory changes nothing, not even the last digit of a sum.
            device: whose memory.
        """
        if megabytes is not None:
            return cls(megabytes * 2**20)
        most = _MOST_ON_GPU if device.type == "cuda" else _MOST
        free = free_memory(device)
        share = most if free is None else min(most, max(_LEAST, free // _SHARE))
        return cls(1 << (share.bit_length() - 1))

    def within(self, work: Callable[[int], Made], again: Callable[[], bool] = lambda: True) -> Made:
        """Do the work with the budget, or with less.

        Args:
            work: takes the budget in bytes.
            again: called after a failed attempt; puts back what that has changed, and tells whether it could.

        Raises:
            ResourceError: there is not enough memory even for the smallest budget, or the attempt cannot be repeated.
        """
        while True:
            failure = ""
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failure = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                repeatable = again()
            # Outside of the handler: until here the exception has held on to the tensors of the attempt.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not repeatable or self.size <= _LEAST:
                raise ResourceError(
                    f"out of memory ({failure}) with {self._said(self.size)} for scores",
                    remedy="lower train.batch_size or model.dim, train with train.num_negatives, or use fewer workers or "
                    "trials at a time", asked=self.size, available=free_memory(),
                )
            self.size = max(_LEAST, self.size // 2)
            note = f"out of memory ({failure}): going on with {self._said(self.size)} for scores (train.memory_budget_mb)"
            self.notes.append(note)
            logger.warning(note)

    @staticmethod
    def _said(size: int) -> str:
        return f"{size / 2**20:.0f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    )


@dataclass(frozen=True)
class Shard:
    """Which part of the work is this process's: rank 0..world-1."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()
