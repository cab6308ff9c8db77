"""A training run that ends in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imf_core.train.epoch import train_epoch
from imf_core.train.progress import EpochReport


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def stop_at(epoch: int) -> Callable[[EpochReport], None]:
    """An `on_epoch` that ends the run when it hears of the epoch."""

    def on_epoch(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise Killed

    return on_epoch


def die_in(epoch: int, begun: list[int]) -> Callable[..., dict[str, float]]:
    """A `train_epoch` of `imf_core.train.fit` that ends the run when it comes to the epoch for the first time.

    Args:
        epoch: number of the epoch, from 1.
        begun: gathers the numbers of the epochs that were begun.
    """
    def until_then(*arguments: Any) -> dict[str, float]:
        number = arguments[3]
        begun.append(number)
        if number == epoch and begun.count(epoch) == 1:
            raise Killed
        return train_epoch(*arguments)

    return until_then
