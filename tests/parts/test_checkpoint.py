"""A checkpoint names the parts of its model, and is refused without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import imf_core
from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.errors import CheckpointError
from imf_core.model.scoring import DistMult
from imf_core.parts import registry
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model
from tests.parts.conftest import on_path

SMALL = {"model.dim": 8, "model.relation_dim": 4}


def kept(folder: Path, toy: LinkData, **changes: object) -> Path:
    config = Config().updated({**SMALL, **{name.replace("__", "."): value for name, value in changes.items()}})
    save_checkpoint(folder, build_model(config, toy), config, toy.graph, {})
    return folder


def test_a_model_without_parts_names_none(tmp_path: Path, toy: LinkData) -> None:
    described = json.loads((kept(tmp_path / "best", toy) / "config.json").read_text())
    assert "parts" not in described
    assert set(described["config"]["model"]) == set(type(Config().model).model_fields)


def test_a_package_is_named_and_its_absence_refused(
    tmp_path: Path, toy: LinkData, site: Path
) -> None:
    with on_path(site):
        folder = kept(
            tmp_path / "best", toy, model__scoring="rotate", model__rotate__margin=3.0, model__fusion="weighted",
            data__text_encoder="hashes",
        )
        parts = json.loads((folder / "config.json").read_text())["parts"]
        assert {part["name"] for part in parts} == {"rotate", "weighted", "hashes"}
        assert {(part["package"], part["version"]) for part in parts} == {("rotate-part", "1.0")}
        assert load_checkpoint(folder).config.flat()["model.rotate.margin"] == 3.0
    with pytest.raises(CheckpointError, match=r"needs the .* of rotate-part 1\.0, which is not here") as caught:
        load_checkpoint(folder)
    assert caught.value.remedy == "install it: pip install rotate-part==1.0"


def test_settings_of_parts_that_are_not_chosen_need_no_package(tmp_path: Path, toy: LinkData, installed: Path) -> None:
    described = json.loads((kept(tmp_path / "best", toy, model__rotate__margin=3.0) / "config.json").read_text())
    assert "parts" not in described and "rotate" not in described["config"]["model"]


def test_a_head_s_scorer_is_named_too(tmp_path: Path, toy: LinkData, installed: Path) -> None:
    folder = kept(tmp_path / "best", toy, model__heads=[{"view": "structure", "scoring": "rotate"}])
    (part,) = json.loads((folder / "config.json").read_text())["parts"]
    assert part["name"] == "rotate"
    assert "structure_rotate" in load_checkpoint(folder).model.branches


def test_a_file_and_a_notebook_are_named_by_digest(tmp_path: Path, toy: LinkData) -> None:
    file = tmp_path / "filed.py"
    file.write_text(
        "import imf_core\nfrom imf_core.model.scoring import DistMult\n@imf_core.scorer('filed')\nclass Filed(DistMult):\n"
        "    'A part.'\n"
    )
    with registry.scope():
        imf_core.load_part(str(file))
        folder = kept(tmp_path / "best", toy, model__scoring="filed")
    with pytest.raises(CheckpointError, match=r"scorer 'filed' of filed\.py, which is not here") as caught:
        load_checkpoint(folder)
    assert "--part filed.py" in caught.value.remedy
    with registry.scope():
        imf_core.load_part(str(file))
        assert load_checkpoint(folder).config.model.scoring == "filed"


def test_a_forged_list_of_parts_is_refused(tmp_path: Path, toy: LinkData) -> None:
    file = kept(tmp_path / "best", toy) / "config.json"
    described = json.loads(file.read_text())
    for parts, words in (([{"kind": "spell", "name": "x"}], "needs a 'spell'"), (["rotate"], "is damaged"), (3, "is damaged")):
        file.write_text(json.dumps({**described, "parts": parts}))
        with pytest.raises(CheckpointError, match=words):
            load_checkpoint(tmp_path / "best")


@pytest.mark.usefixtures("forgotten")
def test_one_of_another_package_is_not_the_same(tmp_path: Path, toy: LinkData) -> None:
    imf_core.scorer("rotate")(DistMult)
    file = kept(tmp_path / "best", toy) / "config.json"
    parts = [{"kind": "scorer", "name": "rotate", "package": "rotate-part", "version": "1.0"}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "parts": parts}))
    with pytest.raises(CheckpointError, match=r"of rotate-part 1\.0; the one here is of .*scoring\.py"):
        load_checkpoint(tmp_path / "best")
