"""The live table: what it says of running and waiting trials, and that a log file sees nothing of it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tune.budget.deadline import Deadline
from tune.runs.ledger import Ledger
from tune.runs.terminal import LiveTable, TrialLines
from tune.runs.trial_folders import TrialFolders
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def trial(name: str, status: str) -> Any:
    return SimpleNamespace(trial_id=name, status=status, config={"name": name, "params": {}})


def ledger_of(folder: Path, *ended: TrialRecord, deadline: Deadline | None = None) -> Ledger:
    """Of four trials: `trial-002` has reported its third epoch."""
    history = History()
    for number in range(4):
        history.ask(f"trial-{number:03d}", {})
    history.report("trial-002", {"epoch": 3, "best_mrr": 0.25, "time_total_s": 75.0})
    return Ledger(folder, history, 5, TrialFolders(folder), deadline, ended)


def shown(table: LiveTable, trials: list[Any]) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table.render(trials))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def ended(number: int, mrr: float, at: float) -> TrialRecord:
    return TrialRecord(number, f"trial-{number:03d}", TrialState.COMPLETED, {}, mrr, 1, 2, 10.0, ended=at)


def test_it_says_what_runs_what_is_best_and_what_time_is_left(tmp_path: Path) -> None:
    clock = Clock()
    ledger = ledger_of(tmp_path)
    table = LiveTable(Console(file=io.StringIO()), ledger, 10, {"CPU": 1.0}, dict, clock)
    running = [trial("trial-002", "RUNNING"), trial("trial-003", "RUNNING")]
    text = shown(table, running)
    assert "0 of 10 trials ended" in text and "time left not known yet" in text
    assert "trial-002" in text and "0.2500" in text and "1m15s" in text
    for record in (ended(0, 0.2, 1030.0), ended(1, 0.31, 1060.0)):
        ledger.add(record)
    clock.now = 1060.0
    text = shown(table, [*running, trial("trial-001", "TERMINATED")])
    assert "2 of 10 trials ended, best MRR 0.3100, 1m00s so far, about 4m00s left" in text  # thirty seconds each
    assert "trial-001" not in text


def test_a_running_trial_shows_its_epoch_of_how_many_and_what_sets_it_apart(tmp_path: Path) -> None:
    history = History()
    for number in range(3):
        params = {"train.lr": 0.001 * (number + 1), "model.contrastive_weight": 0.1 * (number + 1), "train.loss": "ce"}
        history.ask(f"trial-{number:03d}", params)
    history.report("trial-001", {"epoch": 3, "best_mrr": 0.25, "time_total_s": 75.0})
    ledger = Ledger(tmp_path, history, 30, TrialFolders(tmp_path))
    for width, columns in ((110, ["lr", "contrastive_weight"]), (55, ["lr"]), (45, [])):
        table = LiveTable(Console(file=io.StringIO(), width=width), ledger, 3, {}, dict)
        _, head, line, *_ = shown(table, [trial("trial-001", "RUNNING")]).splitlines()
        assert head.split() == ["trial", "epoch", "best", "MRR", "time", *columns]
        assert line.split() == ["trial-001", "running", "3/30", "0.2500", "1m15s", *["0.002", "0.2"][: len(columns)]]


def test_finalising_shows_which_run_it_is_at_and_the_time_left(tmp_path: Path) -> None:
    clock = Clock()
    history = History()
    for number, name in enumerate(("t-seed-0", "t-seed-1", "t-without-text")):
        history.ask(name, {"run": name}, number=number)
    ledger = Ledger(tmp_path, history, 10, TrialFolders(tmp_path))
    table = LiveTable(Console(file=io.StringIO()), ledger, 3, {}, dict, clock, finals=True)
    lines = TrialLines(Console(file=io.StringIO()), ledger, 3, clock=clock)
    running = [trial("t-seed-0", "RUNNING")]
    assert "finalising: run 1 of 3, 0s so far, time left not known yet" in shown(table, running)
    history.report("t-seed-0", {"epoch": 5, "best_mrr": 0.25, "time_total_s": 20.0})
    clock.now += 20
    assert "finalising: run 1 of 3, 20s so far, about 1m40s left" in shown(table, running)  # 2.5 runs of 40 seconds
    history.tell("t-seed-0", {"epoch": 10, "best_mrr": 0.3, "time_total_s": 40.0})
    clock.now += 20
    ledger.add(TrialRecord(0, "t-seed-0", TrialState.COMPLETED, {"run": "t-seed-0"}, 0.3, 1, 10, 40.0, ended=clock.now))
    assert "finalising: run 2 of 3, 40s so far, about 1m20s left" in shown(table, [trial("t-seed-1", "RUNNING")])
    lines.on_trial_complete(1, [], running[0])
    assert "1 of 3: t-seed-0 completed after 10 epochs, 40 s: MRR 0.3000 in epoch 1; about 1m20s left" in written(lines.console)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_budget_counts_where_it_is_nearer(tmp_path: Path) -> None:
    clock = Clock()
    ledger = ledger_of(tmp_path, deadline=Deadline(90.0, clock=clock))
    table = LiveTable(Console(file=io.StringIO()), ledger, 100, {"CPU": 1.0}, dict, clock)
    clock.now = 1060.0
    ledger.add(ended(0, 0.2, 1030.0))
    assert "about 30s left" in shown(table, [])
    clock.now = 1200.0
    assert "about 0s left" in shown(table, [])


def test_it_says_why_a_trial_waits(tmp_path: Path) -> None:
    clock = Clock()
    free = {"CPU": 1.0}
    table = LiveTable(Console(file=io.StringIO()), ledger_of(tmp_path), 3, {"CPU": 2.0}, lambda: free, clock, shared=True)
    waiting = [trial("trial-000", "PENDING")]
    assert "waits" not in shown(table, waiting)  # that is how every trial begins
    clock.now += 6
    text = shown(table, waiting)
    assert "trial-000 waits for resources: it needs 2 CPU, 1 free; other programs of this cluster hold the rest" in text
    table.shared = False  # Ray of this search alone: there are no other programs
    text = " ".join(shown(table, waiting).split())
    assert "1 free; processes of ended trials, which are about to exit, hold the rest" in text and "cluster" not in text
    assert "1 running trial(s) hold the rest" in shown(table, [*waiting, trial("trial-001", "RUNNING")])
    free["CPU"] = 2.0
    assert "trial-000 waits for its process to start" in shown(table, waiting)
    assert "waits" not in shown(table, [trial("trial-000", "RUNNING")])


def test_a_log_file_sees_nothing_of_it_and_a_terminal_gets_it_back(tmp_path: Path) -> None:
    file = io.StringIO()
    with LiveTable(Console(file=file), ledger_of(tmp_path), 3, {}, dict) as table:
        table.on_step_end(1, [trial("trial-000", "RUNNING")])
    assert file.getvalue() == ""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    try:
        with LiveTable(console, ledger_of(tmp_path), 3, {}, dict) as table:
            table.on_step_end(1, [trial("trial-000", "RUNNING")])
            console.print("a trial ended")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    written = screen.getvalue()
    assert "trial-000" in written and "a trial ended" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


def test_what_stays_in_the_driver_is_nothing_in_rays_snapshots(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    table = LiveTable(Console(file=io.StringIO()), ledger, 3, {}, dict)
    lines = TrialLines(Console(file=io.StringIO()), ledger, 3)
    assert [copy.copy(part) for part in (table, lines, ledger, ledger.history, ledger.deadline)] == [None] * 5


@pytest.mark.parametrize(("gpus", "line"), [(0.0, ""), (0.25, "a GPU that up to 4 trials share"), (2.0, "2 GPU")])
def test_a_trial_that_trains_on_a_gpu_says_so_first(tmp_path: Path, gpus: float, line: str) -> None:
    file = io.StringIO()
    TrialLines(Console(file=file), ledger_of(tmp_path), 3, gpus).on_trial_start(1, [], trial("trial-002", "RUNNING"))
    assert file.getvalue().strip() == (f"trial-002 starts on {line}" if line else "")
