"""Ctrl-C asks once and then stops; SIGTERM and SIGHUP stop; none with a traceback, and the handlers of before are put back."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console
from small_search import search_here, write_graph

from tune import pipeline
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
    assert deadline.over and interrupts.signal == signal.SIGINT


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
    ("number", "finishes", "lost"),
    [
        (signal.SIGTERM, True, False),  # nobody is asked
        (signal.SIGHUP, True, False),  # the terminal was closed
        (signal.SIGINT, False, False),  # there is nothing to finish with
        (signal.SIGINT, True, True),  # Ray is gone
    ],
)
def test_what_stops_at_once(console: Console, number: signal.Signals, finishes: bool, lost: bool) -> None:
    deadline = Deadline()
    with Interrupts(console, lambda: lost, Terminal().readline) as interrupts, interrupts.end(deadline, finishes=finishes):
        signal.raise_signal(number)
    assert deadline.stopping and interrupts.signal == number and shown(console) == ""


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_twice_stops_as_once(console: Console, again: signal.Signals) -> None:
    """Supervisors send it again and again; a closed terminal adds SIGHUP. Neither disturbs the end, whatever runs then."""
    deadline = Deadline()
    with Interrupts(console) as interrupts:
        with interrupts.end(deadline, finishes=True):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(again)
            assert deadline.stopping
        signal.raise_signal(again)
        with pytest.raises(KeyboardInterrupt):  # but a user who insists is heard
            signal.raise_signal(signal.SIGINT)
    assert interrupts.signal == signal.SIGTERM


def test_what_nohup_ignores_stays_ignored(console: Console) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        deadline = Deadline()
        with Interrupts(console) as interrupts, interrupts.end(deadline, finishes=True):
            signal.raise_signal(signal.SIGHUP)
            assert not deadline.stopping
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
            assert interrupts.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("by_ray", [False, True])
def test_a_signal_while_the_search_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int, by_ray: bool
) -> None:
    """Before the first trial there is no study to resume: the same command begins it."""
    def interrupted(*_: Any) -> None:
        if by_ray and number == signal.SIGTERM:  # Ray's own handler, while it starts
            raise SystemExit(number)
        signal.raise_signal(number)

    monkeypatch.setattr(pipeline, "make_plan", interrupted)
    write_graph(tmp_path / "graph")
    done = search_here(tmp_path, "--data", "graph", "--study", "s")
    assert done.returncode == status
    assert f"interrupted by {number.name}: run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
