"""Reports of a trial: each epoch once, whatever is retried."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imf_core.files.atomic import atomic_write_text
from imf_core.runtime import Shard
from imf_core.train.progress import EpochReport

Report = Callable[[dict[str, Any]], None]
_RECENT = 64  # epochs that may be on their way to a driver when it dies; far fewer are


@dataclass
class Reporter:
    """Reports each epoch once, although a retry trains again what came after the last save.

    Args:
        folder: of the trial.
        report: takes the flat numbers of an epoch; called on every rank.
        always: numbers of every report.
        shard: this rank's part.
    """

    folder: Path
    report: Report
    always: dict[str, Any]
    shard: Shard
    began: int | None = field(init=False, default=None)  # first epoch that this process had: 1, or where it went on
    recent: list[dict[str, Any]] = field(init=False, default_factory=list)  # the last reports of all processes so far

    def __post_init__(self) -> None:
        with suppress(FileNotFoundError):
            self.recent = json.loads((self.folder / "reported.json").read_text(encoding="utf-8"))["reports"]

    @property
    def reported(self) -> int:
        """The last epoch that was reported; 0: none."""
        return int(self.recent[-1]["epoch"]) if self.recent else 0

    def catch_up(self, known: int) -> None:
        """Report again what left an earlier process and may have died with the driver or on the way to it.

        The last one always comes again: Tune takes it amiss if a trial ends without a report.

        Args:
            known: the last epoch that the driver has. It counts an epoch once, so that a lower number does no harm.
        """
        for numbers in self.recent:
            if numbers["epoch"] > min(known, self.reported - 1):
                self.report(numbers)

    def __call__(self, epoch: EpochReport[Any]) -> None:
        self.began = self.began or epoch.epoch
        if epoch.epoch <= self.reported:
            return
        numbers = {**epoch.flat(), **self.always}
        self.report(numbers)
        self.recent = [*self.recent, numbers][-_RECENT:]
        if self.shard.rank == 0:  # after the report: one that was lost is trained and reported again
            said = {"pid": os.getpid(), "host": socket.gethostname(), "began": self.began, "epoch": epoch.epoch}
            atomic_write_text(self.folder / "reported.json", json.dumps({**said, "reports": self.recent}))
