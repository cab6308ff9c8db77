"""Memory of a training process."""

from __future__ import annotations

import ctypes
import platform

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
_KEPT = 2**30 - 1


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
