"""The settings that a part brings: in a configuration, its file, `--set`, the space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import command_line
import pytest
import yaml

import imf_core
from imf_core.config import Config
from imf_core.errors import ConfigError
from imf_core.model.fusion.base import Fusion
from imf_core.model.scoring import DistMult
from tune.space.parameter import ranges
from tune.space.space import SearchSpace

pytestmark = pytest.mark.usefixtures("installed")
BRANCHES = ("structure", "text", "fused")


class Draw:
    """An Optuna trial that takes the last choice and the top of each range."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[-1]

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return high

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return high


def test_those_of_a_chosen_part_are_there_and_no_others() -> None:
    assert not [name for name in Config().flat() if name.count(".") > 1]
    config = Config().updated({"model.scoring": "rotate"})
    assert config.flat()["model.rotate.margin"] == 6.0
    assert config.model.rotate.margin == 6.0  # type: ignore[attr-defined]
    assert "model.weighted.squash" not in config.flat()
    changed = config.updated({"model.rotate.margin": 9})
    assert changed.flat()["model.rotate.margin"] == 9.0
    assert Config.build(changed.model_dump()) == changed != config


def test_a_file_of_settings_holds_them(tmp_path: Path) -> None:
    text = "model:\n  scoring: rotate\n  rotate:\n    margin: 12\ndata:\n  text_encoder: hashes\n"
    (tmp_path / "config.yaml").write_text(text)
    flat = Config.load(tmp_path / "config.yaml").flat()
    assert (flat["model.rotate.margin"], flat["data.hashes.width"]) == (12.0, 32)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(Config.load(tmp_path / "config.yaml").model_dump(mode="json")))
    assert Config.load(tmp_path / "all.yaml").flat() == flat


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model.rotate.margin": 0}, r"model\.rotate\.margin = 0 is refused: Input should be greater than 0"),
        ({"model.rotate.margin": "far"}, r"model\.rotate\.margin = 'far' is refused"),
        ({"model.rotate.margn": 3}, r"unknown setting model\.rotate\.margn; did you mean 'margin'"),
        ({"model.rotat.margin": 3}, r"unknown setting model\.rotat"),
        ({"model.rotate": 3}, r"unknown setting model\.rotate"),
        ({"model.scoring": "rotate", "model.dim": 33}, "rotate needs an even dim, found 33"),
        ({"model.weighted.squash": "relu"}, r"model\.weighted\.squash = 'relu' is refused"),
    ],
)
def test_what_is_wrong_is_refused_as_elsewhere(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config().updated(changed)


def test_a_chosen_part_is_searched_over_its_ranges() -> None:
    config = Config().updated({"model.scoring": "rotate", "model.fusion": "weighted"})
    space = SearchSpace.default(config, BRANCHES, ("model.scoring", "model.fusion"))
    assert {"model.rotate.margin", "model.weighted.squash"} <= set(space.names)
    assert not {"model.relation_dim", "model.fusion_rank", "data.hashes.width"} & set(space.names)
    assert space["model.rotate.margin"].shown == "[1, 24] log"
    drawn = space.config_for(space.suggest(Draw()))
    assert drawn.flat()["model.rotate.margin"] == 24.0 and drawn.flat()["model.weighted.squash"] == "none"
    structure = SearchSpace.default(config, ("structure",), ("model.scoring", "model.fusion"))
    assert "model.weighted.squash" not in structure.names  # there is nothing to fuse


def test_a_space_file_names_parts_that_the_base_does_not(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("model:\n  scoring: {choices: [contextual, rotate]}\n  rotate:\n    margin: {low: 2, high: 8}\n")
    space = SearchSpace.load(file, Config(), BRANCHES)
    assert space.names == ("model.scoring", "model.rotate.margin")
    assert space.suggest(Draw()) == {"model.scoring": "rotate", "model.rotate.margin": 8.0}
    assert "model.rotate.margin" not in space.config_for({"model.scoring": "contextual"}).flat()
    (row,) = [row for row in space.describe() if row.name == "model.rotate.margin"]
    assert (row.searched, row.range, row.default, row.condition) == (True, "[2, 8]", 6.0, "model.scoring = rotate")
    dotted = ranges({"model.scoring": ["contextual", "rotate"], "model.rotate.margin": (2.0, 8.0)})
    assert dotted["model.rotate.margin"]["log"] is True  # as its own range
    held = SearchSpace.from_values({"model.scoring": ["x"], "train.lr": {"low": 1e-3, "high": 1e-2}} | {
        "model.scoring": "rotate", "model.rotate.margin": 3.0,
    }, Config(), BRANCHES)
    assert held.base.flat()["model.rotate.margin"] == 3.0


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.scoring": {"choices": ["contextual", "rotat"]}}, "there is no scorer 'rotat'; did you mean 'rotate'"),
        ({"model.rotate.margn": {"low": 1, "high": 2}}, r"margn is unknown; did you mean 'model\.rotate\.margin'"),
        ({"model.scoring": "rotate", "model.rotate.margin": {"low": -1, "high": 2}}, r"model\.rotate\.margin = -1"),
        ({"model.scoring": "rotate", "model.dim": {"low": 64, "high": 128}}, "needs an even dim, found 65"),
        ({"data.hashes.width": {"low": 8, "high": 16}}, "not searchable|shared|all trials share"),
    ],
)
def test_a_wrong_space_is_refused(space: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SearchSpace.from_values(space, Config(), BRANCHES)


def test_a_part_with_settings_is_not_called_as_a_setting() -> None:
    class Own(imf_core.Section):
        p: float = 2.0

    imf_core.scorer("norm", settings=Own)(DistMult)
    with pytest.raises(ConfigError, match="norm is the name of a setting"):
        Config().updated({"model.scoring": "norm"})


def test_two_kinds_of_one_name_cannot_both_have_settings() -> None:
    class Own(imf_core.Section):
        depth: int = 2

    imf_core.fusion("rotate", settings=Own)(Fusion)
    with pytest.raises(ConfigError, match="two parts are called rotate and have settings"):
        Config().updated({"model.scoring": "rotate"})


def test_a_condition_between_two_settings_of_a_part() -> None:
    from typing import Annotated, Literal

    class Own(imf_core.Section):
        kind: Annotated[Literal["a", "b"], imf_core.Tunable(choices=("a", "b"))] = "a"
        depth: Annotated[int, imf_core.Tunable(low=1, high=3, when={"kind": ("b",)})] = 1

    imf_core.scorer("conditional", settings=Own)(DistMult)
    space = SearchSpace.default(Config().updated({"model.scoring": "conditional"}), BRANCHES, ("model.scoring",))
    assert space["model.conditional.depth"].when == (
        ("model.scoring", ("conditional",)), ("model.conditional.kind", ("b",)),
    )


def test_a_regularizer_of_one_s_own_has_its_weight_searched() -> None:
    """The weight is a setting of the product, searched where there is a penalty."""
    imf_core.regularizer("own")(lambda *arguments: arguments[1].sum())
    space = SearchSpace.default(Config().updated({"train.regularizer": "own"}), BRANCHES, ("train.regularizer",))
    assert ("train.regularizer", ("n3", "dura", "ivr", "own")) in space["train.regularizer_weight"].when


def test_without_parts_a_space_is_what_it_was() -> None:
    imf_core.scorer("unused")(DistMult)
    space = SearchSpace.default(Config(), BRANCHES)
    assert space["model.scoring"].choices == ("contextual", "complex")
    assert dict(space.from_values({"train.regularizer": "n3", "train.regularizer_weight": {"low": 0.1, "high": 0.2}}, Config(),
                                  BRANCHES)["train.regularizer_weight"].when) == {"train.regularizer": ("n3", "dura", "ivr")}


def test_imf_config_shows_them(tmp_path: Path) -> None:
    file = tmp_path / "filed.py"
    file.write_text(
        "import imf_core\nfrom pydantic import Field\nfrom imf_core.model.scoring import DistMult\n"
        "class Own(imf_core.Section):\n    depth: int = Field(2, description='how deep')\n"
        "@imf_core.scorer('filed', settings=Own)\nclass Filed(DistMult):\n    'A part.'\n"
    )
    shown = command_line.run("config", "--part", str(file))
    assert "  filed:\n    depth: 2  # how deep\n" in shown
    (tmp_path / "config.yaml").write_text(shown)
    assert Config.load(tmp_path / "config.yaml").flat()["model.filed.depth"] == 2
    assert "filed" not in yaml.safe_load(command_line.run("config"))["train"]
