"""The folder of a finished study, read by those who did not search: commands, ensembles, later searches.

    results/<study>/
      summary.json                        the study in numbers
      trials.json                         a record for each trial
      trials/<trial>/best/                checkpoints of searched trials, those that were kept
      final/<trial>-seed-<seed>/best/     the winner, trained again with each seed
      best/                               the checkpoint to use: that of the best seed
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from imf_core.errors import DataError
from imf_core.files import json_files
from imf_core.files.json_files import Stored, told

SUMMARY_FILE, TRIALS_FILE = "summary.json", "trials.json"
_REMEDY = "name the folder of a finished study"


class Summary(Stored):
    """The values of a summary that are read again; the others are only shown."""

    study: str | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class StudyFolder:
    """A study's folder; each file is read when it is asked for.

    Args:
        path: `results/<study>`.
    """

    path: Path

    @property
    def summary_file(self) -> Path:
        """Where the summary is, for messages."""
        return self.path / SUMMARY_FILE

    @property
    def trials_file(self) -> Path:
        """Where the trials are, for messages."""
        return self.path / TRIALS_FILE

    def summary(self) -> dict[str, Any]:
        """The study in numbers.

        Raises:
            DataError: there is no summary, or it is none.
        """
        problem = "not the summary of a study"
        values: dict[str, Any] = _read_json(self.summary_file, problem)
        try:
            Summary.model_validate(values)
        except ValidationError as error:
            raise DataError.at(self.summary_file, None, f"{problem}: {told(error)}", remedy=_REMEDY) from error
        return values

    def trials(self) -> list[dict[str, Any]]:
        """A record for each trial, in the order of the file; its keys are those of `tune.study.records.TrialRecord`.

        Raises:
            DataError: there are no trials, or the file is no list of JSON objects.
        """
        values = _read_json(self.trials_file, "cannot read the trials")
        if not isinstance(values, list) or not all(isinstance(record, dict) for record in values):
            remedy = "restore the file or run the study again"
            raise DataError.at(self.trials_file, None, "not a list of trials", remedy=remedy)
        return values

    def trial_checkpoints(self) -> list[Path]:
        """The checkpoints of searched trials that the study kept, by the trial's name."""
        return sorted(self.path.glob("trials/*/best"))

    def final_checkpoints(self, seed: int | None = None) -> list[Path]:
        """The checkpoints of the winner, by name: a folder for each winner and seed.

        Args:
            seed: of this seed alone; None: of all.
        """
        return sorted(self.path.glob(f"final/*-seed-{'*' if seed is None else seed}/best"))


def summary_beside(checkpoint: Path) -> dict[str, Any]:
    """The summary of the study whose best checkpoint this is; empty if the checkpoint lies in no study.

    Args:
        checkpoint: for example `results/<study>/best`.

    Raises:
        DataError: there is a summary beside the checkpoint that cannot be read.
    """
    folder = checkpoint.resolve()
    study = StudyFolder(folder.parent)
    if not study.summary_file.is_file():
        return {}
    values = _read_json(study.summary_file, "cannot be read")
    if not isinstance(values, dict) or values.get("study") is None:  # another program's
        return {}
    best = values.get("checkpoint")
    return values if isinstance(best, str) and Path(best).name == folder.name else {}


def _read_json(path: Path, problem: str) -> Any:
    try:
        return json_files.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError.at(path, None, f"{problem}: {error}", remedy=_REMEDY) from error
