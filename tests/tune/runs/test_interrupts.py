"""Ctrl-C asks once and then stops; SIGTERM stops; both without a traceback and with the handlers of before put back."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from types import FrameType

import pytest
from rich.console import Console

from tune.budget.deadline import Deadline
from tune.runs.interrupts import Interrupts


class Terminal:
    """Stands for the user: `readline` waits until the test has typed something."""

    def __init__(self) -> None:
        self.typed, self.line, self.read = threading.Event(), "", threading.Event()

    def readline(self) -> str:
        self.typed.wait(10)
        self.read.set()
        return self.line

    def type(self, line: str) -> None:
        self.line = line
        self.typed.set()
        assert self.read.wait(10)


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        threading.Event().wait(0.01)
    return False


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_enter_finishes_with_what_is_there(console: Console) -> None:
    terminal, deadline = Terminal(), Deadline()
    with Interrupts(console, answers=terminal.readline) as interrupts, interrupts.end(deadline, finishes=True):
        signal.raise_signal(signal.SIGINT)
        assert "Enter" in shown(console) and not deadline.stop_all()  # the search goes on
        terminal.type("\n")
        assert until(lambda: deadline.finishing)
    assert deadline.over and not interrupts.terminated


def test_a_second_ctrl_c_stops(console: Console) -> None:
    terminal, deadline = Terminal(), Deadline()
    with Interrupts(console, answers=terminal.readline) as interrupts, interrupts.end(deadline, finishes=True):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert deadline.stopping and not deadline.over
        with pytest.raises(KeyboardInterrupt):  # a third one does not wait
            signal.raise_signal(signal.SIGINT)
        terminal.type("\n")
    assert not deadline.finishing


def test_the_end_of_the_input_is_no_answer(console: Console) -> None:
    terminal, deadline = Terminal(), Deadline()
    with Interrupts(console, answers=terminal.readline) as interrupts, interrupts.end(deadline, finishes=True):
        signal.raise_signal(signal.SIGINT)
        terminal.type("")
    assert not deadline.stop_all()


@pytest.mark.parametrize(
    ("number", "finishes", "lost", "terminated"),
    [
        (signal.SIGTERM, True, False, True),  # nobody is asked
        (signal.SIGINT, False, False, False),  # there is nothing to finish with
        (signal.SIGINT, True, True, False),  # Ray is gone
    ],
)
def test_what_stops_at_once(
    console: Console, number: signal.Signals, finishes: bool, lost: bool, terminated: bool
) -> None:
    deadline = Deadline()
    with Interrupts(console, lambda: lost, Terminal().readline) as interrupts, interrupts.end(deadline, finishes=finishes):
        signal.raise_signal(number)
    assert deadline.stopping and interrupts.terminated is terminated and shown(console) == ""


def test_without_a_terminal_the_first_ctrl_c_stops(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    deadline = Deadline()
    with Interrupts(console) as interrupts, interrupts.end(deadline, finishes=True):
        signal.raise_signal(signal.SIGINT)
    assert deadline.stopping


def test_where_nothing_runs_a_signal_is_an_interrupt_and_handlers_are_put_back(console: Console) -> None:
    def own(number: int, frame: FrameType | None) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        with Interrupts(console) as interrupts:
            with interrupts.end(Deadline(), finishes=True):
                pass
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            assert interrupts.terminated
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
