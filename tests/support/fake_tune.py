"""Ray Tune's loop without Ray: it drives searcher, scheduler, ledger, MLflow callback and reporter, and can be killed anywhere.

The order of calls is that of `ray.tune.execution.tune_controller.TuneController`. What outlives a kill is on the disk (journal,
`trials.json`, the trials' folders) and in the fake tracker, which stands for MLflow's server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.search import Searcher

from imf_core.config import Config
from imf_core.runtime import Shard
from tune.budget.deadline import Deadline
from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.runs.trial_folders import TrialFolders
from tune.space.space import SearchSpace
from tune.study.history import Event, History
from tune.study.journal import JOURNAL_FILE, TRIALS_DIR, Journal, read_events
from tune.study.outcome import OUTCOME_FILE, TrialState, name_of, trial_params
from tune.study.proposals import Proposals
from tune.study.race import MOST_PAUSED, Race, rungs_of
from tune.study.race_search import search_of
from tune.study.records import TrialRecord, TrialsFile
from tune.study.sampler import make_sampler
from tune.study.schedule import make_scheduler
from tune.tracking.tracker import RUN_STATUS, Epoch
from tune.trial.reporter import Reporter

SPACE = SearchSpace.from_values(
    {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dim": {"low": 16, "high": 256}}, Config(), ("structure",)
)
CLOCK_KEYS = ("at", "pid", "seconds")


class Killed(BaseException):
    """Stands for a kill -9 of the driver."""


@dataclass(frozen=True)
class Curve:
    """How a trial's training goes.

    Args:
        values: validation MRR by epoch; it ends by itself after the last.
        fault: `died`: its worker dies at the epoch `at`, once; `failed`: it raises there, always; `diverged`: it raises
            DivergedError there; `nan`: it reports NaN there; `reset`: the worker of an ended trial dies while it takes this one
            over, once; `resets`: each does.
        at: epoch of the fault, from 1.
        save_every: epochs between two saves of its training state.
    """

    values: tuple[float, ...]
    fault: str = ""
    at: int = 1
    save_every: int = 1


@dataclass
class FakeTracker:
    """MLflow's server, as `tune.tracking.tracker.Tracker` uses it: it outlives the driver."""

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def reopen(self) -> None:
        """What `Tracker.open` does to runs that a killed driver left."""
        for run in self.runs.values():
            if run["status"] == "RUNNING":
                run["status"] = "KILLED"

    def start_trial(self, trial_id: str, number: int, params: Mapping[str, Any]) -> tuple[str, int]:
        run = self.runs.setdefault(trial_id, {"epochs": [], "state": "", "number": number, "params": dict(params)})
        run["status"] = "RUNNING"
        self.calls.append(("start", trial_id))
        return trial_id, max(run["epochs"], default=0)

    def log_epochs(self, run_id: str, epochs: Sequence[Epoch], *, always: bool = False) -> bool:
        self.runs[run_id]["epochs"] += [epoch for epoch, _, _ in epochs]
        self.calls.append(("log", run_id))
        return True

    def end_trial(self, run_id: str, record: TrialRecord) -> bool:
        self.runs[run_id] |= {"status": RUN_STATUS[record.state], "state": str(record.state)}
        self.calls.append(("end", run_id))
        return True

    def unsettled(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        return [
            record for record in records if (run := self.runs.get(record.trial_id))
            and (run["status"] != RUN_STATUS[record.state] or run["state"] == "")
        ]


class FakeTune:
    """A study of a few trials, run in this process: as often as it is killed, it goes on from its journal.

    Args:
        folder: of the study.
        curves: of the trials, by their number.
        concurrency: trials at a time.
        scheduler: `race`, `asha` or `none`.
        seconds: least time between two writes to the tracker.
        options: of `make_scheduler`, or of `rungs_of` and `Race`.
    """

    def __init__(
        self, folder: Path, curves: Sequence[Curve], concurrency: int = 1, scheduler: str = "asha", seconds: float = 0.0,
        startup: int = 3, **options: Any,
    ) -> None:
        self.folder, self.curves, self.concurrency, self.seconds, self.startup = folder, curves, concurrency, seconds, startup
        self.scheduler = {"kind": scheduler, "max_epochs": max(len(curve.values) for curve in curves), **options}
        self.race = None
        if scheduler == "race":
            most_paused = options.pop("most_paused", MOST_PAUSED)
            rungs = rungs_of(self.scheduler["max_epochs"], options.get("grace"), options.get("step", 3.0))
            self.race = Race(rungs, options.get("reduction", 3.0), most_paused)
            self.scheduler = {"kind": "none", "max_epochs": self.scheduler["max_epochs"]}
        self.tracker, self.died, self.sessions = FakeTracker(), set[str](), 0

    def run(self, kill_at: int | None = None) -> bool:
        """A session of the driver.

        Args:
            kill_at: the driver is killed after so many calls and events of this session; None: never.

        Returns:
            whether the study came to its end.
        """
        calls = 0

        def tick(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                raise Killed

        self.sessions += 1
        with Journal(self.folder) as journal:
            if not journal.events:
                journal.append("study", name="s")
            journal.append("session", trials=len(self.curves))
            try:
                self.records = _Driver(self, journal, tick).run()
            except Killed:
                return False
        return True

    def events(self) -> list[Event]:
        """The journal without sessions and without what depends on the clock."""
        events = [event for event in read_events(self.folder / JOURNAL_FILE)[0] if event["event"] != "session"]
        return [{key: value for key, value in event.items() if key not in CLOCK_KEYS} for event in events]

    def train(self, trial: Any, report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """The worker of a trial: one epoch at each step. It raises where the training fails."""
        name, known = trial.config["name"], int(trial.config.get("known", 0))
        curve, trial_dir = self.curves[int(name[-3:])], self.folder / TRIALS_DIR / name
        trial_dir.mkdir(parents=True, exist_ok=True)
        if (trial_dir / OUTCOME_FILE).exists():
            if "diverged" in (trial_dir / OUTCOME_FILE).read_text():
                raise ArithmeticError("diverged")
            (trial_dir / OUTCOME_FILE).unlink()
        reporter = Reporter(trial_dir, report, {"num_parameters": 7}, Shard())
        reporter.catch_up(known)
        yield
        state = trial_dir / "state" / "epoch"
        until = min(trial.config.get("until", len(curve.values)), len(curve.values))
        for epoch in range((int(state.read_text()) if state.exists() else 0) + 1, until + 1):
            if epoch == curve.at and curve.fault == "died" and name not in self.died:
                self.died.add(name)
                raise ConnectionError("the worker died")
            if epoch == curve.at and curve.fault in ("failed", "diverged"):
                _write_outcome(trial_dir, curve.fault, epoch - 1)
                raise ArithmeticError(curve.fault)
            values = [math.nan if curve.fault == "nan" and curve.at == number else curve.values[number - 1]
                      for number in range(1, epoch + 1)]
            best = values[-1] if math.isnan(values[-1]) else max(values)
            numbers = {"epoch": epoch, "mrr": values[-1], "best_mrr": best, "best_epoch": values.index(max(values)) + 1}
            reporter(SimpleNamespace(epoch=epoch, flat=lambda numbers=numbers: numbers))  # type: ignore[arg-type]
            if epoch % curve.save_every == 0 or epoch == until:
                state.parent.mkdir(exist_ok=True)
                state.write_text(str(epoch))
            yield
        if until < len(curve.values):
            return  # paused
        if "until" in trial.config:
            reporter.finish()
        (trial_dir / "best").mkdir(exist_ok=True)
        _write_outcome(trial_dir, "completed", len(curve.values))


class _Driver:
    """One session: the parts that `tune.runs.runner` puts together, and Tune's loop around them."""

    MAX_FAILURES = 1

    def __init__(self, study: FakeTune, journal: Journal, tick: Callable[..., None]) -> None:
        self.study, self.tick = study, tick
        study.tracker.reopen()
        self.search = search_of(
            SPACE, journal, study.race, Proposals(SPACE, 0, "tpe", study.startup),
            sampler=make_sampler(0, study.startup), points=[{"train.lr": 0.01}],
        )
        self.scheduler = make_scheduler(**study.scheduler, history=journal)
        folders = TrialFolders(study.folder / TRIALS_DIR, keep=2)
        self.ledger = Ledger(
            study.folder, journal, study.scheduler["max_epochs"], folders, Deadline(), TrialsFile(study.folder).read()
        )
        logged = MlflowCallback(study.tracker, self.ledger, study.seconds)  # type: ignore[arg-type]
        logged.settle()
        self.callbacks = (self.ledger, logged)
        self.search.left = len(study.curves) - len(self.ledger.records)
        self.trials: list[Any] = []
        journal.follow(_after(len(journal.events), tick))

    def run(self) -> list[TrialRecord]:
        """Ask, train an epoch of each trial in turn, until none is left."""
        while True:
            while len(self._active()) < self.study.concurrency:
                trial_id = f"ray-{self.study.sessions}-{len(self.trials)}"
                config = self.search.suggest(trial_id)
                if config is None or config == Searcher.FINISHED:
                    break
                trial = SimpleNamespace(trial_id=trial_id, config=config, status="PENDING")
                trial.last_result, trial.failures, trial.queue = {}, 0, []
                self.trials.append(trial)
                self.scheduler.on_trial_add(None, trial)
            active = self._active()
            if not active:
                break
            for trial in active:
                self._step(trial)
        self._tell("experiment_end")
        self.search.end_unfinished()
        return self.ledger.end([])

    def _active(self) -> list[Any]:
        return [trial for trial in self.trials if trial.status in ("PENDING", "RUNNING")]

    def _tell(self, event: str, **info: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, f"on_{event}")(trials=self.trials, **({"iteration": 0} if info else {}), **info)
            self.tick()

    def _step(self, trial: Any) -> None:
        """An epoch of a trial, or its start; then every result that has arrived."""
        if trial.status == "PENDING":
            name, fault = trial.config["name"], self.study.curves[int(trial.config["name"][-3:])].fault
            if fault == "resets" or (fault == "reset" and name not in self.study.died):
                self.study.died.add(name)
                trial.status = "RUNNING"
                for failed in ("its actor", "the task `reset` of that actor"):  # one death, of which Tune hears twice
                    self._fail(trial, ConnectionError(failed))
                return
            trial.worker = self.study.train(trial, trial.queue.append)
            self._tell("trial_start", trial=trial)
            trial.status = "RUNNING"
        try:
            ended = next(trial.worker, "ended") == "ended"
        except (ConnectionError, ArithmeticError) as error:
            self._drain(trial)
            if trial.status == "RUNNING":
                self._fail(trial, error)
            return
        self._drain(trial)
        if ended and trial.status == "RUNNING":
            trial.last_result["done"] = True  # Tune repeats the last result, and no scheduler is asked
            self._complete(trial)

    def _drain(self, trial: Any) -> None:
        while trial.queue and trial.status == "RUNNING":
            result = {**trial.queue.pop(0), "time_total_s": 1.0, "training_iteration": 1, "trial_id": trial.trial_id}
            stop = self.scheduler.on_trial_result(None, trial, result) == "STOP"
            if stop:
                result["done"] = True
            else:
                self.search.on_trial_result(trial.trial_id, result)
            self._tell("trial_result", trial=trial, result=result)
            trial.last_result = result
            if stop:
                self._complete(trial)

    def _complete(self, trial: Any) -> None:
        trial.status = "TERMINATED"
        self.scheduler.on_trial_complete(None, trial, trial.last_result)
        self.search.on_trial_complete(trial.trial_id, result=trial.last_result)
        self._tell("trial_complete", trial=trial)

    def _fail(self, trial: Any, error: Exception) -> None:
        trial.failures += 1
        self.scheduler.on_trial_error(None, trial)
        if trial.status == "RUNNING" and trial.failures <= self.MAX_FAILURES:
            trial.status = "PENDING"
            self.trials.remove(trial)
            self.trials.append(trial)
            self.scheduler.on_trial_add(None, trial)
            self._tell("trial_recover", trial=trial)
            return
        trial.status = "ERROR"
        self.search.on_trial_complete(trial.trial_id, error=True)
        self._tell("trial_error", trial=trial)


class TuneCalls:
    """Tune's calls for trials that a test makes up: the searcher's entries in the history, then the callbacks.

    Args:
        history: of the trials.
        callbacks: in Tune's order.
        trials: Ray's; each has `trial_id` and `config`.
    """

    def __init__(self, history: History, callbacks: Sequence[Any], trials: Sequence[Any] = ()) -> None:
        self.history, self.callbacks, self.trials = history, callbacks, list(trials)

    def start(self, *trials: Any) -> None:
        """Trials are asked for, unless they were, and begin."""
        for trial in trials:
            if name_of(trial) not in self.history.trials:
                self.history.ask(name_of(trial), trial_params(trial))
            self._call("trial_start", trial)

    def report(self, trial: Any, *values: float, first: int = 1, stop: bool = False, **more: Any) -> None:
        """An epoch for each MRR; with `stop` the scheduler says stop at the last."""
        best, best_epoch = math.nan, None
        for epoch, mrr in enumerate(values, start=first):
            if math.isfinite(mrr) and not mrr <= best:
                best, best_epoch = mrr, epoch
            result = {"epoch": epoch, "mrr": mrr, "best_mrr": best, "best_epoch": best_epoch, "time_total_s": 2.0 * epoch}
            self.result(trial, {**result, **more}, stop and epoch == first + len(values) - 1)

    def result(self, trial: Any, result: dict[str, Any], stop: bool = False) -> None:
        """One report."""
        trial.last_result = {"training_iteration": 1, "pid": 3, "config": trial.config, "done": stop, **result}
        if name_of(trial) not in self.history.trials:
            self.history.ask(name_of(trial), trial_params(trial))
        if not stop:
            self.history.report(name_of(trial), trial.last_result)
        self._call("trial_result", trial, result=trial.last_result)

    def recover(self, trial: Any) -> None:
        """Its worker died; it is started again."""
        self._call("trial_recover", trial)

    def complete(self, trial: Any) -> None:
        """It ends by itself, or the scheduler has stopped it."""
        self.history.tell(name_of(trial), getattr(trial, "last_result", None))
        self._call("trial_complete", trial)

    def error(self, trial: Any) -> None:
        """It failed for good."""
        self.history.tell(name_of(trial), error=True)
        self._call("trial_error", trial)

    def end(self) -> None:
        """The search ends."""
        for callback in self.callbacks:
            callback.on_experiment_end(trials=self.trials)

    def _call(self, event: str, trial: Any, **info: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, f"on_{event}")(iteration=0, trials=self.trials, trial=trial, **info)


def _after(events: int, tick: Callable[..., None]) -> Callable[..., None]:
    """A listener that counts only the events that come after so many."""
    seen = 0

    def listen(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen > events:
            tick()

    return listen


def _write_outcome(trial_dir: Path, state: str, epochs: int) -> None:
    values = {"state": str(TrialState(state)), "reason": f"it {state}", "error_type": None, "epochs": epochs}
    (trial_dir / OUTCOME_FILE).write_text(json.dumps(values))
