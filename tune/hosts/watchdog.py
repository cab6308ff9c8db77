"""Notices when Ray's own servers have died: the driver would wait for their answers for ever."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from imf_core.errors import ResourceError
from tune.hosts.leftovers import ProcessRecord

_SERVERS = ("gcs_server", "raylet")
_POLL_SECONDS, _EXIT_SECONDS = 1.0, 30.0
EXIT_WITHOUT_RAY = 4


@contextmanager
def watching(lost: Callable[[ResourceError], None], record: ProcessRecord) -> Iterator[None]:
    """Watch the servers of the Ray cluster that this process has started, and keep the record of its processes.

    When one has died, the main thread is interrupted as by Ctrl-C. If it still hangs in Ray, the process exits with status 4:
    what a search has done is in its journal.

    Args:
        lost: called first with the reason, in another thread.
        record: of the cluster's processes.
    """
    servers = {child: child.name() for child in psutil.Process().children(recursive=True) if child.name() in _SERVERS}
    over = threading.Event()

    def _watch() -> None:
        while not over.wait(_POLL_SECONDS):
            record.update()
            dead = {server.pid: name for server, name in servers.items() if not _alive(server)}
            if dead:
                lost(ResourceError(
                    f"Ray has died: process {next(iter(dead))} ({'; '.join(sorted(dead.values()))}) is gone",
                    remedy="look whether memory ran out (dmesg); the same command goes on from the last epochs",
                ))
                os.kill(os.getpid(), signal.SIGINT)
                if not over.wait(_EXIT_SECONDS):
                    print("Ray has died and does not answer; the same command goes on from the last epochs", flush=True)
                    os._exit(EXIT_WITHOUT_RAY)
                return

    record.update()
    threading.Thread(target=_watch, name="ray watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
