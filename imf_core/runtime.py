"""Memory of a training process: how much is free, how much of it scores may take, and what happens if it runs out."""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from imf_core.errors import ResourceError

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
_KEPT = 2**30 - 1
_SHARE = 8  # scores may take one eighth of the free memory: other trials and processes need some too
_LEAST, _MOST, _MOST_ON_GPU = 8 * 2**20, 2**30, 2**33  # more is not faster
_CGROUP = Path("/sys/fs/cgroup")
# Messages of torch, its libraries and C++ for a failed allocation, where there is no exception type for it.
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks up to 1 GiB for the next tensor, instead of returning them to the kernel at once.

    A training step frees and allocates the same large blocks again and again. Each time the kernel would have to find and
    clear their pages, which takes a quarter of a bf16 step.

    Returns:
        Whether it was possible: on Linux with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_THRESHOLD, _KEPT) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def default_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_memory(device: torch.device = torch.device("cpu")) -> int | None:  # noqa: B008
    """Bytes that this process can still allocate: of the machine or its container, or of the GPU; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        available = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    if available is None:
        return None
    free = 1024 * int(available[1])
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(limit) - used)) if limit.isdigit() else free


class MemoryBudget:
    """Bytes that scores may take at a time.

    If an allocation fails, the budget is halved and the work repeated, with a line in the log and in `notes`.

    Args:
        size: initial budget in bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self.notes: list[str] = []

    @classmethod
    def of(cls, megabytes: int | None, device: torch.device = torch.device("cpu")) -> MemoryBudget:  # noqa: B008
        """The budget of `train.memory_budget_mb`.

        Args:
            megabytes: MiB. None: an eighth of the free memory, from 8 MiB to 1 GiB (8 GiB on a GPU), rounded down to a power
                of two, so that small changes of free memory do not change the order of summation, and so no last digit.
            device: whose memory is used.
        """
        if megabytes is not None:
            return cls(megabytes * 2**20)
        most = _MOST_ON_GPU if device.type == "cuda" else _MOST
        free = free_memory(device)
        share = most if free is None else min(most, max(_LEAST, free // _SHARE))
        return cls(1 << (share.bit_length() - 1))

    def within(self, work: Callable[[int], Result], again: Callable[[], bool] = lambda: True) -> Result:
        """Call `work` with the budget, or with less if memory runs out.

        Args:
            work: takes the budget in bytes.
            again: called after a failed attempt; undoes its changes and returns whether that was possible.

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
            # Outside the handler: the exception kept the tensors of the attempt alive until here.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not repeatable or self.size <= _LEAST:
                raise ResourceError(
                    f"out of memory ({failure}) with {_mib(self.size)} for scores",
                    remedy="lower train.batch_size or model.dim, train with train.num_negatives, or use fewer workers or "
                    "trials at a time", asked=self.size, available=free_memory(),
                )
            self.size = max(_LEAST, self.size // 2)
            note = f"out of memory ({failure}): going on with {_mib(self.size)} for scores (train.memory_budget_mb)"
            self.notes.append(note)
            logger.warning(note)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error))
    )


def peak_memory() -> int:
    """Most bytes of main memory that this process has had since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Shard:
    """This process among `world` processes that share the work: its rank, 0..world-1."""

    rank: int = 0
    world: int = 1


WHOLE = Shard()
