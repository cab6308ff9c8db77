"""The Ray Tune callback that writes each trial to its MLflow run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.tune as ray_tune

from tune.runs.ledger import Ledger
from tune.study.history import DriverOnly, TrialHistory
from tune.study.outcome import name_of, trial_params
from tune.study.records import TrialRecord

if TYPE_CHECKING:
    from tune.tracking.tracker import Epoch, Tracker


@dataclass
class _Run:
    """A trial's run: its id, the last epoch that MLflow has, and when that was written (monotonic seconds)."""

    run_id: str
    logged: int
    written: float = -math.inf


class MlflowCallback(DriverOnly, ray_tune.Callback):
    """One child run a trial: settings at its start, its epochs, state and reason at its end.

    A trial that is retried or resumed goes on in its own run. What MLflow lacks follows from the history.

    Args:
        tracker: the study's open tracker.
        ledger: knows each trial's history, state and reason; the same object that Tune gets as a callback.
        seconds: least time between two writes of a trial's epochs; 0: each by itself. The driver waits for each write, so
            with many trials at a time the epochs of some seconds had better go together.
    """

    def __init__(self, tracker: Tracker, ledger: Ledger, seconds: float = 0.0) -> None:
        self.tracker, self.ledger, self.seconds = tracker, ledger, seconds
        self._runs: dict[str, _Run] = {}
        self._ended: set[str] = set()

    def settle(self) -> None:
        """End the runs of ended trials that a killed driver could not end."""
        for record in self.tracker.unsettled(self.ledger.records):
            self.end(record, self._history(record.trial_id))
        self._ended |= {record.trial_id for record in self.ledger.records}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Make the trial's run, or go on with it."""
        self._ended.discard(name_of(trial))
        self._start(name_of(trial), self._history(name_of(trial)).number, trial_params(trial))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Log the epochs that MLflow lacks, unless it is too early for the next write."""
        name, history = name_of(trial), self._history(name_of(trial))
        run = self._runs.get(name) or self._start(name, history.number, trial_params(trial))
        if run is not None and time.monotonic() - run.written >= self.seconds:
            self._log(run, history)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run, unless the trial is paused."""
        if (history := self._history(name_of(trial))).end is not None:
            self.end(self.ledger.close(trial, "TERMINATED"), history)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the trial's run, unless the searcher begins the trial again."""
        if (history := self._history(name_of(trial))).end is not None:
            self.end(self.ledger.close(trial, "ERROR"), history)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the trials of which Ray says nothing (time budget, Ctrl-C, paused in an earlier session) and those whose end
        could not be logged.
        """
        for record in self.ledger.end(trials):
            if record.trial_id not in self._ended:
                self.end(record, self._history(record.trial_id))

    def end(self, record: TrialRecord, history: TrialHistory) -> None:
        """Write the last epochs and the end of a trial.

        Args:
            history: has its epochs; those of the searched trial where the record is a copy of one.
        """
        run = self._runs.get(record.trial_id) or self._start(record.trial_id, record.number, record.params)
        if run is None:
            return
        self._log(run, history, last=True)
        if self.tracker.end_trial(run.run_id, record):
            self._ended.add(record.trial_id)

    def _history(self, name: str) -> TrialHistory:
        """What is known of a trial; of a run that an earlier session finished, nothing."""
        return self.ledger.history.trials.get(name) or TrialHistory(name, 0, {})

    def _start(self, name: str, number: int, params: Mapping[str, Any]) -> _Run | None:
        started = self.tracker.start_trial(name, number, params)
        if started is not None:
            self._runs[name] = _Run(*started)
        return self._runs.get(name)

    def _log(self, run: _Run, history: TrialHistory, last: bool = False) -> None:
        """Write the epochs that MLflow lacks; where that fails they are tried again with the next."""
        lacking = [_epoch(epoch, report) for epoch, report in history.reports.items() if epoch > run.logged]
        if lacking and self.tracker.log_epochs(run.run_id, lacking, always=last):
            run.logged, run.written = history.last_epoch, time.monotonic()


def _epoch(epoch: int, report: Mapping[str, Any]) -> Epoch:
    """A report as the tracker logs it; a number that was not finite marks the run."""
    return epoch, {**report["numbers"], **dict.fromkeys(report.get("non_finite", ()), math.nan)}, report["at"]
