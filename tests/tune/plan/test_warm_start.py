"""What a search takes over from an earlier study or a leaderboard, and what it refuses (case TUNE-4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imf_core.config import Config
from imf_core.errors import ConfigError, DataError
from tune.plan.warm_start import warm_start
from tune.report.files import write_leaderboard
from tune.space.space import SearchSpace
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, load_records
from tune.study.searcher import StudySearch

BRANCHES = ("structure", "image", "text", "fused")
LR = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dim": {"choices": [64, 128]}}
TIED = {"data": "d1", "features": "f1", "code": "c1", "train.max_epochs": 10, "sampler.seed": 0, "space: train.lr": 1}


@pytest.fixture
def space() -> SearchSpace:
    return SearchSpace.from_values(LR, Config(), BRANCHES)


def record(number: int, state: TrialState, best: float | None, **params: Any) -> TrialRecord:
    named = {name.replace("_", ".", 1): value for name, value in params.items()}
    return TrialRecord(number, f"trial-{number:03d}", state, named, best, 1, 1, 1.0)


def study(folder: Path, *records: TrialRecord, tied: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trials.json").write_text(json.dumps([item.to_json() for item in records]))
    write_leaderboard(records, folder)
    if tied is not None:
        (folder / "journal.jsonl").write_text(json.dumps({"event": "study", "tied": tied}) + "\n")
    return folder


ROWS = (
    record(0, TrialState.COMPLETED, 0.1, train_lr=0.01, model_dim=64),
    record(1, TrialState.PRUNED, 0.3, train_lr=0.02, model_dim=64),
    record(2, TrialState.DIVERGED, 0.9, train_lr=0.03, model_dim=64),
    record(3, TrialState.COMPLETED, None, train_lr=0.04, model_dim=64),
    record(4, TrialState.COMPLETED, 0.2, train_lr=0.1 + 0.2 - 0.25, model_dim=128),
    record(5, TrialState.FAILED, 0.8, train_lr=0.06, model_dim=64),
    record(6, TrialState.STOPPED, 0.7, train_lr=0.07, model_dim=64),
    record(7, TrialState.COMPLETED, 0.05, train_lr=0.02, model_dim=64),  # the setting of trial 1 again
)
BEST = tuple({"train.lr": lr, "model.dim": dim} for lr, dim in ((0.02, 64), (0.1 + 0.2 - 0.25, 128), (0.01, 64)))


@pytest.mark.parametrize("file", ["", "leaderboard.csv"])
def test_the_best_finite_points_come_first(space: SearchSpace, tmp_path: Path, file: str) -> None:
    folder = study(tmp_path / "old", *ROWS)
    found = warm_start(folder / file, space, TIED)
    assert found.points == BEST
    assert found.known == ()
    assert "without their values (its data is not on record)" in found.note
    search = StudySearch(space, points=found.points)
    drawn = [search.suggest(name) for name in "abcd"]
    assert [point["params"] for point in drawn if isinstance(point, dict)] == [space.default_point(), *BEST]
    assert warm_start(None, space, TIED).points == ()


@pytest.mark.parametrize("file", ["", "leaderboard.csv"])
def test_values_hold_where_data_and_fixed_settings_agree(space: SearchSpace, tmp_path: Path, file: str) -> None:
    then = {**TIED, "code": "c0", "sampler.seed": 5, "space: train.lr": 2}  # how it was searched does not change a value
    found = warm_start(study(tmp_path / "old", *ROWS, tied=then) / file, space, TIED)
    assert found.points == BEST[:1]  # trained again, so that this study has a winner of its own
    assert found.known == ((BEST[1], 0.2), (BEST[2], 0.1))
    assert "the values of 2 more are reused" in found.note
    search = StudySearch(space, points=found.points, known=found.known)
    assert sorted(trial.value for trial in search.study.trials if trial.value is not None) == [0.1, 0.2]


@pytest.mark.parametrize("change", [{"data": "d2"}, {"features": "f2"}, {"train.max_epochs": 20}, {"model.missing": "drop"}])
def test_values_of_other_data_or_settings_are_not_taken_over(
    space: SearchSpace, tmp_path: Path, change: dict[str, Any]
) -> None:
    found = warm_start(study(tmp_path / "old", *ROWS, tied={**TIED, **change}), space, TIED)
    assert found.points == BEST
    assert found.known == ()
    assert f"it had other {next(iter(change))}" in found.note


def test_an_incomplete_point_is_no_known_one(space: SearchSpace, tmp_path: Path) -> None:
    rows = record(0, TrialState.COMPLETED, 0.3, train_lr=0.01), record(1, TrialState.COMPLETED, 0.2, train_lr=0.02)
    found = warm_start(study(tmp_path / "old", *rows, tied=TIED), space, TIED)
    assert found.points == ({"train.lr": 0.01},)
    assert found.known == ()


@pytest.mark.parametrize("file", ["", "leaderboard.csv"])
def test_what_does_not_fit_is_refused_before_any_training(space: SearchSpace, tmp_path: Path, file: str) -> None:
    for row, words in (
        (record(3, TrialState.COMPLETED, 0.1, train_lrr=0.01), "train.lrr is unknown; did you mean 'train.lr'"),
        (record(3, TrialState.COMPLETED, 0.1, train_lr=0.5), r"train.lr = 0.5 is outside \[0.0001, 0.1\]"),
        (record(3, TrialState.COMPLETED, 0.1, train_seed=4), "train.seed is held fixed in this search"),
        (record(3, TrialState.FAILED, None, train_lr=0.01), "no trial in .* has a finite value"),
    ):
        with pytest.raises(ConfigError, match=words) as found:
            warm_start(study(tmp_path / "old", row) / file, space, TIED)
        assert "line 2" in str(found.value) or "trial 3" in str(found.value) or "no trial" in str(found.value)


def test_damaged_sources_are_named_with_line(space: SearchSpace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trials\.json"):
        warm_start(tmp_path, space, TIED)
    file = study(tmp_path / "old", *ROWS) / "leaderboard.csv"
    assert len(load_records(file.parent)) == len(ROWS)
    head, *rows = file.read_text().splitlines()
    lines = [head, *(row for row in rows if ",pruned," in row or ",completed," in row)]
    cells = "line 3: the line and the header have different numbers of cells"
    for content, words in (
        ("a,b\n1,2\n", "line 1: the column 'state' is missing"),
        (
            "\n".join([lines[0], lines[1].replace("0.3", "high", 1)]),
            r"line 2: best_validation_mrr is not a finite number \(found 'high'",
        ),
        ("\n".join([lines[0], lines[1], lines[2] + ",more"]), cells),
        ("\n".join([lines[0], lines[1], "1,2"]), cells),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=words):
            warm_start(file, space, TIED)
