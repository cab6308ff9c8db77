"""The terminal of all commands: output that shows names unchanged, error messages, the version."""

from __future__ import annotations

import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from imf_core import __version__
from imf_core.errors import Ended, ImfError
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


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a preemption, a closed terminal


class Signals:
    """Within its block, the first signal that asks a command to end is raised as `Ended`.

    Another Ctrl-C is raised too; SIGTERM and SIGHUP are often sent twice, and do not disturb the end. A signal that is ignored
    (`nohup`) stays ignored.

    Attributes:
        received: the first signal; None: there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._process = 0

    def __enter__(self) -> Signals:
        self.received, self._process = None, os.getpid()
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {number: signal.getsignal(number) for number in ENDING}
            self._before = {number: handler for number, handler in self._before.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that was forked ends as it always did
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)
            return
        leave_closed_terminal()
        first, self.received = self.received is None, self.received or signal.Signals(number)
        if first or number == signal.SIGINT:
            raise Ended(number)


SIGNALS = Signals()  # of the command that this process runs


def leave_closed_terminal() -> None:
    """Send nowhere what this process still writes to a terminal that was closed: it would be an error."""
    for number in (0, 1, 2):
        try:
            closed = stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number)
        except OSError:  # not open at all
            continue
        if closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            os.close(nowhere)


def run_command(app: Callable[[], object]) -> None:
    """Run a command line: an error that the user can mend exits with status 2, a signal with 128 and its number, as in shells.

    Args:
        app: the parser; it exits with 130 where a command leaves `Ended` to it.
    """
    with SIGNALS:
        try:
            app()
        except ImfError as error:
            sys.exit(show_error(error))
        except SystemExit as ended:
            # Ray answers SIGTERM by itself while it starts: it exits with the number.
            number = SIGNALS.received or (signal.SIGTERM if ended.code == signal.SIGTERM else None)
            if number is None:
                raise
            if ended.code in (128 + signal.SIGINT, signal.SIGTERM):
                told = "run the same command again; features that were extracted are kept"
                terminal(stderr=True).print(f"interrupted by {number.name}: {told}", soft_wrap=True)
            sys.exit(128 + number)


def show_error(error: ImfError) -> int:
    """Print an error that the user can mend; returns the exit status, 2."""
    terminal(stderr=True).print(Text("Error", style="bold red"), f"{type(error).__name__}: {error}", soft_wrap=True)
    return 2
