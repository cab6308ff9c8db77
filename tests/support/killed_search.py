"""A search that is killed and started again, and what must be the same as in one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from small_search import SMALL

Trials = list[dict[str, Any]]
ARGUMENTS = (
    "--data", "graph", "--trials", "6", "--seeds", "2", "--study", "s", "--grace", "1", "--reduction", "2", "--first", "base",
    "--save-seconds", "0", "--concurrency", "1", "--cpus-per-worker", "1", "--set", "train.memory_budget_mb=64",
)


def start(repository: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The search as a user starts it; its output goes to `home/log`."""
    settings = [part for setting in SMALL for part in ("--set", setting)]
    command = [sys.executable, str(repository / "tune" / "search.py"), *settings, *arguments]
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "120"}
    with (home / "log").open("a") as log:
        return subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, text=True)


def events(home: Path, study: str = "s") -> list[dict[str, Any]]:
    """Whole lines of the study's journal."""
    file = home / "results" / study / "journal.jsonl"
    if not file.exists():
        return []
    content = file.read_text()
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def run_until(search: subprocess.Popen[str], home: Path, lines: int, seconds: float = 300) -> bool:
    """Wait until the journal has so many lines; False if the search ended before."""
    deadline = time.monotonic() + seconds
    while search.poll() is None and time.monotonic() < deadline:
        if len(events(home)) >= lines:
            return True
        time.sleep(0.02)
    assert search.poll() is not None, (home / "log").read_text()
    return False


def finish(search: subprocess.Popen[str], home: Path, seconds: float = 300) -> int:
    """Wait for the end; returns the exit status."""
    try:
        return search.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        search.send_signal(signal.SIGKILL)
        search.wait()
        raise AssertionError((home / "log").read_text()) from None


def trials(home: Path, study: str = "s") -> Trials:
    """The records, without what depends on the clock."""
    found = json.loads((home / "results" / study / "trials.json").read_text())
    kept = ("number", "trial_id", "state", "params", "best_mrr", "best_epoch", "epochs", "curve")
    return [{name: trial[name] for name in kept} for trial in found]


def summary(home: Path, study: str = "s") -> dict[str, Any]:
    """What the study says of itself."""
    found: dict[str, Any] = json.loads((home / "results" / study / "summary.json").read_text())
    return found


def assert_nothing_twice(home: Path, study: str = "s") -> None:
    """The journal has each trial asked once, each epoch once, and nothing of a trial after its end; else it is paused."""
    told = events(home, study)
    asked = Counter(event["trial"] for event in told if event["event"] == "ask")
    ended = Counter(event["trial"] for event in told if event["event"] == "tell")
    assert set(asked.values()) == {1}
    assert set(ended.values()) <= {1}
    for name in asked:
        own = [event for event in told if event.get("trial") == name]
        assert own[-1]["event"] in ("tell", "pause")
        epochs = [event["epoch"] for event in own if event["event"] == "report"]
        assert epochs == list(range(1, len(epochs) + 1))


def assert_mlflow_is_whole(home: Path, study: str = "s") -> None:
    """One run a trial and one parent, none running, every epoch logged once."""
    client = MlflowClient(f"sqlite:///{home / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.study = '{study}'")
    names = Counter(run.data.tags.get("trial_id", run.data.tags["role"]) for run in runs)
    assert set(names.values()) == {1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    records = {trial["trial_id"]: trial for trial in trials(home, study)}
    logged = {run.data.tags["trial_id"]: run for run in runs if run.data.tags["role"] == "trial"}
    assert logged.keys() == records.keys()
    for name, run in logged.items():
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "mrr")]
        assert steps == list(range(1, records[name]["epochs"] + 1))
        assert run.data.tags["state"] == records[name]["state"]


def assert_as_unbroken(home: Path, unbroken: Path) -> None:
    """The study ended as one that was never interrupted: trials, winner and test figures to the last digit, nothing twice."""
    assert trials(home) == trials(unbroken)
    found, expected = summary(home), summary(unbroken)
    for key in ("trials", "best_validation_mrr", "structure_only_validation_mrr", "test", "seeds"):
        assert found[key] == expected[key], key
    assert_nothing_twice(home)
    assert_mlflow_is_whole(home)
    with sqlite3.connect(home / "results" / "s" / "optuna.db") as database:
        states = [state for (state,) in database.execute("select state from trials")]
    assert len(states) == len(trials(home))
    assert not {"RUNNING", "WAITING"} & set(states)
