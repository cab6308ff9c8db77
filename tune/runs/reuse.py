"""Reuse the winning trial as the final run of its own seed.

Training is determined by settings, seed and data: that run would be the same trial again. A trial that the time budget ended is
continued instead, from its last saved state, and so is one that is paused.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imf_core.files.atomic import atomic_folder
from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.study.history import History
from tune.study.outcome import OUTCOME_FILE, TrialState
from tune.study.records import TrialRecord, can_be_reused


def reuse_trials(
    winners: Mapping[str, TrialRecord], numbers: Mapping[str, int], searched: History, trials_dir: Path, ledger: Ledger,
    callback: MlflowCallback,
) -> list[str]:
    """Turn searched trials into runs of finalising: a copy of the checkpoint, a record and an MLflow run of its own.

    Args:
        winners: the searched trial by the name of the run; one without a checkpoint, or whose run has a record, is left alone.
        numbers: of the runs, by name.
        searched: history of the searched trials.
        trials_dir: holds the folders of the searched trials.
        ledger: of the runs; gets the records.
        callback: writes to MLflow.

    Returns:
        names of the runs that were made.
    """
    recorded = {record.trial_id for record in ledger.records}
    names = [name for name, trial in winners.items() if name not in recorded and can_be_reused(trial, trials_dir)]
    for name in names:
        run_dir, trial = ledger.folders[name], winners[name]
        if not (run_dir / "best").is_dir():
            with atomic_folder(run_dir / "best", alone=True) as best:
                shutil.copytree(trials_dir / trial.trial_id / "best", best, dirs_exist_ok=True)
        record = replace(trial, trial_id=name, number=numbers[name], params={"run": name}, log_path=str(run_dir))
        callback.end(record, searched.trials[trial.trial_id])
        ledger.add(record)  # last: with a record it counts as done, and a killed session would leave its MLflow run open
    return names


def continue_stopped(winners: Mapping[str, TrialRecord], trials_dir: Path, folder: Path) -> list[str]:
    """Let runs of finalising go on from where the search was ended: a copy of the trial's training state and reports.

    Args:
        winners: the searched trial by the name of the run; one without a training state, or whose run has begun, is left
            alone.
        trials_dir: holds the folders of the searched trials.
        folder: holds those of the runs.

    Returns:
        names of the runs that go on.
    """
    names = [
        name for name, trial in winners.items()
        if trial.state in (TrialState.STOPPED, TrialState.PRUNED) and (trials_dir / trial.trial_id / "state").is_dir()
        and not (folder / name).exists()
    ]
    for name in names:
        with atomic_folder(folder / name) as run_dir:
            left = shutil.ignore_patterns(OUTCOME_FILE, "lock", "best", "workers-*")
            shutil.copytree(trials_dir / winners[name].trial_id, run_dir, ignore=left, dirs_exist_ok=True)
    return names
