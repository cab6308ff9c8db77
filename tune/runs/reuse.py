"""A final run that the search has made already: the winner's own trial, where a seed of finalising is the trial's.

Training is determined by settings, seed and data, so the run would only be made a second time.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from imf_core.files.atomic import atomic_folder
from tune.plan.opening import OpenStudy
from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.study.history import History
from tune.study.records import TrialRecord, can_be_taken


def take_over(
    taken: Mapping[str, TrialRecord], trials: Path, folder: Path, study: OpenStudy, ledger: Ledger, callback: MlflowCallback
) -> list[str]:
    """Make searched trials runs of finalising: a copy of the checkpoint, a record and an MLflow run of its own.

    Args:
        taken: the trial by the name of the run; those that cannot be taken over, or have a record, are left alone.
        trials: folder of the searched trials.
        folder: of the runs.
        ledger: of the runs; gets the records.
        callback: writes to MLflow.

    Returns:
        names of those that were taken over.
    """
    there = {record.trial_id for record in ledger.records}
    names = [name for name, record in taken.items() if name not in there and can_be_taken(record, trials)]
    history = History.of(list(study.journal.events)).trials if names else {}
    for name in names:
        own, trial = folder / name, taken[name]
        if not (own / "best").is_dir():
            with atomic_folder(own / "best", alone=True) as best:
                shutil.copytree(trials / trial.trial_id / "best", best, dirs_exist_ok=True)
        record = replace(trial, trial_id=name, params={"run": name}, log_path=str(own))
        callback.adopt(record, history.get(trial.trial_id))
        ledger.adopt(record)  # last: with a record it counts as done, and a killed session would leave its MLflow run open
    return names
