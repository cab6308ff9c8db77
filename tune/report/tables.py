"""Tables of a study's page. All cells are plain text; the template escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Kind = Literal["text", "number", "code", "state", "points", "share", "parts"]


class Column(NamedTuple):
    """A column: its title, and how its cells are displayed.

    `state` is a coloured word; `points` a signed difference; `share` a number with a bar; `parts` a bar of several shares.
    """

    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: its id in the page.
        caption: its title.
        columns: from left to right.
        rows: one cell per column.
        marked: index of the row to highlight; None for none.
        note: an explanation below the table.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: Sequence[Sequence[Any]]
    marked: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Share:
    """A number with a bar.

    Args:
        text: the formatted number.
        part: length of the bar, 0..1.
    """

    text: str
    part: float

    @property
    def width(self) -> str:
        """Length of the bar in CSS."""
        return f"{100 * min(max(self.part, 0.0), 1.0):.1f}%"


def numbers(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(title, "number") for title in titles)


def codes(*titles: str) -> tuple[Column, ...]:
    """Columns of names and values of settings."""
    return tuple(Column(title, "code") for title in titles)
