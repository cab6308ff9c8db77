"""Tables of a study's page: what a cell holds and how it is shown. All text is plain; the template escapes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from tune.report.files import cell, short

Kind = Literal["text", "number", "code", "state", "points", "share", "parts"]
NONE = "–"  # where there is nothing to say


class Column(NamedTuple):
    """A column: its title, and how its cells are shown.

    `state` is a coloured word; `points` a signed difference; `share` a bar of that part of the cell, 0..1; `parts` a bar of
    several shares.
    """

    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: its id in the page.
        caption: what it shows.
        columns: from the left.
        rows: a cell for each column.
        marked: position of the row to bring out; None for none.
        note: what the reader has to know beside it.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    marked: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Share:
    """A number with its bar.

    Args:
        text: the number, written.
        part: length of the bar, 0..1.
    """

    text: str
    part: float

    @property
    def width(self) -> str:
        """As CSS writes it."""
        return f"{100 * min(max(self.part, 0.0), 1.0):.1f}%"


def mrr(value: Any) -> str:
    """A share 0..1 with four digits."""
    return f"{value:.4f}" if usable(value) else NONE


def rank(value: Any) -> str:
    """A mean rank."""
    return f"{value:,.1f}" if usable(value) else NONE


def points(value: float | None) -> str:
    """A difference in points (hundredths), with its sign."""
    return f"{value:+.1f}" if usable(value) else NONE


def printable(text: str) -> str:
    """The same with bytes that are no text, which a name may hold, written as `\\udc80`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def usable(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def setting(value: Any) -> str:
    """A setting as it is read, not as it is typed: decimal numbers with four digits."""
    return short(value) if isinstance(value, float) and math.isfinite(value) else cell(value)


def listed(numbers: Sequence[int], most: int = 20) -> str:
    """`1, 2, 3 and 4 more`."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
