"""What a GPU would be asked to launch stays within what the project asks of it, whatever the sizes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import launches
from benchmarks.launches import Launches
from benchmarks.report_speed import KEYS


def test_views_launch_nothing_and_reading_is_noticed() -> None:
    table = torch.arange(6.0).view(2, 3)
    with Launches() as counted:
        table.T[1:].unsqueeze(0)
        table.add(1).mul_(2)
    assert (counted.total, counted.read.total()) == (2, 0)
    with Launches() as counted:
        float(table.sum())
        table[table > 2]
        table[table > 2] = 0.0
        table.unique()
    assert counted.read.total() == 4


def test_the_counts_are_within_the_aims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "ENTITIES", 400)  # only operations count
    monkeypatch.setattr(launches, "QUERIES", 128)
    figures = launches.launches()
    assert len(figures) == 5
    for name, figure in figures.items():
        assert figure["value"] <= int(KEYS[name][1].removeprefix("<= ")), name
    assert figures["launches_published"]["value"] > 50
    assert figures["launches_published"]["raw"]["with_gaps"] <= 140
    assert figures["launches_default"]["raw"]["with_gaps"] <= 220
    assert figures["readbacks_step"]["raw"]["ranking_block"] == 0
