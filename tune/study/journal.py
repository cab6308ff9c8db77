"""The journal of a study: every decision of a search as one line of JSON, on the disk before the search goes on.

It is what an interrupted search goes on from. The sampler's draws, the rungs of early stopping and the learning curves follow
from its events in their order; Ray's own snapshots are a second or more behind and are not used.

| event | says |
| --- | --- |
| `study` | what the study is tied to, and its points; always the first line |
| `session` | a driver begins: target of trials, budget, process |
| `ask` | a trial's name and settings |
| `report` | an epoch of a trial that goes on |
| `retry` | a trial whose worker died is started again |
| `tell` | a trial ended: its value (null: failed or diverged), whether it was stopped, its last epoch |
| `test` | the test split is about to be opened |
| `final` | what finalising found |
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from imf_core.errors import ConfigError, DataError, ImfError, ResourceError
from imf_core.files.locks import lock

JOURNAL_FILE = "journal.jsonl"
DISK_FULL = "the disk is full"
_LEAST_ROOM = 2**20
Event = dict[str, Any]


class Journal:
    """Appends events; one driver at a time.

    Args:
        folder: of the study; made if absent.

    Raises:
        ConfigError: another driver is running the study.
        DataError: the journal is damaged, with file and line.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL_FILE
        self.failure: ImfError | None = None  # Tune wraps what its hooks raise; here it stays as it was
        self._stream = self.path.open("ab")
        if not lock(self._stream, seconds=0):
            self._stream.close()
            raise ConfigError(
                f"another process is running the study in {folder}",
                remedy="wait for it, end it, or choose another --study", key="study", value=folder.name,
            )
        try:
            self.events, whole = read_events(self.path)
        except DataError:
            self._stream.close()
            raise
        self._stream.truncate(whole)  # a line that a crash cut short was never acted upon

    def append(self, event: str, **values: Any) -> Event:
        """Write an event to the disk.

        Raises:
            ResourceError: it cannot be written, with path and bytes free.
        """
        made: Event = {"event": event, "at": round(time.time(), 3), **values}
        line = json.dumps(made, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            place = self._stream.seek(0, os.SEEK_END)
            try:
                self._stream.write(line)
                self._stream.flush()
                os.fsync(self._stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # half a line must not stay before the next
                    os.ftruncate(self._stream.fileno(), place)
                raise
        except OSError as error:
            self.failure = self._unwritable(error)
            raise self.failure from error
        self.events.append(made)
        return made

    def close(self) -> None:
        """Let another driver have the study."""
        with contextlib.suppress(OSError):  # what could not be written is said already
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # it stays in the driver: what Tune copies into its snapshots has none

    def lost(self, failure: ImfError) -> None:
        """Note why the search cannot go on; it is raised as soon as Tune lets go."""
        self.failure = failure

    def refuse_full_disk(self, trial: Path) -> None:
        """Called when a trial has failed: where the disk is full, that is no fault of its settings.

        Raises:
            ResourceError: the disk is full; the trial stays open, so it goes on when there is room.
        """
        try:
            said = (trial / "outcome.json").read_text(encoding="utf-8")
        except OSError:
            said = ""
        if DISK_FULL in said or shutil.disk_usage(self.path.parent).free < _LEAST_ROOM:
            self.failure = self._unwritable(OSError(errno.ENOSPC, DISK_FULL), trial)
            raise self.failure

    def _unwritable(self, error: OSError, path: Path | None = None) -> ImfError:
        free = shutil.disk_usage(self.path.parent).free
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = DISK_FULL if full else f"cannot be written ({error.strerror or error})"
        path = path or self.path
        return ResourceError(
            f"{path}: {problem}, {free / 2**20:.1f} MiB free; the search ends here, nothing that was finished is lost",
            remedy="make room and run the same command again: it goes on from here", path=str(path), available=free,
        )


def read_events(path: Path) -> tuple[list[Event], int]:
    """Events of a journal, and its length in bytes without a last line that was cut short.

    Raises:
        DataError: a line is not an event, or the first is not of a study.
    """
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    events: list[Event] = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise _damaged(path, number, "not an event")
        if (number == 1) != (event["event"] == "study"):
            raise _damaged(path, number, "the first event, and it alone, says what the study is")
        events.append(event)
    return events, whole


def _damaged(path: Path, line: int, problem: str) -> DataError:
    remedy = f"restore the file, or begin a new study with its best points: --study NEW --warm-start {path.parent}"
    return DataError.at(path, line, f"the journal is damaged: {problem}", remedy=remedy)


def trial_name(number: int) -> str:
    """`trial-003`: the name of a trial, of its folder and of its run, in every session the same."""
    return f"trial-{number:03d}"


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The finite numbers: JSON knows no others."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
