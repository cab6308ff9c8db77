"""Typed errors. Each says what was asked, what was found and what to do, and has the facts as attributes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any


class Ended(KeyboardInterrupt):
    """A signal asks the command to end: Ctrl-C, SIGTERM, or SIGHUP where its terminal was closed.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


class ImfError(Exception):
    """Base class of every error that a user can cause or mend.

    Args:
        problem: what was asked and what was found, in one sentence.
        remedy: what the user can do about it; shown after the problem.
        **facts: machine-readable details (path, line, value, ...), also reachable as attributes.
    """

    def __init__(self, problem: str, *, remedy: str = "", **facts: Any) -> None:
        self.problem = problem
        self.remedy = remedy
        self.facts = facts
        super().__init__(f"{problem}\n  What to do: {remedy}" if remedy else problem)

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are sent between processes (Ray, multiprocessing): rebuild them from their parts, not from args.
        return _rebuild, (type(self), self.problem, self.remedy, self.facts)


def _rebuild(kind: type[ImfError], problem: str, remedy: str, facts: dict[str, Any]) -> ImfError:
    return kind(problem, remedy=remedy, **facts)


class DataError(ImfError):
    """A file or folder of the user's data cannot be used. Facts: path, line, value."""

    @classmethod
    def at(cls, path: Path | str, line: int | None, problem: str, *, value: object = None, remedy: str = "") -> DataError:
        """The error for a line of a file: ``train.tsv, line 7: ...``."""
        place = f"{path}, line {line}" if line is not None else f"{path}"
        shown = f" (found {value!r})" if value is not None else ""
        return cls(f"{place}: {problem}{shown}", remedy=remedy, path=str(path), line=line, value=value)


class ConfigError(ImfError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another. Facts: key, value."""


class VocabularyError(ImfError):
    """A name is not an entity or relation of the graph, or two vocabularies do not agree."""


class CheckpointError(ImfError):
    """A checkpoint folder is missing, incomplete, damaged, or belongs to another vocabulary."""


class DivergedError(ImfError):
    """Training or scoring produced a non-finite number. Facts: epoch, step, quantity."""


class ResourceError(ImfError):
    """The request does not fit the machine or cluster. Facts: asked, available."""
