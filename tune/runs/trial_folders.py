"""The folders of the trials, freed of what a later session or the user will not need."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tune.study.records import TrialRecord, ranked


class TrialFolders:
    """Each trial's own folder, below one for all.

    Args:
        path: holds the folder of each trial, by its name.
        keep: checkpoints of so many trials stay, the best ones; None: of all.
    """

    def __init__(self, path: Path | str, keep: int | None = None) -> None:
        self.path, self.keep = Path(path), keep
        self._without_checkpoint: set[str] = set()  # ended trials: not looked for again, on a far disk

    def __getitem__(self, name: str) -> Path:
        return self.path / name

    def trial_ended(self, ended: TrialRecord, records: Iterable[TrialRecord], resumable: bool = False) -> None:
        """Delete what is no longer needed; what a killed session left over goes with the next trial's end.

        Args:
            ended: the trial.
            records: of all ended trials.
            resumable: it was cut off or is paused, and can be resumed from its training state.
        """
        if not resumable:
            shutil.rmtree(self[ended.trial_id] / "state", ignore_errors=True)
        if self.keep is None:
            return
        self._without_checkpoint.discard(ended.trial_id)
        names = [record.trial_id for record in ranked(records) if record.trial_id not in self._without_checkpoint]
        kept = [name for name in names if (self[name] / "best").is_dir()]
        for name in kept[self.keep :]:
            shutil.rmtree(self[name] / "best", ignore_errors=True)
        self._without_checkpoint |= {*names} - {*kept[: self.keep]}
