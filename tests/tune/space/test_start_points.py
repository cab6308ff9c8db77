"""Start points from other graphs: they fit any space, and a search begins with them unless told otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_search import write_graph

from imf_core.config import Config
from imf_core.recommend.config import RecommendConfig
from tune.hosts.resources import ClusterResources
from tune.pipeline import searcher
from tune.plan.opening import open_study
from tune.plan.plan import make_plan
from tune.settings import SearchConfig
from tune.space.space import SearchSpace
from tune.space.start_points import START_POINTS, start_points
from tune.study.sampler import STARTUP

BRANCHES = ("structure", "text", "fused")


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.default(Config(), BRANCHES)


def test_each_point_is_what_it_says_in_the_space_that_is_searched_by_default(space: SearchSpace) -> None:
    assert START_POINTS["link"]
    for point, made in zip(START_POINTS["link"], start_points(space, "link"), strict=True):
        assert {name: made[name] for name in point.values} == point.values
        assert made == space.validate_point(made) and space.is_complete(made)
        assert made != space.default_point()
        space.config_for(made)


def test_a_point_is_moved_into_a_narrower_space() -> None:
    narrow = SearchSpace.from_values(
        {"train.lr": {"low": 1e-3, "high": 2e-3}, "train.batch_size": {"choices": [1024, 2048]},
         "model.dropout_context": {"low": 0.4, "high": 0.5}}, Config(), BRANCHES,
    )
    for made in start_points(narrow, "link"):
        assert made == narrow.validate_point(made)
        assert 1e-3 <= made["train.lr"] <= 2e-3 and made["train.batch_size"] == 1024


def test_a_space_of_other_settings_takes_none() -> None:
    other = SearchSpace.from_values({"train.lr": {"low": 1e-3, "high": 2e-3}}, Config(), BRANCHES)
    assert start_points(other, "link") == []


def test_a_penalty_is_tried_among_the_first_three_trials(space: SearchSpace) -> None:
    first = [space.config_for(point).flat() for point in (space.default_point(), *start_points(space, "link"))][:3]
    assert "n3" in {settings["train.regularizer"] for settings in first}


def test_points_of_another_optimizer_are_left_out() -> None:
    for kept, left in (("adam", "adagrad"), ("adagrad", "adam")):
        base = Config().updated({"train.optimizer": kept})
        made = start_points(SearchSpace.default(base, BRANCHES, fixed=("train.optimizer",)), "link")
        values = [point.values for point in START_POINTS["link"]]
        assert 0 < len(made) == sum(point["train.optimizer"] == kept for point in values) < len(values), left


def test_the_points_of_a_graph_can_be_left_out(space: SearchSpace) -> None:
    names = {point.graph for point in START_POINTS["link"]}
    assert len(start_points(space, "link", without=names)) == 0


def test_a_task_without_start_points_has_none() -> None:
    assert start_points(SearchSpace.default(RecommendConfig(), ()), "recommend") == []


@pytest.mark.parametrize(("first", "begins"), [("shipped", "base and shipped"), ("base", "base"), ("drawn", "")])
def test_what_a_search_begins_with(tmp_path: Path, first: str, begins: str) -> None:
    write_graph(tmp_path / "graph")
    asked: dict[str, Any] = {"data": str(tmp_path / "graph"), "storage": str(tmp_path), "study": "s", "first": first}
    plan = make_plan(SearchConfig.build(asked), ClusterResources.local())
    with open_study(plan) as study:
        search = searcher(plan, study)
    points = search.first_points
    # Good settings take the place of half of the draws by chance.
    assert plan.startup == (STARTUP // 2 if "shipped" in begins else STARTUP)
    assert search.study.sampler._n_startup_trials == plan.startup  # type: ignore[attr-defined]
    without = replace(plan, without=tuple(point.graph for point in START_POINTS["link"]))
    assert (without.start_points, without.startup) == ([], STARTUP)
    expected = [plan.space.default_point()] if "base" in begins else []
    assert points == [*expected, *(start_points(plan.space, "link") if "shipped" in begins else [])]


def test_it_is_the_default() -> None:
    assert SearchConfig.build({"data": "unicode"}).first == "shipped"
