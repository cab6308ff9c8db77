"""Markdown: tables, and names that must not be taken for markup."""

from __future__ import annotations

from collections.abc import Sequence


def escaped(text: str) -> str:
    """A text in which Markdown and HTML find no markup. Names may hold any character."""
    return "".join(f"\\{sign}" if sign in "\\`*_|<>[]" else sign for sign in text)


def one_line(text: str) -> str:
    """`escaped`, on one line: control characters and undecodable bytes become visible escapes."""
    return escaped("".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, markup: bool = False
) -> list[str]:
    """The lines of a table, and an empty line behind it.

    Args:
        columns: headings, without markup.
        rows: cells.
        left: the first so many columns are aligned to the left; the others, figures, to the right.
        markup: the cells are Markdown already; else they are shown as text.
    """
    rule = ["---" if place < left else "---:" for place in range(len(columns))]
    lines = [list(map(escaped, columns)), rule, *(row if markup else list(map(one_line, row)) for row in rows)]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]
