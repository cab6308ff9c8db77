"""Markdown tables."""

from __future__ import annotations


def escaped(text: str) -> str:
    """Names hold anything: what Markdown and HTML would take for markup is escaped."""
    return "".join(f"\\{sign}" if sign in "\\`*_|<>[]" else sign for sign in text)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return [*("| " + " | ".join(map(escaped, cells)) + " |" for cells in (columns, rule, *rows)), ""]
