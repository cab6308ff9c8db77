"""A search makes the structure table once, before its trials, and puts it where every worker reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_search import SMALL, write_graph

from imf_core.config_base import parse_overrides
from imf_core.prepare.link_data import load_prepared
from tune.hosts.resources import ClusterResources
from tune.plan.opening import open_study
from tune.plan.plan import make_plan
from tune.settings import SearchConfig
from tune.space.parameter import marks

QUICK = ["structure.init=gat", "structure.width=8", "structure.epochs=1"]


def settings(tmp_path: Path, *more: str) -> SearchConfig:
    return SearchConfig.build(
        {"data": str(tmp_path / "graph"), "storage": str(tmp_path / "results"), "study": "one",
         "overrides": parse_overrides([*SMALL, *more])}
    )  # fmt: skip


@pytest.fixture(autouse=True)
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "cache"))
    write_graph(tmp_path / "graph")


def test_the_table_is_in_the_prepared_data(tmp_path: Path) -> None:
    plan = make_plan(settings(tmp_path, *QUICK), ClusterResources.local())
    assert plan.base.structure.init == "gat"
    with open_study(plan):
        pass
    found = load_prepared(plan.prepared).structure
    assert found is not None and plan.data.structure is not None
    assert np.array_equal(found, plan.data.structure) and found.shape == (plan.data.graph.num_entities, 8)
    assert any("starts from graph attention" in note for note in plan.data.describe())


def test_nothing_of_the_table_is_searched(tmp_path: Path) -> None:
    assert not [name for name in marks() if name.startswith("structure.")]
    plan = make_plan(settings(tmp_path), ClusterResources.local())
    assert not [name for name in plan.space.names if name.startswith("structure.")]
    assert plan.data.structure is None
