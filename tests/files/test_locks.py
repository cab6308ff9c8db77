"""One process at a time, with and without waiting."""

from __future__ import annotations

import errno
import fcntl
import threading
import time
from pathlib import Path

import pytest

from imf_core.errors import ResourceError
from imf_core.files.locks import lock, locked


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with locked(path), path.open("a") as other:  # two open files of one process are rivals like two processes
        assert not lock(other, seconds=0)
        started = time.monotonic()
        assert not lock(other, seconds=0.3)
        assert time.monotonic() - started >= 0.3
    with path.open("a") as other:
        assert lock(other, seconds=0)


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_who_waits_gets_the_lock_when_it_is_free(tmp_path: Path, seconds: float | None) -> None:
    path = tmp_path / "lock"
    holder = path.open("a")
    assert lock(holder)
    release = threading.Timer(0.3, holder.close)
    release.start()
    with path.open("a") as other:
        assert lock(other, seconds)
    assert holder.closed
    release.join()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ResourceError, match=r"lock cannot be locked: No locks available"), locked(tmp_path / "lock"):
        pass
