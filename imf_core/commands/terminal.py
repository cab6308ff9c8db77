"""The terminal of all commands: output that shows names unchanged, error messages, the version."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from imf_core import __version__
from imf_core.errors import ImfError
from imf_core.files.visible import visible


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"imf-search {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]


class NameConsole(Console):
    """A console in which control characters of names are visible signs, not commands to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def terminal(stderr: bool = False) -> Console:
    """A terminal that prints names unchanged: `[b]` and `:cat:` are no markup, undecodable bytes are written as they are.

    Only control characters are replaced: those of a hostile name would be commands.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="surrogateescape")
    return NameConsole(stderr=stderr, markup=False, emoji=False, highlight=False)


def show_error(error: ImfError) -> int:
    """Print an error that the user can mend; returns the exit status, 2."""
    terminal(stderr=True).print(Text("Error", style="bold red"), f"{type(error).__name__}: {error}", soft_wrap=True)
    return 2
