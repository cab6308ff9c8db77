"""Locks on files, so that one process at a time does what they guard. The kernel releases them, however a process ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imf_core.errors import ResourceError

_POLL_SECONDS = 0.1


def lock(stream: IO[Any], seconds: float | None = None) -> bool:
    """Lock an open file until it is closed.

    Args:
        stream: the file.
        seconds: how long to wait for a process that holds it; None: as long as it takes.

    Returns:
        False if another process still holds the lock.

    Raises:
        ResourceError: the file system has no locks.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            if deadline is None or time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError as error:
            raise ResourceError(
                f"{stream.name} cannot be locked: {error.strerror}", remedy="use a file system that has locks", path=stream.name
            ) from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made, while the block runs; wait for whoever holds it.

    Raises:
        ResourceError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        lock(stream)
        yield
