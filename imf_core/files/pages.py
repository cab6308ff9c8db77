"""HTML pages from templates: all text is escaped, since names and texts come from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imf_core.files.visible import in_a_file


def rendered(template: Path, content: Mapping[str, Any]) -> str:
    """A page as text that is UTF-8.

    Args:
        template: its file; templates that it names lie beside it.
        content: its variables, all of them.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )
    return in_a_file(environment.get_template(template.name).render(content))


def summary_html(
    title: str, lines: Sequence[str], tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    lists: Mapping[str, Sequence[str]],
) -> str:
    """What a notebook shows of an object, without styles of its own.

    Args:
        title: the first line.
        lines: below it.
        tables: caption -> columns and rows.
        lists: heading -> entries.
    """
    content = {"title": title, "lines": lines, "tables": list(tables.items()), "lists": list(lists.items())}
    return rendered(Path(__file__).parent / "templates" / "summary.html", content)
