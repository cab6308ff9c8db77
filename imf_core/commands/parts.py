"""`imf parts`: the parts that there are, kind by kind; and `--part`, which every command has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imf_core.commands.terminal import terminal
from imf_core.errors import ConfigError
from imf_core.files.json_files import shortened
from imf_core.parts.registry import KINDS, Part, every, load_file

PartOption = Annotated[
    list[Path] | None, typer.Option("--part", help="Python file that registers parts of one's own. Repeatable.")
]


def with_parts(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that imports the files of `--part` before it does anything."""
    signature = inspect.signature(command, eval_str=True)
    if "part" in signature.parameters:  # done before
        return command

    @functools.wraps(command)
    def wrapped(*arguments: Any, part: list[Path] | None = None, **named: Any) -> Any:
        for file in part or []:
            load_file(file)
        return command(*arguments, **named)

    added = inspect.Parameter("part", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=PartOption)
    wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {name: item.annotation for name, item in signature.parameters.items()} | {"part": PartOption}
    return wrapped


def show_parts(
    kind: Annotated[str, typer.Argument(metavar=f"[{'|'.join(KINDS)}]", help="One kind alone; default: all.")] = "",
) -> None:
    """List the parts that there are, kind by kind, with where they are from.

    Example: imf parts scorer --part rotate.py
    """
    if kind and kind not in KINDS:
        raise ConfigError(f"there is no kind {kind!r}", remedy=f"choose one of: {', '.join(KINDS)}", key="kind", value=kind)
    console = terminal()
    for name in [kind] if kind else KINDS:
        table = Table(title=f"{name} (packages: {KINDS[name].group})", box=None, header_style="bold", title_justify="left")
        for column in ("name", "from", "what it is", "its settings"):
            table.add_column(column, overflow="fold", no_wrap=column == "name")
        for part_name, part in every(name):
            if isinstance(part, Part):
                table.add_row(part_name, part.source, part.description, ", ".join(_settings(part)))
            else:
                table.add_row(part_name, "", part.problem, "")
        console.print(table)


def _settings(part: Part) -> list[str]:
    """`margin=9.0` of each."""
    if part.settings is None:
        return []
    return [f"{name}={shortened(value)}" for name, value in part.settings().model_dump().items()]
