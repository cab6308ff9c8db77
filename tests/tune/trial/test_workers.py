"""Trials of several workers under Ray Train: early stops give their CPUs back, a killed or silent worker costs nobody else
(cases TRAIN-1, TRAIN-2, TRAIN-4 and TRAIN-6).

Two Ray clusters on one machine disturb each other's state API: these tests run alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_search import SMALL, run_search, write_graph

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def trials(home: Path) -> list[dict]:
    return json.loads((home / "results" / "s" / "trials.json").read_text())


@pytest.mark.parametrize("scheduler", ["asha", "race"])
def test_six_trials_of_two_workers_all_end_with_early_stops(repository: Path, tmp_path: Path, scheduler: str) -> None:
    """TRAIN-1: a stopped group leaves nothing behind for which a later trial would wait. TRAIN-2: each begins at epoch 1.

    In a race a group ends where its trial pauses, and another one goes on from its state.
    """
    write_graph(tmp_path / "graph")
    done = run_search(
        repository,
        tmp_path,
        "--data",
        "graph",
        "--workers",
        "2",
        "--trials",
        "6",
        "--seeds",
        "1",
        "--study",
        "s",
        "--grace",
        "1",
        "--reduction",
        "2",
        "--scheduler",
        scheduler,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    states = [trial["state"] for trial in trials(tmp_path)]
    assert len(states) == 6
    assert "pruned" in states  # with ASHA its workers were stopped from outside, and the next trial found their CPUs free
    assert set(states) <= {"pruned", "completed"}
    for trial in trials(tmp_path):
        assert [epoch for epoch, _ in trial["curve"]] == list(range(1, trial["epochs"] + 1))


@pytest.mark.parametrize("every_time", [False, True])
def test_a_killed_worker_costs_its_own_trial_at_most(repository: Path, tmp_path: Path, every_time: bool) -> None:
    """TRAIN-6. Killed once, the trial goes on from its last save and counts each epoch once; killed always, it alone fails."""
    write_graph(tmp_path / "graph")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [
        sys.executable,
        str(repository / "tune" / "search.py"),
        *settings,
        "--set",
        "train.max_epochs=30",
        "--set",
        "train.patience=30",
        "--data",
        "graph",
        "--workers",
        "2",
        "--trials",
        "2",
        "--seeds",
        "1",
        "--study",
        "s",
        "--scheduler",
        "none",
        "--save-seconds",
        "0",
    ]
    environment = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "120"}
    with (tmp_path / "log").open("w") as log:
        search = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    killed: dict[str, set[int]] = {}
    deadline = time.monotonic() + 600
    first: str | None = None
    while search.poll() is None and time.monotonic() < deadline:
        for file in sorted((tmp_path / "results" / "s" / "trials").glob("*/reported.json")):
            said = json.loads(file.read_text())
            first = first or file.parent.name
            again = every_time or not killed
            if file.parent.name == first and said["epoch"] >= 3 and again and said["pid"] not in killed.get(first, set()):
                killed.setdefault(first, set()).add(said["pid"])
                os.kill(said["pid"], signal.SIGKILL)  # rank 0 of the first trial, by the pid it wrote itself
        time.sleep(0.05)
    assert search.wait(timeout=10) == 0, (tmp_path / "log").read_text()
    by_id = {trial["trial_id"]: trial for trial in trials(tmp_path)}
    assert len(by_id) == 2
    hit = by_id.pop(str(first))
    (other,) = by_id.values()
    assert other["state"] == "completed"
    assert other["retries"] == 0
    assert len(killed[str(first)]) == (2 if every_time else 1)
    if every_time:
        assert hit["state"] == "failed"
        assert hit["retries"] == 1
        assert hit["reason"]
    else:
        assert (hit["state"], hit["retries"], hit["epochs"]) == ("completed", 1, 30)
        assert [epoch for epoch, _ in hit["curve"]] == list(range(1, 31))


def test_a_worker_that_says_nothing_more_ends_its_trial(repository: Path, tmp_path: Path) -> None:
    """TRAIN-4: rank 0 of the first trial is halted; rank 1 gives up after 20 s, the trial fails, the next one is trained."""
    write_graph(tmp_path / "graph")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [
        sys.executable, str(repository / "tune" / "search.py"), *settings, "--data", "graph", "--workers", "2", "--trials", "2",
        "--seeds", "1", "--study", "s", "--scheduler", "none", "--max-failures", "0", "--concurrency", "1",
    ]
    environment = {**os.environ, "HOME": str(tmp_path), "COLUMNS": "120", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "20"}
    with (tmp_path / "log").open("w") as log:
        search = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    halted: int | None = None
    deadline = time.monotonic() + 600
    try:
        while search.poll() is None and time.monotonic() < deadline:
            for file in (tmp_path / "results" / "s" / "trials").glob("*/reported.json"):
                said = json.loads(file.read_text())
                if halted is None and said["epoch"] >= 2:
                    halted = int(said["pid"])
                    os.kill(halted, signal.SIGSTOP)
            time.sleep(0.05)
        assert search.wait(timeout=10) == 0, (tmp_path / "log").read_text()
    finally:
        if halted is not None and Path(f"/proc/{halted}").exists():
            os.kill(halted, signal.SIGKILL)
    states = sorted(trial["state"] for trial in trials(tmp_path))
    assert states == ["completed", "failed"]
    (failed,) = [trial for trial in trials(tmp_path) if trial["state"] == "failed"]
    assert failed["reason"] and failed["retries"] == 0
