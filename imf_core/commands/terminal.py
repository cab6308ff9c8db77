"""The terminal of all commands: output that shows names unchanged, error messages, the version."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from imf_core import __version__
from imf_core.errors import ImfError


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"imf-search {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]


def terminal(stderr: bool = False) -> Console:
    """A terminal that prints names unchanged: `[b]` and `:cat:` are no markup, undecodable bytes are written as they are."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="surrogateescape")
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def show_error(error: ImfError) -> int:
    """Print an error that the user can mend; returns the exit status, 2."""
    terminal(stderr=True).print(Text("Error", style="bold red"), f"{type(error).__name__}: {error}", soft_wrap=True)
    return 2
