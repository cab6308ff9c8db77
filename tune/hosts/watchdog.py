"""Notices when Ray itself has died: its driver would wait for its answers, for ever."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from imf_core.errors import ResourceError

_SERVERS = ("gcs_server", "raylet")
_EVERY_SECONDS, _PATIENCE_SECONDS = 1.0, 30.0
EXIT_WITHOUT_RAY = 4


@contextmanager
def watching(lost: Callable[[ResourceError], None]) -> Iterator[None]:
    """Watch the servers of the Ray cluster that this process has started.

    When one has died, the main thread is interrupted as by Ctrl-C. Where it hangs in Ray all the same, the process ends with
    status 4: what a search has done is in its journal.

    Args:
        lost: told of it first, in another thread.
    """
    servers = [child for child in psutil.Process().children(recursive=True) if child.name() in _SERVERS]
    over = threading.Event()

    def _watch() -> None:
        while not over.wait(_EVERY_SECONDS):
            gone = [server for server in servers if not _alive(server)]
            if gone:
                lost(ResourceError(
                    f"Ray has died: process {gone[0].pid} ({'; '.join(sorted(names[server.pid] for server in gone))}) is gone",
                    remedy="look whether memory ran out (dmesg); the same command goes on from the last epochs",
                ))
                os.kill(os.getpid(), signal.SIGINT)
                if not over.wait(_PATIENCE_SECONDS):
                    print("Ray has died and does not answer; the same command goes on from the last epochs", flush=True)
                    os._exit(EXIT_WITHOUT_RAY)
                return

    names = {server.pid: server.name() for server in servers}
    thread = threading.Thread(target=_watch, name="ray watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
