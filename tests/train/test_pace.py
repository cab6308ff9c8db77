"""Measuring how fast a model trains: on a few steps, or on a whole epoch that is short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imf_core.train.optimizers import Optimizers
from imf_core.train.pace import WATCH, StepWatch, epoch_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def steps_until_measured(watch: StepWatch, clock: Clock, first: float, seconds: float) -> int:
    clock.now += first
    for step in range(1, 1000):
        try:
            watch.step()
        except Exception:
            return step
        clock.now += seconds
    raise AssertionError("the run was not ended")


@pytest.mark.parametrize(
    ("steps", "first", "seconds", "taken"),
    [(100, 60.0, 0.5, 7), (10, 0.0, 20.0, 4)],  # the first step does not count; slow ones are still some
)
def test_an_epoch_is_told_from_some_steps(steps: int, first: float, seconds: float, taken: int) -> None:
    clock = Clock()
    watch = StepWatch(3.0, clock)
    watch.begin(steps)
    assert steps_until_measured(watch, clock, first, seconds) == taken
    assert watch.epoch_seconds == pytest.approx(seconds * steps * 1.2)


def test_a_short_epoch_is_measured_whole() -> None:
    after_two: Any = SimpleNamespace(seconds=5.0, epoch=2)
    assert epoch_seconds(lambda report: report(after_two)) == 2.5


def test_a_run_without_a_report_gives_no_pace_and_errors_come_through() -> None:
    assert epoch_seconds(lambda report: None) is None
    with pytest.raises(ZeroDivisionError):
        epoch_seconds(lambda report: 1 / 0)
    assert WATCH.get() is None


def test_the_optimizers_count_the_steps() -> None:
    model = torch.nn.Linear(2, 1)
    taken = 0

    def train(report: Any) -> None:
        nonlocal taken
        watch = WATCH.get()
        assert watch is not None
        watch.begin(50)
        optimizers = Optimizers(model, "adam", 0.1, 0.0)
        for taken in range(50):  # noqa: B007
            model(torch.ones(3, 2)).sum().backward()
            optimizers.step()

    assert (epoch_seconds(train, seconds=0.0) or 0.0) > 0
    assert taken == 3  # it ended in the fourth step
