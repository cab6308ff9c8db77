"""The Ray Tune callback that writes each trial to its MLflow run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ray.tune as ray_tune

from tune.runs.ledger import Ledger
from tune.study.history import TrialHistory
from tune.study.outcome import name_of, reported_numbers, trial_params
from tune.study.records import TrialRecord

if TYPE_CHECKING:
    from tune.tracking.tracker import Epoch, Tracker


class MlflowCallback(ray_tune.Callback):
    """One child run a trial: settings at its start, its epochs, state and reason at its end.

    A trial that is retried or resumed goes on in its own run; an epoch is logged once. Place it after the ledger or before.

    Args:
        tracker: the study's open tracker.
        ledger: knows each trial's number, state and reason; the same object that Tune gets as a callback.
        seconds: least time between two writes of a trial's epochs; 0: each by itself. The driver waits for each write, so
            with many trials at a time the epochs of some seconds had better go together.
        history: trials of earlier sessions by name; epochs of theirs that were not written any more are written first.
    """

    def __init__(
        self, tracker: Tracker, ledger: Ledger, seconds: float = 0.0, history: Mapping[str, TrialHistory] | None = None
    ) -> None:
        self.tracker, self.ledger, self.seconds = tracker, ledger, seconds
        self._history = history or {}
        self._runs: dict[str, str] = {}
        self._logged: dict[str, int] = {}
        self._waiting: dict[str, list[Epoch]] = {}
        self._wrote: dict[str, float] = {}
        self._ended: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended.discard(name_of(trial))
        self._start(trial, trials)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Log the epoch, or keep it for the next write."""
        name = name_of(trial)
        if name not in self._runs:
            self._start(trial, trials)
        epoch = int(result.get("epoch", result.get("training_iteration", 0)))
        waiting = self._waiting.setdefault(name, [])
        if epoch > (waiting[-1][0] if waiting else self._logged.get(name, 0)):
            waiting.append((epoch, reported_numbers(result), time.time()))
        if time.monotonic() - self._wrote.get(name, -self.seconds) >= self.seconds:
            self._flush(name)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ledger.number_of(trial, trials)
        self._end(trial, self.ledger.close(trial, "TERMINATED"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ledger.number_of(trial, trials)
        self._end(trial, self.ledger.close(trial, "ERROR"))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the trials of which Tune says nothing (time budget, Ctrl-C) and those whose end could not be logged."""
        ended = {record.trial_id: record for record in self.ledger.end(trials)}
        for trial in trials:
            if name_of(trial) in ended and name_of(trial) not in self._ended:
                self._end(trial, ended[name_of(trial)])

    def adopt(self, record: TrialRecord, history: TrialHistory | None) -> None:
        """Write the run of a record that Tune has no trial of, with the epochs that the journal knows."""
        trial = SimpleNamespace(trial_id=record.trial_id, config=record.params)
        if history is not None:
            self._history = {**self._history, record.trial_id: history}
        self._end(trial, record)

    def _start(self, trial: Any, trials: list[Any]) -> str | None:
        name, number = name_of(trial), self.ledger.number_of(trial, trials)
        started = self.tracker.start_trial(name, number, trial_params(trial))
        if started is None:
            return self._runs.get(name)
        self._runs[name], self._logged[name] = started
        if name in self._history:
            reports = sorted(self._history[name].reports.items())
            lost: list[Epoch] = [(epoch, said["numbers"], said["at"]) for epoch, said in reports if epoch > started[1]]
            waiting = self._waiting.get(name, [])
            self._waiting[name] = [*lost, *(item for item in waiting if not lost or item[0] > lost[-1][0])]
        return started[0]

    def _flush(self, name: str, last: bool = False) -> None:
        """Write the epochs that wait; they go on waiting where that fails."""
        waiting = self._waiting.get(name)
        if not waiting or name not in self._runs:
            return
        if self.tracker.log_epochs(self._runs[name], waiting, always=last):
            self._logged[name], self._wrote[name] = waiting[-1][0], time.monotonic()
            self._waiting[name] = []

    def _end(self, trial: Any, record: TrialRecord) -> None:
        name = name_of(trial)
        run_id = self._runs.get(name) or self._start(trial, [])
        self._flush(name, last=True)
        if run_id and self.tracker.end_trial(run_id, record):
            self._ended.add(name)
