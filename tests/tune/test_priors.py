"""What a search tries first: the base settings, shipped points of other graphs, or only what the sampler draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from imf_core.config import FUSED, STRUCTURE, Config
from tune import priors
from tune.priors import Prior, prior_points, shipped
from tune.records import TRIALS_FILE, TrialRecord, TrialState
from tune.sampler import make_sampler, sampler_settings
from tune.space import SearchSpace
from tune.study import StudySearch

BRANCHES = (STRUCTURE, "image", "text", FUSED)
GOOD = {"train.lr": 0.006, "model.fusion_rank": 1, "model.dropout_input": 0.1}


@pytest.fixture
def shipping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points of one graph and one of another."""
    points = (
        Prior(data="A", mrr=0.3, point=GOOD), Prior(data="A", mrr=0.2, point={**GOOD, "train.lr": 0.004}),
        Prior(data="B", mrr=0.5, point={**GOOD, "model.fusion_rank": 2}),
    )
    monkeypatch.setattr(priors, "shipped", lambda: points)


def test_every_shipped_point_fits_the_default_space() -> None:
    """They are many enough to begin with, and a change of the space's ranges does not make them useless unseen."""
    space = SearchSpace.default(Config(), BRANCHES)
    assert len(shipped()) >= 4
    for prior in shipped():
        names = {name for name in prior.point if name in space.names}
        assert space.validate_point({name: prior.point[name] for name in names})
        assert len(names) >= len(prior.point) - 3  # weights of branches that another graph does not have
        assert 0 < prior.mrr < 1


@pytest.mark.usefixtures("shipping")
def test_points_come_in_their_order_and_say_where_from() -> None:
    space = SearchSpace.default(Config(), BRANCHES)
    found = prior_points(space)
    assert [point["train.lr"] for point in found.points] == [0.006, 0.004, 0.006]
    assert found.known == ()  # a value of another graph is none here
    assert "3 shipped points" in found.note and "A, B" in found.note
    assert len(prior_points(space, without=["A"]).points) == 1


@pytest.mark.usefixtures("shipping")
def test_what_does_not_fit_is_left_to_the_sampler() -> None:
    """A range of the user's own counts; a point of which too little is left is none."""
    narrow = SearchSpace.from_values({
        "train.lr": {"low": 0.005, "high": 0.01}, "model.fusion_rank": {"low": 1, "high": 2},
        "model.dropout_input": {"low": 0.0, "high": 0.2},
    }, Config(), BRANCHES)
    points = prior_points(narrow).points
    assert points[0] == GOOD and points[1] == {"model.fusion_rank": 1, "model.dropout_input": 0.1}
    other = SearchSpace.from_values({"model.temperature": {"low": 0.1, "high": 0.2}}, Config(), BRANCHES)
    assert prior_points(other).points == () and prior_points(other).note == ""


def test_a_search_can_begin_with_the_base_or_with_draws_alone() -> None:
    space = SearchSpace.default(Config(), BRANCHES)
    drawn = StudySearch(space, seed=3, base=False)
    assert drawn.first_points == []
    first = drawn.suggest("a")
    assert isinstance(first, dict) and first["params"] != space.default_point()
    again = StudySearch(space, seed=3, base=False).suggest("x")
    assert again == first
    begun = StudySearch(space, seed=3, points=[GOOD]).first_points
    assert begun == [space.default_point(), GOOD]


def test_chance_draws_the_same_with_the_same_seed_whatever_it_is_told() -> None:
    space = SearchSpace.default(Config(), BRANCHES)
    draws = []
    for value in (0.1, 0.9):
        search = StudySearch(space, seed=3, kind="random", base=False, startup=1)
        for number in range(4):
            point = search.suggest(str(number))
            search.on_trial_complete(str(number), {"epoch": 1, "best_mrr": value / (1 + number)})
            draws.append(point)
    assert draws[:4] == draws[4:]
    assert type(make_sampler(0, kind="random")).__name__ == "RandomSampler"
    assert sampler_settings(4, kind="random")["sampler"] == "random"


def test_points_of_a_study_are_printed_as_they_are_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = (("completed", 0.2), ("completed", 0.3), ("pruned", 0.9), ("failed", None))
    params = {"train.lr": 0.00123456}
    records = [
        TrialRecord(number, f"trial-{number:03}", TrialState(state), params, mrr, 3, 3, 1.0)
        for number, (state, mrr) in enumerate(ends)
    ]
    folder = tmp_path / "MINE"
    folder.mkdir()
    (folder / TRIALS_FILE).write_text(json.dumps([record.to_json() for record in records]))
    priors.main([folder], best=1)
    (entry,) = yaml.safe_load(capsys.readouterr().out)
    assert Prior.model_validate(entry) == Prior(data="MINE", mrr=0.3, point={"train.lr": 0.00123})
