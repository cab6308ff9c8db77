"""The record of each trial while a search runs, as Ray Tune reports its events."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray.tune as ray_tune

from imf_core.files.atomic import atomic_write_text
from imf_core.study_reader import TRIALS_FILE
from tune.study.history import History, TrialHistory
from tune.study.journal import Journal
from tune.study.outcome import (
    ERROR_FILE,
    TrialState,
    classify,
    first_path,
    last_error,
    name_of,
    read_first,
    read_outcome,
    reported_numbers,
    trial_params,
)
from tune.study.records import TrialRecord, logger, ranked
from tune.trial.out_of_memory import kills_for_memory, mark_killed, ran_out


class Ledger(ray_tune.Callback):
    """Keeps one `TrialRecord` a trial and writes them all to `trials.json` after each that ends.

    Ray tells its callbacks nothing of the trials that a time budget or Ctrl-C ends, so `on_experiment_end` closes those.

    Args:
        folder: the study's folder.
        max_epochs: the most epochs a trial may run.
        budget_s: time budget of the search in seconds, from `setup`.
        records: trials of an earlier part of the same study.
        trials: each trial's own folder is below this one, by its name; default `folder/trials`.
        history: the journal so far. A trial that has no end in it goes on, whatever its record says; one that ended and has no
            record, because the process was killed in between, gets one.
        journal: told of retries.
        reserve: seconds that are to be left of the budget, from the records so far; None: none.
        keep: checkpoints of so many trials stay, the best ones; None: of all.
    """

    def __init__(
        self, folder: Path | str, max_epochs: int, budget_s: float | None = None, records: Sequence[TrialRecord] = (),
        trials: Path | str | None = None, history: History | None = None, journal: Journal | None = None,
        keep: int | None = None, reserve: Callable[[list[TrialRecord]], float] | None = None,
    ) -> None:
        self.folder, self.trials = Path(folder), Path(trials or Path(folder) / "trials")
        self.max_epochs = max_epochs
        self.budget_s = budget_s
        self._journal, self._keep = journal, keep
        begun = history.trials if history is not None else {}
        self._records = {
            record.trial_id: record for record in records
            if record.trial_id not in begun or begun[record.trial_id].told is not None
        }
        self._open = {name: _Progress.of(trial) for name, trial in begun.items() if name not in self._records}
        self._numbers = {record.trial_id: record.number for record in records} | {name: begun[name].number for name in begun}
        self._deadline, self._ended = math.inf, False
        self._reserve, self._reserved = reserve, 0.0  # it follows from the ended trials, and Tune asks many times a second
        self._without: set[str] = set()  # ended trials that have no checkpoint: not looked for again, on a far disk
        self._lines: dict[str, tuple[TrialRecord, str]] = {}
        self._warned, self._kills = False, kills_for_memory()
        self._set_aside()
        for name, trial in begun.items():
            if trial.told is not None and name in self._open:
                self.close(SimpleNamespace(trial_id=name, config={}), "ERROR" if trial.told["error"] else "TERMINATED")

    @property
    def over(self) -> bool:
        """Whether the time budget has run out, but for what is reserved; once it has, it stays so."""
        if not self._ended and math.isfinite(self._deadline):
            self._ended = time.time() + self._reserved >= self._deadline
        return self._ended

    def time_left(self, now: float) -> float | None:
        """Seconds of the budget that trials may still use, at least 0; None without a budget."""
        if not math.isfinite(self._deadline):
            return None
        return max(0.0, self._deadline - self._reserved - now)

    @property
    def records(self) -> list[TrialRecord]:
        """The ended trials, by number."""
        return sorted(self._records.values(), key=lambda record: record.number)

    def number_of(self, trial: Any, trials: Iterable[Any] = ()) -> int:
        """The trial's number; trials are numbered in the order in which Tune created them, in their first session."""
        for other in trials:
            self._number(name_of(other))
        return self._number(name_of(trial))

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, max(self._numbers.values(), default=-1) + 1)

    def setup(self, *args: Any, **info: Any) -> None:
        self._deadline = time.time() + self.budget_s if self.budget_s is not None else math.inf

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        progress = self._progress(trial, trials)
        progress.started = progress.started or time.time()
        progress.told_to_stop = False

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        progress = self._progress(trial, trials)
        progress.retries += 1
        if self._journal is not None:
            self._journal.append("retry", trial=name_of(trial))
        kills, self._kills = self._kills, kills_for_memory()
        if ran_out(read_first(trial, ERROR_FILE)) or self._kills > kills:
            mark_killed(self.trials / name_of(trial))
        progress.stale_outcome = read_outcome(trial, self.trials / name_of(trial))[1]  # written by the attempt that failed

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._progress(trial, trials).add(result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.number_of(trial, trials)
        self.close(trial, "TERMINATED")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.number_of(trial, trials)
        self.close(trial, "ERROR")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.end(trials)

    def end(self, trials: Iterable[Any]) -> list[TrialRecord]:
        """Close every trial that started and has not ended; returns all records. A second call changes nothing."""
        for trial in trials:
            if name_of(trial) in self._open:
                self.close(trial, "RUNNING")
        for name in list(self._open):  # of an earlier session, and not begun again in this one
            self.close(SimpleNamespace(trial_id=name, config={}), "RUNNING")
        return self.records

    def close(self, trial: Any, ray_status: str) -> TrialRecord:
        """End a trial once and write the file; it is TERMINATED or ERROR for Tune, or RUNNING (the search ended first)."""
        name = name_of(trial)
        if name not in self._open and name in self._records:
            return self._records[name]
        progress, own = self._progress(trial), self.trials / name
        outcome, _ = read_outcome(trial, own, progress.stale_outcome)
        epochs = max(progress.epochs, int((outcome or {}).get("epochs") or 0))
        if outcome is None and epochs and ray_status == "TERMINATED" and not progress.told_to_stop:
            outcome = {"state": "completed", "reason": "its function returned"}  # on a node whose files cannot be seen
        budget_over = ray_status == "RUNNING" or self.over
        state, reason = classify(outcome, ray_status, epochs, self.max_epochs, budget_over)
        if state is TrialState.STOPPED and epochs and not self.over:
            reason = f"the search was ended at epoch {epochs} of {self.max_epochs}"
        log_path = first_path(trial, own)
        if state in (TrialState.FAILED, TrialState.DIVERGED):
            gist, copied = self._keep_error(trial, progress.number)
            reason, log_path = gist if gist and not (outcome or {}).get("reason") else reason, copied or log_path
        now = time.time()
        seconds = progress.seconds or now - (progress.started or now)
        record = TrialRecord(
            number=progress.number, trial_id=name, state=state, params=progress.params, best_mrr=progress.best_mrr,
            best_epoch=progress.best_epoch, epochs=epochs, seconds=round(seconds, 3),
            metrics=progress.metrics, reason=reason, log_path=log_path, retries=progress.retries, started=progress.started,
            ended=now, curve=tuple(sorted(progress.curve.items())),
        )
        self._records[name] = record
        self._without.discard(name)
        del self._open[name]
        if state is not TrialState.STOPPED:  # that one may go on from its training state; of the others it is only in the way
            shutil.rmtree(own / "state", ignore_errors=True)
        self._drop_checkpoints()
        self._set_aside()
        self._write_all()
        return record

    def adopt(self, record: TrialRecord) -> TrialRecord:
        """Take in a run that was made elsewhere, under the next number; returns it with that number."""
        record = self._records[record.trial_id] = replace(record, number=self._number(record.trial_id))
        self._write_all()
        return record

    def _write_all(self) -> None:
        self._write(TRIALS_FILE, "[\n" + ",\n".join(self._line(item) for item in self.records) + "\n]\n")

    def _line(self, record: TrialRecord) -> str:
        """A record as a line of JSON, composed once: a thousand anew at each end would take the driver half a second."""
        kept = self._lines.get(record.trial_id)
        if kept is None or kept[0] is not record:
            kept = self._lines[record.trial_id] = (record, json.dumps(record.to_json(), ensure_ascii=False))
        return kept[1]

    def _set_aside(self) -> None:
        if self._reserve is not None:
            self._reserved = self._reserve(self.records)

    def _drop_checkpoints(self) -> None:
        """Remove those of all trials but the best ones; what a killed session left over goes with the next trial's end."""
        if self._keep is not None:
            names = [record.trial_id for record in ranked(self.records) if record.trial_id not in self._without]
            kept = [name for name in names if (self.trials / name / "best").is_dir()]
            for name in kept[self._keep :]:
                shutil.rmtree(self.trials / name / "best", ignore_errors=True)
            self._without |= {*names} - {*kept[: self._keep]}

    def _progress(self, trial: Any, trials: Iterable[Any] = ()) -> _Progress:
        name = name_of(trial)
        if name not in self._open:
            self._open[name] = _Progress(self.number_of(trial, trials), trial_params(trial))
        return self._open[name]

    def _keep_error(self, trial: Any, number: int) -> tuple[str, str]:
        """Copy Ray's error text, which lies in a temporary folder, into the study; returns its gist and the copy's path."""
        text = read_first(trial, ERROR_FILE)
        name = f"errors/trial_{number:03d}.txt"
        kept = bool(text) and self._write(name, text)
        return last_error(text), (str(self.folder / name) if kept else "")

    def _write(self, name: str, text: str) -> bool:
        try:
            atomic_write_text(self.folder / name, text)
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written (%s); the search goes on", self.folder / name, error)
                self._warned = True
            return False
        return True


@dataclass
class _Progress:
    """A trial in the making."""

    number: int
    params: dict[str, Any]
    started: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    best_mrr: float | None = None
    best_epoch: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[int, float] = field(default_factory=dict)
    retries: int = 0
    told_to_stop: bool = False
    stale_outcome: int | None = None
    before: float = 0.0  # seconds of earlier sessions

    @classmethod
    def of(cls, trial: TrialHistory) -> _Progress:
        """What the journal knows of a trial that an earlier session began."""
        made = cls(trial.number, trial.params, retries=trial.retries)
        for epoch, event in sorted(trial.reports.items()):
            made.started = made.started or float(event["at"]) - float(event["seconds"])
            made.add({**event["numbers"], "epoch": epoch, "time_total_s": event["seconds"]})
        made.before = made.seconds
        made.told_to_stop = bool(trial.told and trial.told.get("stopped"))
        return made

    def add(self, result: Mapping[str, Any]) -> None:
        """Take in a report; an epoch that comes again after a retry counts once."""
        epoch = int(result.get("epoch", self.epochs + 1))
        self.epochs = max(self.epochs, epoch)
        self.seconds = max(self.seconds, self.before + float(result.get("time_total_s", 0.0)))
        self.told_to_stop = bool(result.get("done", False))  # Tune marks the result on which a scheduler says stop
        numbers = {name: number for name, number in reported_numbers(result).items() if math.isfinite(number)}
        if "mrr" in numbers:
            self.curve[epoch] = numbers["mrr"]
        for key, at in (("mrr", epoch), ("best_mrr", result.get("best_epoch") or epoch)):
            value = numbers.get(key, 0.0)
            if value > (self.best_mrr or 0.0):  # 0 is no MRR: a trial's start value
                self.best_mrr, self.best_epoch = value, int(at)
                self.metrics = numbers if self.best_epoch == epoch else {}  # unknown: that epoch's report was lost
