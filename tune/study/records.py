"""What became of each trial: one record a trial, written to `trials.json` as the study runs.

The counts of a study come from here, not from Optuna: there an early-stopped trial is COMPLETE with its last, low value.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from imf_core.errors import DataError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.json_files import told
from imf_core.study_reader import TRIALS_FILE, StudyFolder
from tune.study.outcome import TrialState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialRecord:
    """One trial, ended.

    Args:
        number: order of creation from 0.
        trial_id: the trial's name (`trial-003`), the same in every session: of its folder, its journal entries, its MLflow run.
        state: how it ended.
        params: the searched settings, flat with dotted names.
        best_mrr: highest finite validation MRR reported; None if there was none.
        best_epoch: the epoch (from 1) of `best_mrr`.
        epochs: epochs reported.
        seconds: training time, wall clock.
        metrics: the other finite numbers reported at `best_epoch`.
        reason: why it ended, in words.
        log_path: the trial's folder, or for a failed trial the file with its error.
        retries: how often it was started again after a failure.
        started, ended: seconds since 1970.
        curve: learning curve as pairs (epoch, validation MRR).
    """

    number: int
    trial_id: str
    state: TrialState
    params: dict[str, Any]
    best_mrr: float | None
    best_epoch: int | None
    epochs: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    log_path: str = ""
    retries: int = 0
    started: float | None = None
    ended: float | None = None
    curve: tuple[tuple[int, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {**asdict(self), "state": str(self.state), "curve": [list(point) for point in self.curve]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str = TRIALS_FILE) -> TrialRecord:
        """Rebuild a record; unknown keys (of a later version) are ignored.

        Raises:
            DataError: a needed key is missing or holds an unusable value.
        """
        try:
            return _records().validate_python(values)
        except ValidationError as error:
            remedy = "restore the file or run the study again"
            raise DataError.at(source, None, f"not a trial record: {told(error)}", remedy=remedy) from error


@cache
def _records() -> TypeAdapter[TrialRecord]:
    return TypeAdapter(TrialRecord)


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Best validation MRR first (ties: the earlier trial); without a value, failed and diverged trials last."""
    return sorted(records, key=lambda r: (not r.state.usable, r.best_mrr is None, -(r.best_mrr or 0.0), r.number))


def winner(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial with the best finite validation MRR that neither failed nor diverged; None if there is none."""
    best = ranked(records)[:1]
    return best[0] if best and best[0].state.usable and best[0].best_mrr is not None else None


def can_be_reused(record: TrialRecord, trials_dir: Path) -> bool:
    """Whether a trial ran to its own end and still has its checkpoint, so that finalising need not run it again."""
    return record.state is TrialState.COMPLETED and (trials_dir / record.trial_id / "best").is_dir()


def count_states(records: Iterable[TrialRecord]) -> dict[str, int]:
    """Trials by state; every state is a key."""
    counts = Counter(record.state for record in records)
    return {str(state): counts[state] for state in TrialState}


def load_records(study: Path | str) -> list[TrialRecord]:
    """The trials of a study's folder; errors as those of `StudyFolder.trials`, or for what is no record."""
    folder = StudyFolder(Path(study))
    return [TrialRecord.from_json(item, source=str(folder.trials_file)) for item in folder.trials()]


class TrialsFile:
    """`trials.json` of a folder, written anew after each trial that ends; a file that cannot be written ends no search.

    Args:
        folder: of a study, or of the runs of finalising.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRIALS_FILE
        self._lines: dict[str, tuple[TrialRecord, str]] = {}
        self._warned = False

    def read(self) -> list[TrialRecord]:
        """The records; empty where there is no file.

        Raises:
            DataError: it does not hold records.
        """
        return load_records(self.path.parent) if self.path.exists() else []

    def write(self, records: Iterable[TrialRecord]) -> None:
        """Replace the file; the first failure to do so is a warning."""
        try:
            atomic_write_text(self.path, "[\n" + ",\n".join(self._line(record) for record in records) + "\n]\n")
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("%s cannot be written (%s); the search goes on", self.path, error)

    def _line(self, record: TrialRecord) -> str:
        """A record as JSON, composed once: to compose a thousand at each end would take the driver half a second."""
        kept = self._lines.get(record.trial_id)
        if kept is None or kept[0] is not record:
            kept = self._lines[record.trial_id] = (record, json.dumps(record.to_json(), ensure_ascii=False))
        return kept[1]
