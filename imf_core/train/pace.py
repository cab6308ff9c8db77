"""How fast a model trains, from the steps of a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch

from imf_core.train.progress import EpochReport

_LEAST_STEPS = 4  # the first one is slower and does not count
_EVALUATION = 0.2  # of an epoch's steps, where no evaluation was measured: held-out triples are few, and take no backward pass


class _Measured(Exception):
    """Ends the run that is measured."""


class StepWatch:
    """Times the steps of a training run, and ends it after some seconds or at its first report.

    Args:
        seconds: of steps to measure.
        clock: seconds.

    Attributes:
        epoch_seconds: of an epoch with its evaluation; None until measured.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock, self._steps, self._taken, self._first = clock, 0, 0, 0.0
        self.epoch_seconds: float | None = None

    def begin(self, steps: int) -> None:
        """An epoch has so many steps."""
        self._steps = steps

    def step(self) -> None:
        """A step is done."""
        self._taken += 1
        if self._taken == 1:
            self._first = self._clock()
        elif self._taken >= _LEAST_STEPS and self._steps and self._clock() - self._first >= self.seconds:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # the steps so far were only launched
            seconds = (self._clock() - self._first) / (self._taken - 1)
            self.epoch_seconds = seconds * self._steps * (1 + _EVALUATION)
            raise _Measured

    def report(self, report: EpochReport[Any]) -> None:
        """An evaluation is done: that of a short epoch, and so its time is known."""
        self.epoch_seconds = report.seconds / report.epoch
        raise _Measured


WATCH: ContextVar[StepWatch | None] = ContextVar("watch", default=None)


def epoch_seconds(train: Callable[[Callable[[EpochReport[Any]], None]], Any], seconds: float = 3.0) -> float | None:
    """Seconds of an epoch, measured on the steps of some seconds, or on a whole epoch that is shorter.

    Args:
        train: starts the training, given what takes the reports.
        seconds: of steps to measure.

    Returns:
        None if the run ended before its first report.
    """
    watch = StepWatch(seconds)
    token = WATCH.set(watch)
    try:
        train(watch.report)
    except _Measured:
        pass
    finally:
        WATCH.reset(token)
    return watch.epoch_seconds
