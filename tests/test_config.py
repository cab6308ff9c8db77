"""Settings: unknown keys with the nearest name, bounds, overrides, presets, YAML, frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from imf_core.config import Config, ModelConfig, preset, published
from imf_core.config_base import nearest, parse_overrides
from imf_core.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "key", "near"),
    [
        ({"train": {"lrr": 0.1}}, "train.lrr", "'train.lr'"),
        ({"model": {"fusion_rnk": 2}}, "model.fusion_rnk", "'model.fusion_rank'"),
        ({"data": {"pth": "x"}}, "data.pth", "'data.path'"),
        ({"trian": {}}, "trian", "'train'"),
        ({"train": {"learning_rate": 0.1}}, "train.learning_rate", "'train.lr'"),
        ({"structure": {"learning_rate": 0.1}}, "structure.learning_rate", "'structure.lr'"),
        ({"lr": 0.1}, "lr", "'train.lr'"),
        ({"model": {"lr": 0.1}}, "model.lr", "'train.lr'"),
        ({"model": {"embedding_dim": 64}}, "model.embedding_dim", "'model.dim'"),
        ({"model": {"hidden_size": 64}}, "model.hidden_size", "'model.dim'"),
        ({"train": {"batchsize": 64}}, "train.batchsize", "'train.batch_size'"),
        ({"train": {"epochs": 9}}, "train.epochs", "'train.max_epochs'"),
        ({"train": {"num_epochs": 9}}, "train.num_epochs", "'train.max_epochs'"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], key: str, near: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting") as caught:
        Config.build(values, source="mine.yaml")
    assert str(caught.value).startswith(f"mine.yaml: unknown setting {key}; did you mean {near}?")
    assert caught.value.key == key


def test_an_unknown_key_far_from_all_others_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.build({"train": {"zzz": 1}})
    assert "did you mean" not in str(caught.value)
    assert "train.lr" in caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.lr", 0.0),
        ("train.lr", 1.5),
        ("train.lr", float("nan")),
        ("train.lr", "fast"),
        ("train.loss", "mse"),
        ("train.label_smoothing", 1.0),
        ("train.batch_size", 0),
        ("train.batch_size", 1.5),
        ("train.seed", -1),
        ("train.seed", 2**31),
        ("model.dim", 1),
        ("model.dropout_input", 1.0),
        ("model.dropout_input", -0.1),
        ("model.temperature", 0.0),
        ("model.contrastive_weight", float("inf")),
        ("model.fusion_rank", 0),
        ("model.fusion", "mutan"),
        ("model.meta_dim", 0),
        ("model.cp_rank", 0),
        ("model.fusion_widths", [1] * 9),
        ("model.missing", "zero"),
        ("data.text_width", 1),
    ],
)
def test_values_out_of_range_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Config().updated({key: value}, source="--set")
    assert str(caught.value).startswith(f"--set: {key} = ")
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scoring": "complex", "dim": 33}, "complex needs an even dim, found 33"),
        ({"decision": "fixed", "decision_weights": {"structure": -1.0, "fused": 2.0}}, "must be >= 0 with a positive sum"),
        ({"decision": "fixed", "decision_weights": {"structure": 0.0}}, "must be >= 0 with a positive sum"),
        ({"decision": "fixed", "decision_weights": {}}, "must be >= 0 with a positive sum"),
        ({"decision": "fixed", "decision_weights": {"structure": float("nan")}}, "finite number"),
    ],
)
def test_settings_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.build({"model": values})


@pytest.mark.parametrize("other", [{"train.loss": "bce"}, {"train.weighting": "query"}])
def test_parts_of_a_query_need_a_loss_that_counts_triples(other: dict[str, Any]) -> None:
    assert Config().updated({"train.answers_per_query": 8}).train.answers_per_query == 8
    with pytest.raises(ConfigError, match="answers_per_query goes with the loss ce and the weighting triple"):
        Config().updated({"train.answers_per_query": 8, **other})


def test_a_second_relation_model_is_a_branch_with_a_recipe_of_its_own() -> None:
    model = Config().updated({"model.second_scoring": "contextual", "model.norm": "none", "model.scoring": "complex"}).model
    (head,) = model.all_heads
    assert (head.branch, head.optimizer, head.penalty) == ("structure_contextual", "adam", 0.0)
    assert (model.of_head(head).norm, model.of_head(head).dim, model.of_head(head).all_heads) == ("batch", model.dim, ())
    assert Config().model.all_heads == ()
    with pytest.raises(ConfigError, match="structure_complex twice"):
        Config().updated({"model.second_scoring": "complex", "model.heads": [{"view": "structure", "scoring": "complex"}]})


def test_fixed_weights_are_kept() -> None:
    made = Config.build({"model": {"decision": "fixed", "decision_weights": {"structure": 1, "fused": 3}}})
    assert made.model.decision_weights == {"structure": 1.0, "fused": 3.0}
    assert Config.build({"model": {"decision": "fixed"}}).model.decision_weights is None


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("train.lr=1e-3", "train.lr", 1e-3),
        ("train.lr=.5E-2", "train.lr", 0.005),
        ("train.lr = 2e-3", "train.lr", 2e-3),
        ("train.lr=0.01", "train.lr", 0.01),
        ("train.seed=7", "train.seed", 7),
        ("model.modalities=[text, image]", "model.modalities", ["text", "image"]),
        ("model.modalities=[]", "model.modalities", []),
        ("model.modalities=null", "model.modalities", None),
        ("model.modalities=", "model.modalities", None),
        ("model.finetune_features=true", "model.finetune_features", True),
        ("model.decision_weights={structure: 1.0}", "model.decision_weights", {"structure": 1.0}),
        ("data.path=my=graph", "data.path", "my=graph"),
        ("data.path='1e5'", "data.path", "1e5"),
        ("data.path=nan", "data.path", "nan"),
    ],
)
def test_overrides(assignment: str, key: str, value: object) -> None:
    parsed = parse_overrides([assignment])
    assert parsed == {key: value}
    assert type(parsed[key]) is type(value)


@pytest.mark.parametrize("assignment", ["train.lr", "=3", "", " = 3"])
def test_no_assignment(assignment: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the setting"):
        parse_overrides([assignment])


@pytest.mark.parametrize("assignment", ["model.modalities=[text", "data.path='x", "a={b: "])
def test_a_broken_value_is_an_error_of_ours(assignment: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the value of"):
        parse_overrides([assignment])


def test_the_last_override_wins_and_the_original_stays() -> None:
    base = Config()
    made = base.updated(parse_overrides(["train.lr=0.5", "train.lr=0.25", "model.modalities=[text]"]))
    assert (made.train.lr, made.model.modalities) == (0.25, ("text",))
    assert base == Config()


def test_an_override_below_a_plain_value() -> None:
    with pytest.raises(ConfigError, match=r"train.lr.x goes below the plain value lr"):
        Config().updated({"train.lr.x": 1})


def test_weights_can_be_set_one_by_one() -> None:
    made = Config().updated(
        {"model.decision": "fixed", "model.decision_weights.text": 0.25, "model.decision_weights.fused": 0.75}
    )
    assert made.model.decision_weights == {"text": 0.25, "fused": 0.75}


def test_flat_and_updated_are_inverse() -> None:
    for made in (Config(), published(), Config().updated({"model.decision_weights": {"text": 1.0}, "model.decision": "fixed"})):
        flat = made.flat()
        assert Config().updated(flat) == made
        assert all("." in key for key in flat)
    assert Config().flat()["train.lr"] == Config().train.lr


def test_presets() -> None:
    assert preset("paper") == Config()
    made = preset("published")
    assert (
        made.train.loss,
        made.train.weighting,
        made.model.decision,
        made.model.contrastive_weight,
        made.model.joint_weight,
    ) == (
        "bce",
        "query",
        "uniform",
        0.0,
        0.0,
    )
    assert (made.model.dim, made.model.relation_dim, made.train.label_smoothing) == (256, 256, 0.1)
    assert made.model.finetune_features
    with pytest.raises(ConfigError, match="unknown preset 'other'") as caught:
        preset("other")
    assert "paper, published" in caught.value.remedy


def test_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {dim: 32, modalities: [text]}\ntrain:\n  lr: 1e-3\n")
    made = Config.load(file)
    assert (made.model.dim, made.model.modalities, made.train.lr) == (32, ("text",), 1e-3)
    file.write_text(yaml.safe_dump(Config().model_dump(mode="json")))
    assert Config.load(file) == Config()
    file.write_text("")
    assert Config.load(file) == Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "is not valid YAML"),
        (b"- a\n- b\n", "holds list, not settings"),
        (b"just words", "holds str, not settings"),
        (b"model: 3\n", "model = 3 is refused"),
        (b"modle: {}\n", "unknown setting modle; did you mean 'model'"),
        (b"\xff\xfe\xff", "is not UTF-8"),
        (b"model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_unusable_yaml_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Config.load(file)
    assert str(file) in str(caught.value)


def test_a_missing_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine.yaml cannot be read"):
        Config.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("part", ["data", "structure", "model", "train"])
def test_frozen(part: str) -> None:
    made = Config()
    with pytest.raises(ValidationError):
        setattr(made, part, None)
    section = getattr(made, part)
    with pytest.raises(ValidationError):
        setattr(section, next(iter(type(section).model_fields)), 1)


def test_every_default_is_described_or_plain() -> None:
    undescribed = [name for name, field in ModelConfig.model_fields.items() if not field.description]
    assert undescribed == []


def test_nearest() -> None:
    assert nearest("lrr", ["lr", "seed"]) == "; did you mean 'lr'?"
    assert nearest("qqqq", ["lr", "seed"]) == ""
