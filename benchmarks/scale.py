"""What the head does for each event of a search, measured, and what follows for 1,000 trials on 100 nodes, simulated.

    python -m benchmarks.scale          # about ten minutes; writes results/scale.md and results/scale.json
    python -m benchmarks.scale --rehearse

Measured with the parts that a search uses: journal, sampler, rungs, ledger, MLflow by a server on loopback, Ray Tune's own
loop. The simulation is a closed queue: each trial trains an epoch, reports it, and waits until the driver, which does one thing
at a time, has dealt with it.
"""

from __future__ import annotations

import heapq
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import typer

REPOSITORY = Path(__file__).resolve().parents[1]
TRIALS, NODES, EPOCHS, METRICS = 1000, 100, 30, 12
Milliseconds = dict[str, float]


def quiet(seconds: list[float]) -> float:
    """Milliseconds that the fastest fifth of the calls stays below: other programs may run beside it."""
    return round(1000 * float(np.quantile(seconds, 0.2)), 3)


def times(action: Callable[[int], Any], count: int) -> float:
    """Duration of an action in milliseconds."""
    spent = []
    for number in range(count):
        began = time.perf_counter()
        action(number)
        spent.append(time.perf_counter() - began)
    return quiet(spent)


def numbers(epoch: int) -> dict[str, Any]:
    """A report, as long as a real one."""
    mrr = 0.1 + epoch / 1000
    known = {"epoch": epoch, "mrr": mrr, "best_mrr": mrr, "best_epoch": epoch, "time_total_s": 9.0 * epoch}
    return {**known, **{f"metric_{place}": 0.123456789 for place in range(METRICS - 3)}}


def long_history(space: Any, trials: int) -> list[dict[str, Any]]:
    """Events of a study with so many ended trials, at points drawn by chance: a third ran all epochs, the others four."""
    from tune.study.sampler import make_sampler
    from tune.study.searcher import StudySearch

    chance = StudySearch(space, sampler=make_sampler(0, kind="random"))
    first = {"name": "s", "tied": {}, "points": [], "known": [], "note": ""}
    events: list[dict[str, Any]] = [{"event": "study", **first, "at": 0.0}]
    for number in range(trials):
        drawn: Any = chance.suggest(f"past-{number}")
        name, last, level = drawn["name"], last_epoch(number), (number * 7919 % 1000) / 5000
        events.append({"event": "ask", "trial": name, "params": drawn["params"], "at": 0.0})
        said = [{"epoch": epoch, "seconds": 9.0 * epoch, "numbers": score(epoch, level)} for epoch in range(1, last + 1)]
        events += [{"event": "report", "trial": name, "at": 0.0, **item} for item in said[:-1]]
        ended = {"value": said[-1]["numbers"]["best_mrr"], "error": False, "diverged": False, "stopped": last < EPOCHS}
        events.append({"event": "tell", "trial": name, "at": 0.0, **ended, **said[-1]})
    return events


def score(epoch: int, level: float) -> dict[str, float]:
    """The numbers of a report of a trial that is better or worse than others."""
    return {**numbers(epoch), "mrr": 0.1 + level + epoch / 1000, "best_mrr": 0.1 + level + epoch / 1000}


def last_epoch(number: int) -> int:
    """At which a trial ends."""
    return EPOCHS if number % 3 == 0 else 4


def bookkeeping(folder: Path, trials: int, count: int) -> Milliseconds:
    """Journal (on the disk of `folder`), sampler, rungs and ledger, with nothing before and with a long history."""
    from imf_core.config import preset
    from tune.runs.ledger import Ledger
    from tune.runs.trial_folders import TrialFolders
    from tune.space.space import SearchSpace
    from tune.study.history import History
    from tune.study.journal import Journal
    from tune.study.outcome import TrialState
    from tune.study.records import TrialRecord
    from tune.study.schedule import make_scheduler
    from tune.study.searcher import StudySearch

    found: Milliseconds = {}
    space = SearchSpace.default(preset("paper"), ("structure", "image", "text", "fused"), {})
    past = long_history(space, trials)
    curve = tuple((epoch, 0.1 + epoch / 1000) for epoch in range(1, 14))
    for said, events in (("at the beginning", past[:1]), (f"after {trials} trials", past)):
        place = folder / said.replace(" ", "-")
        parts: dict[str, list[float]] = {}

        def timed(name: str, action: Callable[[], Any], parts: dict[str, list[float]] = parts) -> Any:
            began = time.perf_counter()
            done = action()
            parts.setdefault(name, []).append(time.perf_counter() - began)
            return done

        with Journal(place) as journal:
            history = History.of(events)
            known = [(trial.params, trial.end["value"]) for trial in history.trials.values() if trial.end]
            search = StudySearch(space, journal, known=known)
            records = [
                TrialRecord(trial.number, name, TrialState.COMPLETED, trial.params, 0.3, 13, 13, 99.0, numbers(13), curve=curve)
                for name, trial in history.trials.items()
            ]
            ledger = Ledger(place, journal, EPOCHS, TrialFolders(place), records=records)
            scheduler = make_scheduler("asha", EPOCHS, history=history)
            for number in range(count):
                config = timed("draw", lambda: search.suggest(f"ray-{number}"))  # noqa: B023
                trial = SimpleNamespace(
                    trial_id=f"ray-{number}", config=config, status="RUNNING", local_path=str(place), path=str(place)
                )
                scheduler.on_trial_add(SimpleNamespace(), trial)
                result: dict[str, Any] = {}
                for epoch in range(1, last_epoch(number) + 1):
                    result = {**score(epoch, number / 100), "training_iteration": epoch, "trial_id": trial.trial_id}
                    timed("journal, report", lambda: search.on_trial_result(trial.trial_id, result))  # noqa: B023
                    timed("rungs", lambda: scheduler.on_trial_result(SimpleNamespace(), trial, result))  # noqa: B023
                timed("journal, end", lambda: search.on_trial_complete(trial.trial_id, result))  # noqa: B023
                timed("ledger, end", lambda: ledger.on_trial_complete(1, [], trial))  # noqa: B023
        found |= {f"{name}, {said}": quiet(spent) for name, spent in parts.items()}
    found["journal, MB"] = round(sum(len(json.dumps(event)) + 1 for event in past) / 1e6, 2)
    return found


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A server as cluster/mlflow_head.sh starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2",
        "--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "artifacts"),
    ]
    os.environ.update({"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"})
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).read()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


