"""The simulation of the driver against what can be computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.report_scale import shares
from benchmarks.scale import EPOCHS, Driver, simulate


def test_a_driver_that_takes_no_time_makes_nobody_wait() -> None:
    found = simulate(Driver(0.0, 0.0, 0.0, 0.0), 10.0, trials=3, slots=3)
    assert (found["busy"], found["waiting"]) == (0.0, 0.0)
    assert found["hours"] == pytest.approx(EPOCHS * 10.0 / 3600, rel=0.1)  # the longest of the three runs all its epochs


def test_a_driver_that_is_overrun_sets_the_pace() -> None:
    """100 trials at a time report every 0.1 s, the driver takes 0.1 s for each: it is always busy, and all else waits."""
    found = simulate(Driver(0.1, 0.0, 0.0, 0.0), 0.1, trials=300, slots=100)
    reports = 100 * EPOCHS + 200 * 4
    assert found["busy"] > 0.95
    assert found["waiting"] > 0.8
    assert found["hours"] * 3600 == pytest.approx(0.1 * reports, rel=0.05)


def test_epochs_that_are_written_together_are_written_less_often() -> None:
    each = simulate(Driver(0.0, 0.0, 0.0, 0.01), 1.0, trials=30, slots=10)
    together = simulate(Driver(0.0, 0.0, 0.0, 0.01, write_seconds=10.0), 1.0, trials=30, slots=10)
    assert together["writes_per_second"] < each["writes_per_second"] / 2
    assert together["busy"] < each["busy"] / 2


def test_snapshots_take_their_share() -> None:
    found = simulate(Driver(0.0, 0.0, 0.0, 0.0, snapshot=0.25, period=1.0), 1.0, trials=30, slots=10)
    assert found["busy"] == pytest.approx(0.22, abs=0.05)


def test_shares_by_hand() -> None:
    cost = {"report": {"MLflow": 0.03}, "trial": {"MLflow": 0.1}, "snapshot": {"Ray Tune": 0.2}}
    found = shares(cost, epoch_seconds=5.0, slots=100)
    assert found["MLflow, reports"] == pytest.approx(20 * 0.03)
    assert found["MLflow, trials"] == pytest.approx(20 / ((EPOCHS + 8) / 3) * 0.1)
    assert found["Ray Tune, snapshots every second"] == 0.2
