"""The journal of a study: its history as one line of JSON an event, on the disk before the search goes on.

An interrupted search goes on from it: the sampler's draws, the rungs of early stopping and the learning curves follow from
its events in their order. Ray's own snapshots are a second or more behind and are not used.

| event | says |
| --- | --- |
| `study` | what the study is tied to, and its points; always the first line |
| `session` | a driver begins: target of trials, budget, process |
| `ask` | a trial's name and settings, and the epoch up to which it may train (none: to its end) |
| `report` | an epoch of a trial that goes on |
| `pause` | a trial has trained as far as it may, and waits |
| `resume` | a paused trial goes on, up to a later epoch |
| `retry` | a trial whose worker died is started again |
| `tell` | a trial ended: its value (null: failed or diverged), whether it was stopped, its last report |
| `budget` | what a time budget allows: pace, epochs of a trial, final runs |
| `finals` | the final runs for which there was time |
| `duel` | which of the two best trials was better with another seed too |
| `test` | the test split is about to be opened |
| `final` | what finalising found |

Each line ends with `chain`, a digest of itself and of all lines before it: one that was taken out, put in or altered is found.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from imf_core.errors import ConfigError, DataError, ImfError, ResourceError
from imf_core.files.digest import sha256_of
from imf_core.files.json_files import parse_json
from imf_core.files.locks import lock
from tune.study.events import wrong_event
from tune.study.history import Event, History
from tune.study.outcome import DISK_FULL, OUTCOME_FILE

JOURNAL_FILE = "journal.jsonl"
TRIALS_DIR = "trials"  # holds the folder of each trial, by its name
_MIN_FREE_BYTES = 2**20
_CHAIN = "chain"
_OF_TRIALS = ("ask", "report", "retry", "pause", "resume", "tell")


class Journal(History):
    """A history that is kept on the disk, by one driver at a time.

    Args:
        folder: of the study; made if absent.

    Raises:
        ConfigError: another driver is running the study.
        DataError: the journal is damaged, with file and line.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL_FILE
        self.failure: ImfError | None = None  # Tune wraps what its hooks raise; this is the error itself
        _refuse_no_file(self.path)
        self._stream = self.path.open("ab")
        if not lock(self._stream, seconds=0):
            self._stream.close()
            raise ConfigError(
                f"another process is running the study in {folder}",
                remedy="wait for it, end it, or choose another --study", key="study", value=folder.name,
            )
        try:
            events, length, self._chain = _read(self.path)
        except DataError:
            self._stream.close()
            raise
        self._stream.truncate(length)  # a line that a crash cut short was never acted upon
        for event in events:
            self.apply(event)

    def write(self, event: Event) -> None:
        """Write an event to the disk.

        Raises:
            ResourceError: it cannot be written, with path and bytes free.
        """
        chain = _link(self._chain, event)
        line = json.dumps({**event, _CHAIN: chain}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            start = self._stream.seek(0, os.SEEK_END)
            try:
                self._stream.write(line)
                self._stream.flush()
                os.fsync(self._stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # half a line must not precede the next
                    os.ftruncate(self._stream.fileno(), start)
                raise
        except OSError as error:
            self.failure = self._unwritable(error)
            raise self.failure from error
        self._chain = chain

    def close(self) -> None:
        """Let another driver have the study."""
        with contextlib.suppress(OSError):  # it was raised when it was written
            self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def lost(self, failure: ImfError) -> None:
        """Note why the search cannot go on; it is raised as soon as Tune returns."""
        self.failure = failure

    def refuse_full_disk(self, name: str) -> None:
        """Called when a trial has failed: a full disk is no fault of its settings.

        Raises:
            ResourceError: the disk is full. The trial keeps no end, so it goes on when there is room.
        """
        trial_dir = self.path.parent / TRIALS_DIR / name
        try:
            outcome = (trial_dir / OUTCOME_FILE).read_text(encoding="utf-8")
        except OSError:
            outcome = ""
        if DISK_FULL in outcome or shutil.disk_usage(self.path.parent).free < _MIN_FREE_BYTES:
            self.failure = self._unwritable(OSError(errno.ENOSPC, DISK_FULL), trial_dir)
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
        DataError: a line is not an event, the first is not of a study, or lines are missing, altered or twice there.
    """
    events, length, _ = _read(path)
    return events, length


def begun_study(path: Path, events: Sequence[Event], *parts: str) -> Event:
    """The first event of a journal.

    Args:
        path: of the journal, for the message.
        events: of it, at least one.
        parts: what is needed of what the study is tied to (`tied`), its `settings`, `points`, `known` and `note`.

    Raises:
        DataError: it lacks a part.
    """
    if lacking := [part for part in parts if part not in events[0]]:
        raise _damaged(path, 1, f"an event study: it lacks {lacking[0]}")
    return events[0]


def _read(path: Path) -> tuple[list[Event], int, str]:
    """As `read_events`, with the digest of all lines; empty in a journal without digests."""
    _refuse_no_file(path)
    content, chain = path.read_bytes(), ""
    begun: set[str] = set()
    ended: set[str] = set()
    length = content.rfind(b"\n") + 1
    events: list[Event] = []
    for number, line in enumerate(content[:length].splitlines(), start=1):
        try:
            event = parse_json(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise _damaged(path, number, "not an event")
        if (number == 1) != (event["event"] == "study"):
            raise _damaged(path, number, "the first event, and it alone, says what the study is")
        given = event.pop(_CHAIN, "")
        if given or chain:
            try:
                expected = _link(chain, event)
            except UnicodeEncodeError:  # half a surrogate pair, which no journal of ours holds
                expected = ""
            if not expected or given != expected:
                raise _damaged(path, number, "the line was altered, or lines before it are missing")
            chain = expected
        if problem := _out_of_order(event, begun, ended):
            raise _damaged(path, number, problem)
        events.append(event)
    return events, length, chain


def _refuse_no_file(path: Path) -> None:
    if os.path.lexists(path) and not os.path.isfile(path):
        remedy = "move it away and restore the file, or begin a new study: --study NEW"
        raise DataError.at(path, None, "the journal is damaged: it is no file", remedy=remedy)


def _link(chain: str, event: Event) -> str:
    """The digest of an event and of all before it."""
    return sha256_of([chain, json.dumps(event, ensure_ascii=False)])[:16]


def _out_of_order(event: Event, begun: set[str], ended: set[str]) -> str:
    """What is wrong with an event after those before it, which `begun` and `ended` keep; empty if nothing is."""
    kind = event["event"]
    if problem := wrong_event(event):
        return problem
    if kind == "ask":
        if event["trial"] in begun:
            return f"{event['trial']} is begun twice"
        begun.add(event["trial"])
    elif kind in _OF_TRIALS:
        if event["trial"] not in begun:
            return f"{event['trial']} was never begun: a line is missing"
        if kind == "tell":
            if event["trial"] in ended:
                return f"{event['trial']} ends twice"
            ended.add(event["trial"])
    return ""


def _damaged(path: Path, line: int, problem: str) -> DataError:
    remedy = f"restore the file, or begin a new study with its best points: --study NEW --warm-start {path.parent}"
    return DataError.at(path, line, f"the journal is damaged: {problem}", remedy=remedy)