def tracking(uri: str, folder: Path, earlier: int, count: int, behind: str = "") -> Milliseconds:
    """A trial's run begun, an epoch, thirty epochs at once, its end; with so many runs in the database `behind` already."""
    from mlflow.tracking import MlflowClient

    from tune.study.outcome import TrialState
    from tune.study.records import TrialRecord
    from tune.tracking.tracker import Tracker

    tracker = Tracker.open(uri, "scale", folder / "artifacts", "scale", {f"setting.{place}": place for place in range(60)})
    store = MlflowClient(behind) if behind else tracker.client  # past the server, which is slower
    for number in range(earlier):
        tags = {"mlflow.parentRunId": tracker.parent_id, "trial_id": f"old-{number}", "study": "scale"}
        store.create_run(tracker.experiment_id, tags=tags)
    params = {f"model.setting_{place}": 0.001 * place for place in range(25)}
    runs: list[str] = []

    def begin(number: int) -> None:
        started = tracker.start_trial(f"trial-{number:03d}", number, params)
        assert started is not None
        runs.append(started[0])

    found = {"begin": times(begin, count)}
    found["epoch"] = times(
        lambda number: tracker.log_epochs(runs[number % count], [(number + 1, numbers(1), time.time())]), 4 * count
    )
    many = [(epoch, numbers(epoch), time.time()) for epoch in range(100, 130)]
    found["30 epochs at once"] = times(lambda number: tracker.log_epochs(runs[number], many), count)
    record = TrialRecord(0, "trial-000", TrialState.COMPLETED, params, 0.3, 5, 9, 60.0)
    found["end"] = times(lambda number: tracker.end_trial(runs[number], record), count)
    tracker.finish()
    return found


_TUNE = r"""
import json, os, sys, time
from tune.environment import environment
environment("local")
os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = sys.argv[3]
import ray
import ray.tune as ray_tune
from ray.tune.execution.tune_controller import TuneController
trials, reports = int(sys.argv[1]), int(sys.argv[2])
saves = []
whole = TuneController.checkpoint
def checkpoint(self, *given, **more):
    began = time.perf_counter()
    done = whole(self, *given, **more)
    saves.append((len(self._trials), time.perf_counter() - began))
    return done
TuneController.checkpoint = checkpoint
def trial(config):
    for epoch in range(1, reports + 1):
        ray_tune.report({"epoch": epoch, "mrr": 0.1, **{f"metric_{place}": 0.1 for place in range(10)}})
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
space = {f"model.setting_{place}": ray_tune.uniform(0, 1) for place in range(20)}
class Clock(ray_tune.Callback):
    first = None
    def on_trial_start(self, *given, **more):
        Clock.first = Clock.first or time.perf_counter()
tuner = ray_tune.Tuner(
    ray_tune.with_resources(trial, {"CPU": 1}), param_space=space,
    tune_config=ray_tune.TuneConfig(num_samples=trials, max_concurrent_trials=4, reuse_actors=True),
    run_config=ray_tune.RunConfig(storage_path=sys.argv[4], name="t", verbose=0, callbacks=[Clock()]),
)
tuner.fit()
print("FOUND", json.dumps({"seconds": time.perf_counter() - Clock.first, "saves": saves}))
os._exit(0)
"""


