"""A training run that ends in the middle."""

from __future__ import annotations

from collections.abc import Callable

from imf_core.train.progress import EpochReport


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def stop_at(epoch: int) -> Callable[[EpochReport], None]:
    """An `on_epoch` that ends the run when it hears of the epoch."""

    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise Killed

    return on_epoch
