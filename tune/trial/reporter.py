"""Reports of a trial from its worker to the driver, also across the death of either."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import model_validator

from imf_core.files.atomic import atomic_write_text
from imf_core.files.json_files import Stored, read_json
from imf_core.runtime import Shard
from imf_core.train.progress import EpochReport
from tune.study.outcome import ENDED

Report = Callable[[dict[str, Any]], None]
logger = logging.getLogger(__name__)
_RECENT = 64  # epochs that may be on their way to a driver when it dies; far fewer are


class _Reported(Stored):
    reports: list[dict[str, float]]

    @model_validator(mode="after")
    def _numbered(self) -> _Reported:
        if any(report.get("epoch", 0) < 1 for report in self.reports):
            raise ValueError("a report has no epoch")
        return self


@dataclass
class Reporter:
    """Reports the epochs of a trial, although a retry trains again those after the last save.

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
    began: int | None = field(init=False, default=None)  # first epoch that this process trained
    recent: list[dict[str, Any]] = field(init=False, default_factory=list)  # the last reports of all processes so far
    damaged: bool = field(init=False, default=False)  # epochs may be missing, so all are to be trained and reported again

    def __post_init__(self) -> None:
        file = self.folder / "reported.json"
        try:
            values = read_json(file)
            _Reported.model_validate(values)
            self.recent = values["reports"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self.damaged = True
            logger.warning("%s is damaged (%s): the trial begins anew", file, str(error).partition("\n")[0])

    @property
    def reported(self) -> int:
        """The last epoch that was reported; 0: none."""
        return int(self.recent[-1]["epoch"]) if self.recent else 0

    def catch_up(self, known: int) -> None:
        """Resend the reports that may have died with the driver or on the way to it.

        Always resend the last report: Ray Tune treats a trial that ends without reporting as an error.

        Args:
            known: the last epoch that the driver has. It counts an epoch once, so a lower number does no harm.
        """
        for numbers in self.recent:
            if numbers["epoch"] > min(known, self.reported - 1):
                self.report(numbers)

    def __call__(self, epoch: EpochReport[Any]) -> None:
        self.began = self.began or epoch.epoch
        if epoch.epoch <= self.reported:
            return
        self._send({**epoch.flat(), **self.always})

    def finish(self) -> None:
        """Resend the last report, marked as the end: the driver then knows that the trial does not wait for more epochs."""
        if self.recent and ENDED not in self.recent[-1]:
            last = self.recent.pop()
            self._send({**last, ENDED: 1.0})

    def _send(self, numbers: dict[str, Any]) -> None:
        self.report(numbers)
        self.recent = [*self.recent, numbers][-_RECENT:]
        if self.shard.rank == 0:  # after the report: if that is lost, the epoch is trained and reported again
            process = {"pid": os.getpid(), "host": socket.gethostname(), "began": self.began, "epoch": self.reported}
            atomic_write_text(self.folder / "reported.json", json.dumps({**process, "reports": self.recent}))


def has_ended(folder: Path) -> bool:
    """Whether the last report in a trial's folder is marked as its end."""
    try:
        return ENDED in read_json(folder / "reported.json")["reports"][-1]
    except (OSError, ValueError, LookupError, TypeError):
        return False