def tune_loop(trials: int, reports: int, period: str) -> dict[str, Any]:
    """Ray Tune alone with trials that do nothing, in process namespaces of its own where that is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _TUNE, str(trials), str(reports), period, folder]
        if os.geteuid() == 0:
            inner = 'ip link set lo up && exec "$@"'
            command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inner, "sh", *command]
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HOME": folder, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    if not lines:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-4000:])
    found: dict[str, Any] = json.loads(lines[0].partition(" ")[2])
    return found


def tune_costs(trials: int) -> Milliseconds:
    """Of a report, of a trial, and of a snapshot of the experiment with few and with many trials."""
    few, many, longer = (tune_loop(count, reports, "1000")["seconds"] for count, reports in ((40, 1), (200, 1), (40, 101)))
    report = max(0.0, (longer - few) / (40 * 100))
    snapshots = tune_loop(trials, 1, "1")["saves"]
    late = [seconds for count, seconds in snapshots if count > 0.8 * trials and seconds > 0.001]
    early = [seconds for count, seconds in snapshots if count < 0.2 * trials and seconds > 0.001]
    return {
        "report": round(1000 * report, 2), "trial": round(1000 * max(0.0, (many - few) / 160 - report), 2),
        "snapshot, few trials": quiet(early or [0.0]), f"snapshot, {trials} trials": quiet(late or [0.0]),
    }


@dataclass(frozen=True)
class Driver:
    """Seconds that the driver takes.

    Args:
        report: for a report, without MLflow.
        begin, end: for a trial's beginning and end, with MLflow.
        write, write_more: for a write of an epoch to MLflow, and for each further epoch in it.
        write_seconds: least time between two writes of a trial; 0: each epoch.
        snapshot, period: for a snapshot of Tune, and how often.
    """

    report: float
    begin: float
    end: float
    write: float
    write_more: float = 0.0
    write_seconds: float = 0.0
    snapshot: float = 0.0
    period: float = 1.0


def simulate(driver: Driver, epoch_seconds: float, trials: int = TRIALS, slots: int = NODES, seed: int = 0) -> dict[str, float]:
    """Hours, share of the time that the driver is busy, and share of the workers' time spent waiting for it.

    Two of three trials are stopped after 4 of 30 epochs, as with early stopping; an epoch takes 0.7 to 1.3 times its mean.
    """
    rng = np.random.default_rng(seed)
    events: list[tuple[float, int, int, float, int]] = []  # time, trial, epoch (0: to begin), last write, epochs to write
    begun = 0
    for begun in range(min(slots, trials)):
        heapq.heappush(events, (0.0, begun, 0, -1e9, 0))
    begun += 1
    free_at = busy = waited = worked = writes = now = 0.0
    next_snapshot = driver.period
    while events:
        arrived, trial, epoch, wrote, more = heapq.heappop(events)
        start = max(arrived, free_at)
        while driver.snapshot and start >= next_snapshot:
            start += driver.snapshot
            busy += driver.snapshot
            next_snapshot = max(next_snapshot + driver.period, start)
        last = epoch == (EPOCHS if trial % 3 == 0 else 4)
        cost = driver.begin if epoch == 0 else driver.report
        if epoch and (last or start - wrote >= driver.write_seconds):
            cost, wrote, writes, more = cost + driver.write + driver.write_more * (more - 1), start, writes + 1, 0
        cost += driver.end if last else 0.0
        now = free_at = start + cost
        busy, waited = busy + cost, waited + now - arrived
        if last:
            if begun < trials:
                heapq.heappush(events, (now, begun, 0, -1e9, 0))
                begun += 1
            continue
        length = epoch_seconds * rng.uniform(0.7, 1.3)
        worked += length
        heapq.heappush(events, (now + length, trial, epoch + 1, wrote, more + 1))
    return {
        "hours": round(now / 3600, 3), "busy": round(busy / now, 3), "waiting": round(waited / (waited + worked), 3),
        "writes_per_second": round(writes / now, 1),
    }


def main(rehearse: Annotated[bool, typer.Option(help="small counts; writes nothing")] = False) -> None:
    """Measure, simulate, write results/scale.{json,md}."""
    from benchmarks.report_scale import write_scale

    trials, count = (40, 3) if rehearse else (TRIALS, 15)
    measured: dict[str, Any] = {"trials": trials}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measured["bookkeeping"] = bookkeeping(folder, trials, count)
        print(json.dumps(measured["bookkeeping"], indent=1), flush=True)
        (folder / "file").mkdir()
        measured["mlflow, database file"] = tracking(f"sqlite:///{folder / 'file.db'}", folder / "file", 0, count)
        with mlflow_server(folder) as uri:
            measured["mlflow, server"] = tracking(uri, folder, 0, count)
            behind = f"sqlite:///{folder / 'server.db'}"
            measured[f"mlflow, server with {trials} runs"] = tracking(uri, folder, trials, count, behind)
        print(json.dumps(measured, indent=1), flush=True)
    measured["tune"] = tune_costs(trials)
    print(json.dumps(measured["tune"], indent=1), flush=True)
    write_scale(measured, REPOSITORY / "results" if not rehearse else None)


if __name__ == "__main__":
    typer.run(main)
