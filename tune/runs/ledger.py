"""The records of a study's trials while a search runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.tune as ray_tune

from tune.budget.deadline import Deadline
from tune.runs.trial_folders import TrialFolders
from tune.study.history import DriverOnly, History
from tune.study.outcome import (
    TrialState,
    classify,
    copy_error,
    first_path,
    name_of,
    read_error,
    read_outcome,
)
from tune.study.records import TrialRecord, TrialsFile
from tune.trial.out_of_memory import kills_for_memory, mark_killed, ran_out


class Ledger(DriverOnly, ray_tune.Callback):
    """Makes one `TrialRecord` of each trial that ends, and writes them all to `trials.json`.

    Ray tells its callbacks nothing of the trials that a time budget or Ctrl-C ends, so `on_experiment_end` closes those.

    Args:
        folder: gets `trials.json` and the errors of failed trials.
        history: of the trials. One that ended in it and has no record, because the process was killed in between, gets one.
        max_epochs: the most epochs a trial may run.
        folders: of the trials.
        deadline: of the search.
        records: of an earlier session; the trials among them that have no end in the history go on.
    """

    def __init__(
        self, folder: Path | str, history: History, max_epochs: int, folders: TrialFolders, deadline: Deadline | None = None,
        records: Sequence[TrialRecord] = (),
    ) -> None:
        self.folder, self.history, self.max_epochs, self.folders = Path(folder), history, max_epochs, folders
        self.deadline = Deadline()  # a trial that ended in an earlier session did not end for want of time
        unfinished = {trial.name for trial in (*history.interrupted, *history.paused)}
        self._records = {record.trial_id: record for record in records if record.trial_id not in unfinished}
        self._file, self._kills = TrialsFile(self.folder), kills_for_memory()
        self._started: dict[str, float] = {}  # of the trials of this session, seconds since 1970
        self._stale: dict[str, int | None] = {}  # time stamp of the `outcome.json` of an attempt that was retried
        self._close_ended()
        self.deadline = deadline or self.deadline
        self.deadline.update(self.records)

    @property
    def records(self) -> list[TrialRecord]:
        """The ended trials, by number."""
        return sorted(self._records.values(), key=lambda record: record.number)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note the time."""
        self._started.setdefault(name_of(trial), time.time())

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a retry, and whether memory had run out: the next attempt is then smaller."""
        name = name_of(trial)
        self.history.append("retry", trial=name)
        kills, self._kills = self._kills, kills_for_memory()
        if ran_out(read_error(trial)) or self._kills > kills:
            mark_killed(self.folders[name])
        self._stale[name] = read_outcome(trial, self.folders[name])[1]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial, unless it is paused, and those that were given up for it."""
        if self.history.trials[name_of(trial)].end is not None:
            self.close(trial, "TERMINATED")
        self._close_ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial, unless the searcher begins it again."""
        if self.history.trials[name_of(trial)].end is not None:
            self.close(trial, "ERROR")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the trials that the end of the search has ended."""
        self.end(trials)

    def end(self, trials: Iterable[Any]) -> list[TrialRecord]:
        """Close every trial that has no record yet; returns all records. A second call changes nothing.

        Args:
            trials: Ray's; one of an earlier session that was not begun again in this one is not among them.
        """
        self._close_ended()
        by_name = {name_of(trial): trial for trial in trials}
        for name in self.history.trials:
            self.close(by_name.get(name) or _absent(name), "RUNNING")
        return self.records

    def _close_ended(self) -> None:
        """Close the trials whose end the history has."""
        for trial in self.history.trials.values():
            if trial.end is not None and trial.name not in self._records:
                self.close(_absent(trial.name), "ERROR" if trial.end["error"] else "TERMINATED")

    def close(self, trial: Any, ray_status: str) -> TrialRecord:
        """End a trial once and write the file; for Ray it is TERMINATED or ERROR, or RUNNING (the search ended first)."""
        name = name_of(trial)
        if name in self._records:
            return self._records[name]
        known, trial_dir = self.history.trials[name], self.folders[name]
        outcome, _ = read_outcome(trial, trial_dir, self._stale.get(name))
        epochs = max(known.last_epoch, int((outcome or {}).get("epochs") or 0))
        if outcome is None and known.diverged:
            outcome = {"state": "diverged"}  # the scheduler stopped it at the report that was not finite
        elif outcome is None and epochs and ray_status == "TERMINATED" and not known.stopped:
            outcome = {"state": "completed", "reason": "its function returned"}  # on a node whose files cannot be seen
        state, reason = classify(outcome, ray_status, epochs, self.max_epochs, ray_status == "RUNNING" or self.deadline.over)
        if known.paused:
            state, reason = TrialState.PRUNED, f"paused at epoch {epochs} of {self.max_epochs}: behind the other trials"
        if state is TrialState.STOPPED and epochs and not self.deadline.over:
            reason = f"the search was ended at epoch {epochs} of {self.max_epochs}"
        log_path = first_path(trial, trial_dir)
        if state in (TrialState.FAILED, TrialState.DIVERGED):
            gist, copy = copy_error(trial, self.folder / "errors" / f"trial_{known.number:03d}.txt")
            reason, log_path = gist if gist and not (outcome or {}).get("reason") else reason, copy or log_path
        now = time.time()
        started = known.started or self._started.get(name)
        best_mrr, best_epoch = known.best or (None, None)
        best_report = known.reports.get(best_epoch or 0, {"numbers": {}})
        record = TrialRecord(
            number=known.number, trial_id=name, state=state, params=known.params, best_mrr=best_mrr, best_epoch=best_epoch,
            epochs=epochs, seconds=round(known.seconds or now - (started or now), 3), metrics=best_report["numbers"],
            reason=reason, log_path=log_path, retries=known.retries, started=started, ended=now, curve=known.curve,
        )
        return self.add(record)

    def add(self, record: TrialRecord) -> TrialRecord:
        """Take in the record of a trial that has ended, here or elsewhere."""
        self._records[record.trial_id] = record
        records = self.records
        known = self.history.trials.get(record.trial_id)
        resumable = record.state is TrialState.STOPPED or (known is not None and known.waits)
        self.folders.trial_ended(record, records, resumable)
        self.deadline.update(records)
        self._file.write(records)
        return record


def _absent(name: str) -> Any:
    """A trial of an earlier session, of which Ray knows nothing."""
    return SimpleNamespace(trial_id=name, config={})
