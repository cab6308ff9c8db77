"""Ctrl-C, SIGTERM and SIGHUP while a search runs: nothing is lost, and the user chooses what is done with what is there."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from rich.console import Console

from imf_core.commands.terminal import ENDING, leave_closed_terminal
from tune.budget.deadline import Deadline

_QUESTION = "finish now with what is there (Enter), or press Ctrl-C again to stop; the search goes on meanwhile"


class Interrupts:
    """Handles the signals in its block, within which Ray Tune must leave SIGINT alone (TUNE_DISABLE_SIGINT_HANDLER).

    On a terminal, the first Ctrl-C asks and the second stops the session; elsewhere the first stops it. SIGTERM always does,
    and so does SIGHUP, of a terminal that was closed, unless it was ignored before (`nohup`). Ctrl-C after that, or a signal
    while nothing runs that could be stopped, is a KeyboardInterrupt. SIGTERM and SIGHUP are often sent twice: once is enough.

    Args:
        console: where to ask.
        lost: whether the session cannot go on, for then there is nothing to ask.
        answers: waits for a line from the terminal; None: there is no terminal.

    Attributes:
        signal: that ended the session: SIGINT unless SIGTERM or SIGHUP was received.
    """

    def __init__(
        self, console: Console, lost: Callable[[], bool] = lambda: False, answers: Callable[[], str] | None = None
    ) -> None:
        self.signal = signal.SIGINT
        self._console, self._lost = console, lost
        self._answers = answers or (sys.stdin.readline if sys.stdin is not None and sys.stdin.isatty() else None)
        self._deadline: Deadline | None = None
        self._asked, self._finishes = False, True
        self._before: dict[signal.Signals, object] = {}

    @contextmanager
    def end(self, deadline: Deadline, *, finishes: bool) -> Iterator[None]:
        """Within the block the signals end what has this deadline.

        Args:
            finishes: it can be finished with what is there; without, Ctrl-C does not ask.
        """
        self._deadline, self._finishes, self._asked = deadline, finishes, False
        self._set()  # Ray may have set a handler for SIGTERM since
        try:
            yield
        finally:
            self._deadline = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            self._before = {number: signal.getsignal(number) for number in ENDING}
            if self._before[signal.SIGHUP] == signal.SIG_IGN:
                del self._before[signal.SIGHUP]
        self._set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _set(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        leave_closed_terminal()
        if number != signal.SIGINT and self.signal != signal.SIGINT:
            return
        if number != signal.SIGINT:
            self.signal = signal.Signals(number)
        deadline = self._deadline
        if deadline is None or deadline.stopping:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._finishes and self._answers is not None and not self._asked and not self._lost():
            self._asked = True
            self._console.print(f"[bold yellow]Ctrl-C[/]: {_QUESTION}", highlight=False)
            threading.Thread(target=self._wait, args=(deadline,), name="answer", daemon=True).start()
            return
        deadline.stopping = True

    def _wait(self, deadline: Deadline) -> None:
        assert self._answers is not None
        if self._answers() and not deadline.stopping:  # an empty string is the end of the input, and no answer
            deadline.finishing = True
