"""The search space: defaults, conditions, simplex, space files, points (case TUNE-4), fingerprint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from imf_core.config import Config, preset
from imf_core.errors import ConfigError
from tune.space.parameter import Parameter, marks
from tune.space.space import SearchSpace

BRANCHES = ("structure", "image", "text", "fused")
WEIGHTS = tuple(f"model.decision_weights.{branch}" for branch in BRANCHES)


class Draw:
    """A stand-in for an Optuna trial: seeded, or always at one end of the range."""

    def __init__(self, seed: int = 0, end: str | None = None, **forced: Any) -> None:
        self.random, self.end, self.forced = random.Random(seed), end, forced

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return {"low": low, "high": high}[self.end] if self.end else self.random.randrange(low, high + 1, step)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        return {"low": low, "high": high}[self.end] if self.end else self.random.uniform(low, high)

    def suggest_categorical(self, name: str, choices: tuple[Any, ...]) -> Any:
        return self.forced.get(name.rpartition(".")[2], self.random.choice(choices))


def space(values: dict[str, Any], config: Config | None = None, fixed: tuple[str, ...] = ()) -> SearchSpace:
    return SearchSpace.from_values(values, config or Config(), BRANCHES, fixed, source="space.yaml")


def test_default_space_holds_the_marked_parameters_and_starts_at_the_base() -> None:
    default = SearchSpace.default(Config(), BRANCHES)
    usual = {name: dict(mark.when or {}) for name, mark in marks().items() if mark.default}
    elsewhere = {"model.cp_rank", "model.meta_dim", "model.fusion_widths"}
    assert elsewhere <= set(usual)  # of another fusion than the default
    expected = (set(usual) - elsewhere) | set(WEIGHTS)
    assert set(default.names) == expected
    assert {"model.fusion_rank", "model.temperature", "model.contrastive_weight", "model.decision", "train.lr"} <= expected
    assert default.config_for(default.default_point()) == Config()
    assert default.notes == ()


def test_overrides_are_not_searched() -> None:
    config = Config().updated({"train.lr": 0.02, "model.decision": "relation"})
    chosen = SearchSpace.default(config, BRANCHES, fixed=("train.lr", "model.decision"))
    assert not {"train.lr", "model.decision", *WEIGHTS} & set(chosen.names)
    for seed in range(20):
        drawn = chosen.config_for(chosen.suggest(Draw(seed)))
        assert (drawn.train.lr, drawn.model.decision) == (0.02, "relation")


def test_senseless_parameters_are_left_out() -> None:
    alone = SearchSpace.default(Config(), ("structure",))
    idle = ("fusion", "decision", "contrastive", "temperature", "dropout_fusion")
    assert not [name for name in alone.names if name.removeprefix("model.").startswith(idle)]
    assert "no effect" in alone.notes[0]
    off = SearchSpace.default(Config().updated({"model.contrastive_weight": 0.0}), BRANCHES)
    assert not {"model.contrastive_weight", "model.temperature"} & set(off.names)
    distmult = SearchSpace.default(Config().updated({"model.scoring": "distmult"}), BRANCHES, {"model.scoring"})
    assert "model.relation_dim" not in distmult.names


OWN = {
    "tucker": {"model.fusion_rank"},
    "meta": {"model.meta_dim", "model.fusion_widths"},
    "meta_cp": {"model.meta_dim", "model.fusion_widths", "model.cp_rank"},
    "concat": {"model.fusion_widths"},
    "gated": set(),
}
ALL_OWN = set.union(*OWN.values())


@pytest.mark.parametrize("fusion", list(OWN))
def test_a_chosen_fusion_operator_brings_its_own_settings_and_no_others(fusion: str) -> None:
    chosen = SearchSpace.default(Config().updated({"model.fusion": fusion}), BRANCHES, fixed=("model.fusion",))
    assert set(chosen.names) & ALL_OWN == OWN[fusion]
    assert chosen.notes == ()
    assert {"model.dropout_fusion", "model.decision", "train.lr"} <= set(chosen.names)
    assert chosen.config_for(chosen.default_point()).model.fusion == fusion
    for seed in range(10):
        assert chosen.config_for(chosen.suggest(Draw(seed))).model.fusion == fusion


@pytest.mark.parametrize("end", ["low", "high", None])
def test_a_searched_fusion_operator_draws_only_its_own_settings(end: str | None) -> None:
    chosen = space({"include": "default", "model.fusion": {"choices": list(OWN)}})
    assert chosen.notes == ()
    assert set(chosen.names) == set(SearchSpace.default(Config(), BRANCHES).names) | ALL_OWN | {"model.fusion"}
    assert chosen.names.index("model.fusion") < min(chosen.names.index(name) for name in ALL_OWN)
    assert chosen.config_for(chosen.default_point()) == Config()  # the first trial is the base: tucker
    for fusion, own in OWN.items():
        for seed in range(10):
            point = chosen.suggest(Draw(seed, end, fusion=fusion))
            assert set(point) & ALL_OWN == own
            assert chosen.validate_point(point) == point
            built = chosen.config_for(point).model
            assert built.fusion == fusion
            assert built.fusion_widths in ((), (128,), (256, 128))
    row = {row.name: row for row in chosen.describe()}["model.cp_rank"]
    assert (row.condition, row.searched, row.range) == ("model.fusion = meta_cp", True, "[4, 64] log")


def test_settings_of_another_operator_are_left_out_with_a_word() -> None:
    chosen = space({"model.cp_rank": {"low": 4, "high": 8}, "model.fusion_rank": {"low": 1, "high": 2}})
    assert chosen.names == ("model.fusion_rank",)
    assert chosen.notes == ("model.cp_rank is left out: model.fusion is never meta_cp",)
    held = space({"include": "default", "model.fusion": "meta_cp", "model.cp_rank": {"low": 4, "high": 8}})
    assert set(held.names) & ALL_OWN == OWN["meta_cp"]
    assert (held["model.cp_rank"].high, held.base.model.fusion) == (8, "meta_cp")


def test_the_published_preset_widens_the_ranges() -> None:
    base = preset("published")
    chosen = SearchSpace.default(base, BRANCHES)
    assert chosen["model.dim"].choices == (64, 96, 128, 256)
    assert chosen.config_for(chosen.default_point()) == base


def test_choices_that_the_base_refuses_are_left_out() -> None:
    scoring = Parameter.of_mark("model.scoring", marks()["model.scoring"], "contextual")
    assert "complex" in scoring.accepted(Config()).choices
    assert scoring.accepted(Config().updated({"model.dim": 65})).choices == ("contextual",)


@pytest.mark.parametrize("end", ["low", "high", None])
@pytest.mark.parametrize("config", [Config(), preset("published"), Config().updated({"model.scoring": "complex"})])
def test_every_draw_is_a_valid_configuration_and_a_valid_point(config: Config, end: str | None) -> None:
    chosen = SearchSpace.default(config, BRANCHES)
    for seed in range(40):
        point = chosen.suggest(Draw(seed, end))
        built = chosen.config_for(point)
        assert chosen.validate_point(point) == point
        fixed = built.model.decision == "fixed"
        assert all((name in point) == fixed for name in WEIGHTS)
        if fixed:
            weights = built.model.decision_weights
            assert weights is not None
            second = {head.branch for head in built.model.all_heads}
            assert set(weights) == set(BRANCHES) - ({"fused"} if built.model.fusion == "none" else set()) | second
            assert sum(weights.values()) == pytest.approx(1.0)
            assert min(weights.values()) > 0


def test_simplex_is_uniform_and_keeps_given_weights() -> None:
    chosen = space({"model.decision": {"choices": ["fixed"]}})
    assert chosen.names == ("model.decision", *WEIGHTS)
    total = dict.fromkeys(BRANCHES, 0.0)
    for seed in range(2000):
        drawn = chosen.config_for(chosen.suggest(Draw(seed))).model.decision_weights
        assert drawn is not None
        total = {branch: total[branch] + drawn[branch] / 2000 for branch in BRANCHES}
    assert total == pytest.approx(dict.fromkeys(BRANCHES, 0.25), abs=0.02)
    given = {"structure": 0.5, "image": 0.125, "text": 0.125, "fused": 0.25}
    base = Config().updated({"model.decision": "fixed", "model.decision_weights": given})
    kept = SearchSpace.default(base, BRANCHES)
    assert kept.config_for(kept.default_point()).model.decision_weights == pytest.approx(given)


def test_space_file(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "train.lr: {low: 1e-4, high: 1e-1, log: true}\n"
        "model.dim: {low: 32, high: 100, step: 32}\n"
        "model.missing: {choices: [mean, neutral]}\n"
        "model.modalities: {choices: [[text], [text, image], []]}\n"
        "model.dropout_input: 0.25\n"
    )
    chosen = SearchSpace.load(file, Config(), BRANCHES)
    assert chosen.names == ("train.lr", "model.dim", "model.missing", "model.modalities")
    assert (chosen["train.lr"].low, chosen["model.dim"].high) == (1e-4, 96)
    first = {"train.lr": 0.008, "model.dim": 96, "model.missing": "mean", "model.modalities": '["text"]'}
    assert chosen.default_point() == first
    assert len(chosen.notes) == 3  # dim, missing and modalities of the base are outside the file's ranges
    drawn = chosen.config_for({**first, "model.dim": 64, "model.modalities": '["text", "image"]'})
    assert (drawn.model.modalities, drawn.model.dropout_input, drawn.model.dim) == (("text", "image"), 0.25, 64)
    more = space({"include": "default", "train.loss": {"choices": ["ce", "bce"]}, "model.dim": 64})
    assert "train.loss" in more.names
    assert "model.dim" not in more.names
    assert set(more.names) == (set(SearchSpace.default(Config(), BRANCHES).names) | {"train.loss"}) - {"model.dim"}


@pytest.mark.parametrize("own", ["none", "complex"])
def test_weights_follow_the_second_relation_model(own: str) -> None:
    base = Config().updated({"model.second_scoring": own})
    branches = BRANCHES if own == "none" else (*BRANCHES, f"structure_{own}")
    kinds = {"model.decision": ["fixed"], "model.second_scoring": ["none", "contextual"]}
    searched = {name: {"choices": choices} for name, choices in kinds.items()}
    chosen = SearchSpace.from_values(searched, base, branches)
    for second, names in (("none", set(BRANCHES)), ("contextual", {*BRANCHES, "structure_contextual"})):
        config = chosen.config_for({**chosen.default_point(), "model.second_scoring": second})
        assert set(config.model.decision_weights) == names


def test_weights_follow_the_drawn_modalities() -> None:
    chosen = space({"model.modalities": {"choices": [["text"], []]}, "model.decision": {"choices": ["fixed"]}})
    point = chosen.suggest(Draw(0, modalities='["text"]'))
    assert set(chosen.to_config_values(point)["model.decision_weights"]) == {"structure", "text", "fused"}
    assert chosen.to_config_values({**point, "model.modalities": "[]"})["model.decision_weights"] == {"structure": 1.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.lrr": {"low": 0.1, "high": 0.2}}, "did you mean 'train.lr'"),
        ({"lr": {"low": 0.1, "high": 0.2}}, "did you mean 'train.lr'"),
        ({"train.lr": {"low": 0.1, "high": 0.01}}, "is above"),
        ({"train.lr": {"low": 0.1, "high": 5}}, "train.lr = 5"),
        ({"train.lr": {"low": 0.0, "high": 0.1, "log": True}}, "low > 0"),
        ({"train.lr": {"low": 0.1, "hihg": 0.2}}, "did you mean 'high'"),
        ({"train.lr": {"low": "a", "high": 1}}, "not a range"),
        ({"model.dropout_input": {"low": 0.0, "high": 1.0}}, "model.dropout_input = 1.0"),
        ({"model.fusion_rank": {"low": 1.5, "high": 3}}, "whole numbers"),
        ({"model.scoring": {"choices": ["distmult", "rotate"]}}, "rotate"),
        ({"model.fusion": {"choices": ["tucker", "mutan"]}}, "mutan"),
        ({"model.fusion": "meta_cp", "model.cp_rank": {"low": 0, "high": 8}}, "model.cp_rank = 0"),
        ({"model.scoring": {"low": 1, "high": 2}}, "numeric"),
        ({"model.scoring": {"choices": ["complex"]}, "model.dim": {"low": 64, "high": 128}}, "even dim, found 65"),
        ({"model.dim": {"choices": []}}, "distinct"),
        ({"model.decision_weights.audio": {"low": 0.1, "high": 1}}, "decision_weights"),
        ({"model.decision": {"choices": ["fixed"]}, "model.decision_weights.text": {"low": 0.0, "high": 1}}, "not within"),
        ({"train.max_epochs": {"low": 1, "high": 9}}, "not searchable"),
        ({"data.text_width": 64}, "belongs to the data"),
        ({"structure.init": "gat"}, "belongs to the structure table"),
        ({"include": "all"}, "include"),
        ({"model.dim": 64}, "nothing is left to search"),
    ],
)
def test_unusable_space_files_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        space(values)


def test_points_out_of_range_or_mistyped_are_refused() -> None:
    chosen = space({"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.dim": {"choices": [64, 128]}})
    with pytest.raises(ConfigError) as high:
        chosen.validate_point({"train.lr": 5.0})
    assert (high.value.key, high.value.value) == ("train.lr", 5.0)
    assert "[0.0001, 0.1]" in str(high.value)
    with pytest.raises(ConfigError, match=r"train.lr_typo is unknown; did you mean 'train.lr'"):
        chosen.validate_point({"train.lr_typo": 0.01})
    with pytest.raises(ConfigError, match="held fixed"):
        chosen.validate_point({"model.fusion_rank": 2})
    for bad in (100, 64.5, "64", True, None, float("nan")):
        with pytest.raises(ConfigError, match=r"model.dim = .* \{64, 128\}"):
            chosen.validate_point({"model.dim": bad})
    for bad in ("0.01", True, None, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"train\.lr"):
            chosen.validate_point({"train.lr": bad})
    assert chosen.validate_point({"train.lr": 0.01, "model.dim": 128}) == {"train.lr": 0.01, "model.dim": 128}
    assert chosen.validate_point({"train.lr": 0.01}) == {"train.lr": 0.01}


def test_parameters_whose_condition_is_false_are_dropped_from_a_point() -> None:
    chosen = SearchSpace.default(Config(), BRANCHES)
    point = {**chosen.default_point(), WEIGHTS[0]: 0.5}
    assert WEIGHTS[0] not in chosen.validate_point(point)
    assert WEIGHTS[0] in chosen.validate_point({**point, "model.decision": "fixed"})


def test_fingerprint_follows_the_space() -> None:
    first, again = SearchSpace.default(Config(), BRANCHES), SearchSpace.default(Config(), BRANCHES)
    assert first.fingerprint == again.fingerprint
    others = [
        SearchSpace.default(Config(), ("structure",)), SearchSpace.default(Config(), BRANCHES, fixed=("train.lr",)),
        space({"include": "default", "train.lr": {"low": 0.001, "high": 0.01}}),
        space({"include": "default", "model.missing": "mean"}),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_describe_lists_every_tunable() -> None:
    rows = {row.name: row for row in space({"train.lr": {"low": 0.001, "high": 0.01}}).describe()}
    assert set(rows) == set(marks()) | set(WEIGHTS)
    assert [name for name, row in rows.items() if row.searched] == ["train.lr"]
    assert rows["train.lr"].range == "[0.001, 0.01]"
    assert rows["train.loss"].range == "{ce, bce}"
    assert not rows["train.loss"].by_default
    assert rows["train.weight_decay"].default == 0.0
    assert rows[WEIGHTS[0]].condition == "model.decision = fixed"


def test_step_and_clamp() -> None:
    grid = Parameter.parse("model.dim", {"low": 16, "high": 50, "step": 16}, 40)
    assert (grid.low, grid.high, grid.default, grid.corners()) == (16, 48, 48, [16, 32, 48])
    with pytest.raises(ConfigError, match="step 16"):
        grid.check(20)
    assert Parameter.parse("train.batch_size", {"choices": [128, 512]}, 200).default == 128


def test_s1_a_space_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    for content in (b"# gr\xfcn\ntrain.lr: {low: 1e-4, high: 1e-2}\n", "train.lr: {low: 1, high: 2}\n".encode("utf-16")):
        (tmp_path / "space.yaml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"space\.yaml is not UTF-8"):
            SearchSpace.load(tmp_path / "space.yaml", Config(), ("structure",))


def test_s2_choices_of_a_number_are_numbers() -> None:
    space = SearchSpace.from_values({"train.lr": {"choices": ["1e-3", 1e-2, "0.1"]}}, Config(), ("structure",))
    assert space["train.lr"].choices == (0.001, 0.01, 0.1)
    whole = SearchSpace.from_values({"model.dim": {"choices": ["6e1", 128]}}, Config(), ("structure",))
    assert repr(whole["model.dim"].choices) == "(60, 128)"


def test_s3_sections_may_be_nested() -> None:
    rates = {"lr": {"low": "1e-4", "high": "1e-2", "log": True}}
    nested = {"train": rates, "model": {"dim": {"choices": [64, 128]}, "fusion_rank": 2}}
    flat = {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model.dim": {"choices": [64, 128]}, "model.fusion_rank": 2}
    spaces = [SearchSpace.from_values(values, Config(), ("structure",)) for values in (nested, flat)]
    assert spaces[0].fingerprint == spaces[1].fingerprint
    assert spaces[0].base == spaces[1].base


@pytest.mark.parametrize(
    "content", ["train.lr: {low: 1e-4, high: 1e-2}  # für".encode("cp1252"), "train.lr: {}".encode("utf-32")]
)
def test_s1_other_encodings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "space.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"space\.yaml is not UTF-8"):
        SearchSpace.load(tmp_path / "space.yaml", Config(), ("structure",))


@pytest.mark.parametrize(
    ("entry", "choices"),
    [({"choices": ["1E-3", "+2.5e-2"]}, (0.001, 0.025)), ({"choices": ["5e-4", 0.01]}, (0.0005, 0.01))],
)
def test_s2_numbers_in_other_spellings(entry: dict[str, Any], choices: tuple[float, ...]) -> None:
    assert SearchSpace.from_values({"train.lr": entry}, Config(), ("structure",))["train.lr"].choices == choices


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}, "model.dim": {"choices": [8, 16]}},
        {"train": {"lr": {"low": "1e-4", "high": "1e-2", "log": True}}, "model": {"dim": {"choices": [8, 16]}}},
    ],
)
def test_s3_nested_and_dotted_together(values: dict[str, Any]) -> None:
    space = SearchSpace.from_values(values, Config(), ("structure",))
    assert {parameter.name for parameter in space.parameters} == {"train.lr", "model.dim"}


ADAGRAD = {"model.norm": "none", "model.init_scale": 1e-3, "train.regularizer": "n3", "model.fusion": "none"}


def settings_of(chosen: SearchSpace, **changes: Any) -> dict[str, Any]:
    """All settings of the point nearest to `train_optimizer="adagrad"` and the like."""
    return chosen.config_for(chosen.near({name.replace("_", ".", 1): value for name, value in changes.items()})).flat()


def test_a_choice_brings_the_settings_that_belong_to_it() -> None:
    chosen = SearchSpace.default(Config(), BRANCHES)
    adagrad, adam = (chosen.near({"train.optimizer": optimizer}) for optimizer in ("adagrad", "adam"))
    assert ADAGRAD.items() <= chosen.config_for(adagrad).flat().items()
    assert chosen.config_for(adam) == Config()
    assert not set(adagrad) & set(ADAGRAD)
    only = {"train.table_lr", "train.regularizer_weight"}
    assert only <= set(adagrad)
    assert not only & set(adam)
    assert {"model.fusion_rank", "model.dropout_fusion"} <= set(adam) - set(adagrad)
    decided = chosen.config_for(chosen.near({"train.optimizer": "adagrad", "model.decision": "fixed"})).model
    assert set(decided.decision_weights or ()) == set(BRANCHES) - {"fused"}
    assert set(chosen.validate_point({**adagrad, **adam})) == set(adam)
    rows = {row.name: row.condition for row in chosen.describe()}
    assert rows["model.norm"] == "none with train.optimizer = adagrad"


def test_what_is_set_otherwise_is_not_brought(tmp_path: Path) -> None:
    held = SearchSpace.default(Config().updated({"model.norm": "batch"}), BRANCHES, fixed=("model.norm",))
    assert settings_of(held, train_optimizer="adagrad")["model.norm"] == "batch"
    assert settings_of(held, train_optimizer="adagrad")["train.regularizer"] == "n3"
    file = space({"include": "default", "model.init_scale": 0.01, "train.regularizer": {"choices": ["dura", "none"]}})
    found = settings_of(file, train_optimizer="adagrad", train_regularizer="dura")
    assert (found["model.norm"], found["model.init_scale"], found["train.regularizer"]) == ("none", 0.01, "dura")
    assert "train.regularizer_weight" not in file.near({"train.optimizer": "adagrad", "train.regularizer": "none"})
    alone = space({"train.optimizer": {"choices": ["adam", "adagrad"]}})
    assert ADAGRAD.items() <= settings_of(alone, train_optimizer="adagrad").items()


def test_the_base_stays_the_first_trial_whatever_its_optimizer() -> None:
    base = Config().updated({"train.optimizer": "adagrad", "train.regularizer": "dura"})
    chosen = SearchSpace.default(base, BRANCHES)
    assert chosen.config_for(chosen.default_point()) == base
    assert SearchSpace.default(Config(), BRANCHES, fixed=("train.optimizer",)).fingerprint != chosen.fingerprint
