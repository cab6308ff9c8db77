"""Which settings a leaderboard shows, and how numbers are written."""

from __future__ import annotations

from tune.report.formatting import differing


def test_settings_that_tell_trials_apart_go_by_importance_with_the_learning_rate_first() -> None:
    trials = [
        {"train.lr": 0.1, "model.dim": 64, "model.rank": 2, "train.loss": "ce", "model.fusion_rank": 1},
        {"train.lr": 0.2, "model.dim": 96, "model.rank": 3, "train.loss": "ce"},
    ]
    assert differing(trials) == {
        "train.lr": "lr", "model.dim": "dim", "model.fusion_rank": "fusion_rank", "model.rank": "rank"
    }
    assert list(differing(trials, {"model.rank": 0.5, "model.dim": 0.3, "train.lr": 0.1})) == [
        "train.lr", "model.rank", "model.dim", "model.fusion_rank"
    ]


def test_the_learning_rate_is_shown_where_all_trials_have_the_same() -> None:
    assert differing([{"train.lr": 0.1, "train.loss": "ce"}] * 2) == {"train.lr": "lr"}
    assert differing([{"train.loss": "ce"}, {"train.loss": "bce"}]) == {"train.loss": "loss"}
    assert differing([]) == {}


def test_a_name_is_short_only_where_no_other_setting_ends_like_it() -> None:
    trials = [{"train.lr": 0.1, "structure.lr": 0.1, "model.dim": 1}, {"train.lr": 0.2, "structure.lr": 0.2, "model.dim": 2}]
    assert differing(trials) == {"train.lr": "train.lr", "model.dim": "dim", "structure.lr": "structure.lr"}
