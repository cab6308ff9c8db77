"""Ctrl-C, SIGTERM and a closed terminal end a command in order: what is worth keeping is kept, the status is that of shells."""

from __future__ import annotations

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoding
import pytest

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import main
from imf_core.commands.terminal import Signals
from imf_core.errors import Ended
from imf_core.interface import models as interface
from imf_core.prepare import encoding as extraction
from imf_core.train import fit

GRAPH = ["--set", "model.dim=8", "--set", "model.relation_dim=4", "--set", "train.max_epochs=40", "--set", "train.patience=40"]


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    """A graph of 30 entities in a ring, as a user brings it."""
    lines = [f"e{i}\tnext\te{(i + 1) % 30}\n" for i in range(30)]
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "train.tsv").write_text("".join(lines[3:]))
    (tmp_path / "ring" / "valid.tsv").write_text("".join(lines[:3]))
    return tmp_path / "ring"


@pytest.fixture
def imf(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command as a user runs it; returns its exit status."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["imf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def after(times: int, number: signal.Signals, action: Callable[..., Any]) -> Callable[..., Any]:
    """An action at whose call, after so many, the process receives a signal first."""
    calls = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == times + 1:
            signal.raise_signal(number)
        return action(*arguments, **named)

    return called


def test_sigterm_twice_keeps_the_best_epoch_and_its_weights_go_on(
    ring: Path, imf: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = ring.parent / "out", ring.parent / "more"
    with monkeypatch.context() as patch:
        patch.setattr(fit, "train_epoch", after(2, signal.SIGTERM, fit.train_epoch))
        patch.setattr(interface, "save_checkpoint", after(0, signal.SIGTERM, interface.save_checkpoint))  # while it is saved
        assert imf("train", out, "--data", ring, *GRAPH) == 143
    said = capsys.readouterr().out.splitlines()
    loaded = load_checkpoint(out)
    best, mrr = loaded.metrics["best_epoch"], loaded.metrics["validation"]["mrr"]
    assert best in (1, 2)
    told = f"best validation MRR {mrr:.4f} in epoch {best} (ended by SIGTERM after 2 epochs); checkpoint: {out}"
    assert said[-2] == told  # one line
    assert said[-1] == f"go on from its weights with: imf train NEW --from {out}"
    assert imf("train", more, "--from", out, "--set", "train.max_epochs=1") == 0
    assert load_checkpoint(more).metrics["best_epoch"] == 1


def test_ctrl_c_before_there_is_anything_to_keep(
    ring: Path, imf: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "train_epoch", after(0, signal.SIGINT, fit.train_epoch))
    assert imf("train", ring.parent / "out", "--data", ring, *GRAPH) == 130
    assert "interrupted by SIGINT: run the same command again" in capsys.readouterr().err
    assert not (ring.parent / "out").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("cache")
def test_what_was_encoded_before_the_terminal_was_closed_is_kept(
    graph: Path, models: tuple[str, str], imf: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "text_view", after(0, signal.SIGHUP, extraction.text_view))  # pictures are done by then
        assert imf("encode", graph, "--text", models[0], "--image", models[1]) == 129
    told = capsys.readouterr()
    assert "encoded now: 3 of 3" in told.out
    assert "interrupted by SIGHUP: run the same command again; features that were extracted are kept" in told.err
    said = encoding.run(graph, "--text", models[0], "--image", models[1])
    assert "encoded now: 0 of 3" in said and "encoded now: 4 of 4" in said


@pytest.mark.slow
def test_a_terminal_that_is_closed(ring: Path) -> None:
    """Nothing can be written to it any more, and its shell sends SIGHUP: the best epoch is kept all the same."""
    master, terminal = pty.openpty()
    code = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from imf_core.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", "out", "--data", "ring", *GRAPH, "--set", "train.max_epochs=100000",
         "--set", "train.patience=100000"],
        cwd=ring.parent, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(terminal)
    shown = b""
    while b"epoch   3" not in shown:
        shown += os.read(master, 4096)
    os.close(master)
    assert process.wait(60) == 129
    assert load_checkpoint(ring.parent / "out").metrics["best_epoch"] >= 1


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None
            with pytest.raises(Ended, match="SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # told again
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_ends_as_it_always_did() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Ray of another test may have left a handler here
    try:
        with Signals() as signals:
            context = multiprocessing.get_context("fork")
            begun = context.Event()
            child = context.Process(target=lambda: (begun.set(), time.sleep(60)))
            child.start()
            assert begun.wait(30)
            child.terminate()
            child.join(30)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert child.exitcode == -signal.SIGTERM and signals.received is None
