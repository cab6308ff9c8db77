"""What a plan says before anything is trained."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from small_search import write_graph

import imf_core.train.estimate as estimate_module
from tune.hosts.resources import ClusterResources, Node
from tune.plan.plan import Plan, make_plan
from tune.plan.show import show_plan
from tune.settings import SearchConfig

TWO_CPUS = ClusterResources((Node(2.0),))


def printed(plan: Plan) -> str:
    """The plan on one line, as words."""
    stream = io.StringIO()
    show_plan(Console(file=stream, width=400), plan)
    return " ".join(stream.getvalue().split())


def test_a_plan_warns_where_its_trials_do_not_fit_the_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path / "graph")
    asked = {"data": str(tmp_path / "graph"), "storage": tmp_path / "results", "trials": 4, "concurrency": 2}
    plan = make_plan(SearchConfig.build(asked), TWO_CPUS)
    monkeypatch.setattr(estimate_module, "free_memory", lambda: 2 * plan.memory.total)
    assert "are free" not in printed(plan)
    monkeypatch.setattr(estimate_module, "free_memory", lambda: 2 * plan.memory.total - 1)
    words = printed(plan)
    assert f"warning: 2 workers of about {plan.memory.total / 2**30:.1f} GiB each, but" in words
    assert "lower train.batch_size" in words
