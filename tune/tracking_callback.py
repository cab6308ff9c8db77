"""The Ray Tune callback that writes each trial to its MLflow run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray.tune as ray_tune

from tune.outcome import name_of, reported_numbers, trial_params
from tune.records import Ledger, TrialRecord

if TYPE_CHECKING:
    from tune.tracking import Tracker


class MlflowCallback(ray_tune.Callback):
    """One child run a trial: settings at its start, one batch an epoch, state and reason at its end.

    A trial that is retried or resumed goes on in its own run; an epoch is logged once. Place it after the ledger or before.

    Args:
        tracker: the study's open tracker.
        ledger: knows each trial's number, state and reason; the same object that Tune gets as a callback.
    """

    def __init__(self, tracker: Tracker, ledger: Ledger) -> None:
        self.tracker = tracker
        self.ledger = ledger
        self._runs: dict[str, str] = {}
        self._logged: dict[str, int] = {}
        self._ended: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended.discard(name_of(trial))
        self._start(trial, trials)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        run_id = self._runs.get(name_of(trial)) or self._start(trial, trials)
        epoch = int(result.get("epoch", result.get("training_iteration", 0)))
        if run_id and epoch > self._logged[name_of(trial)] and self.tracker.log_epoch(run_id, epoch, reported_numbers(result)):
            self._logged[name_of(trial)] = epoch

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

    def _start(self, trial: Any, trials: list[Any]) -> str | None:
        number = self.ledger.number_of(trial, trials)
        started = self.tracker.start_trial(name_of(trial), number, trial_params(trial))
        if started is None:
            return self._runs.get(name_of(trial))
        self._runs[name_of(trial)], self._logged[name_of(trial)] = started
        return started[0]

    def _end(self, trial: Any, record: TrialRecord) -> None:
        run_id = self._runs.get(name_of(trial)) or self._start(trial, [])
        if run_id and self.tracker.end_trial(run_id, record):
            self._ended.add(name_of(trial))
