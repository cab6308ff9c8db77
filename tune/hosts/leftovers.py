"""Ends what a killed driver has left: Ray's dashboard and agents outlive a driver that gets SIGKILL.

While a Ray of ours runs, the ids of its processes stand in a file of this user and machine. The next search ends those that
still run, by number and time of creation, so that no other process can be meant.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from imf_core.errors import ResourceError
from imf_core.files.atomic import atomic_write_text

logger = logging.getLogger(__name__)

_SAME = 2.0  # seconds by which times of creation may differ: the clock may have been set meanwhile
_PATIENCE = 5.0  # seconds for a process to end by SIGTERM

Id = tuple[int, float]  # number and time of creation


class ProcessRecord:
    """The file that names the processes of this driver's Ray.

    Args:
        roots: processes that Ray has started; their descendants are recorded too.
        folder: of the records; default: see `records_folder`.
    """

    def __init__(self, roots: Iterable[psutil.Process], folder: Path | None = None) -> None:
        self.roots, self.known = list(roots), set[Id]()
        self.file = (folder or records_folder()) / f"{socket.gethostname()}-{os.getpid()}.json"

    def update(self) -> None:
        """Write down what runs now; processes that have lost their parent meanwhile stay in the record."""
        running = {found for root in self.roots for found in _ids(root)}
        if not running <= self.known:
            self.known |= running
            content = {"driver": _ids(psutil.Process())[:1], "processes": sorted(self.known)}
            atomic_write_text(self.file, json.dumps(content))

    def remove(self) -> None:
        """Ray has been shut down."""
        self.file.unlink(missing_ok=True)


def records_folder() -> Path:
    """The folder of this user's records, made if it is not there; on a disk of this machine, as its processes are.

    Raises:
        ResourceError: another user has made it.
    """
    folder = Path(tempfile.gettempdir()) / f"imf-search-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ResourceError(f"{folder} belongs to another user", remedy="name another folder for temporary files: TMPDIR=...")
    return folder


def end_leftovers(folder: Path | None = None) -> int:
    """End the recorded processes whose driver is gone.

    Args:
        folder: of the records; default: see `records_folder`.

    Returns:
        How many were ended.
    """
    left: list[psutil.Process] = []
    for file in (folder or records_folder()).glob(f"{socket.gethostname()}-*.json"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            driver, processes = ([(int(pid), float(at)) for pid, at in content[key]] for key in ("driver", "processes"))
        except (OSError, ValueError, KeyError, TypeError):
            driver, processes = [], []  # it names nobody
        if any(_running(*found) for found in driver):
            continue
        left += [process for found in processes if (process := _running(*found)) is not None]
        file.unlink(missing_ok=True)
    end(left)
    if left:
        logger.warning("ended %d processes of Ray that a killed search had left", len(left))
    return len(left)


def end(processes: Sequence[psutil.Process]) -> None:
    """End processes: asked first, then killed."""
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            try:
                ask(process)
            except psutil.Error:  # it has ended, or is not ours
                pass
        if not psutil.wait_procs(processes, timeout=_PATIENCE)[1]:
            break


def _ids(root: psutil.Process) -> list[Id]:
    """Of a process and its descendants."""
    try:
        return [(process.pid, process.create_time()) for process in (root, *root.children(recursive=True))]
    except psutil.Error:  # one has ended
        return []


def _running(pid: int, created: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _SAME and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same else None
