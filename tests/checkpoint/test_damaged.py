"""Files of checkpoints and ensembles that were damaged or forged: refused with the file and a remedy, or read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import tiny_checkpoint, tiny_graph, tiny_pool
from tiny_interactions import write_interactions

from benchmarks.fuzz.damage import forged, spoilt
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.ensemble.ensemble import load_ensemble
from imf_core.errors import CheckpointError, ImfError
from imf_core.recommend.checkpoint import load_recommender, save_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import prepare_recommend
from imf_core.recommend.fit import build_model


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    place = tmp_path_factory.mktemp("stored")
    graph = tiny_graph(place / "graph")
    decision = {
        "kept": "common", "held_back_mrr": {"trained": 0.5, "common": 0.6}, "weights": {"common": [[0.2, 0.2, 0.2, 0.4]]},
    }
    metrics = {"validation": {"mrr": 0.5}, "decision": decision, "fingerprint": "abc"}
    tiny_checkpoint(graph, place / "link", metrics=metrics)
    tiny_checkpoint(graph, place / "tuned", model__finetune_features=True)
    config = RecommendConfig().updated(
        {"data.path": str(write_interactions(place / "shop")), "model.widths": [8, 4], "model.meta_hidden": 4}
    )
    data = prepare_recommend(config.data)
    save_recommender(place / "shop-model", build_model(config, data), config, data.interactions, {"validation": {"mrr": 0.5}})
    return {
        "link": place / "link", "tuned": place / "tuned", "recommender": place / "shop-model",
        "ensemble": tiny_pool(graph, place) / "pool",
    }


LOADERS: dict[str, Callable[[Path], Any]] = {
    "link": load_checkpoint, "tuned": load_checkpoint, "recommender": load_recommender, "ensemble": load_ensemble,
}
FILES = [  # kind, file, and of how many forged values one is tried in the fast suite
    ("link", "config.json", 40), ("tuned", "config.json", 120), ("link", "vocabulary.json", 6),
    ("recommender", "config.json", 30), ("recommender", "vocabulary.json", 6), ("ensemble", "ensemble.json", 6),
]


def harms(file: Path, of: int) -> Iterator[tuple[str, bytes]]:
    content = file.read_bytes()
    yield from spoilt(content)
    for number, (name, value) in enumerate(forged(json.loads(content))):
        if number % of == 0:
            yield name, json.dumps(value).encode()


def refusals(kind: str, folder: Path, file: Path, damages: Iterator[tuple[str, bytes]]) -> int:
    """Number of damages that were refused, each by an error that names the file or its folder and has a remedy."""
    errors, whole = {}, file.read_bytes()
    for name, content in damages:
        file.write_bytes(content)
        try:
            LOADERS[kind](folder)
        except ImfError as error:
            errors[name] = error
    file.write_bytes(whole)
    assert [name for name, error in errors.items() if str(folder) not in str(error) or not error.remedy] == []
    assert max(len(str(error)) for error in errors.values()) < 1500
    return len(errors)


@pytest.mark.parametrize(("kind", "part", "of"), FILES)
def test_a_value_of_another_kind_is_refused_or_read(
    stored: dict[str, Path], tmp_path: Path, kind: str, part: str, of: int
) -> None:
    folder = shutil.copytree(stored[kind], tmp_path / kind)
    assert refusals(kind, folder, folder / part, harms(folder / part, of)) > 12
    LOADERS[kind](folder)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, part, _ in FILES])
def test_every_value_of_another_kind(stored: dict[str, Path], tmp_path: Path, kind: str, part: str) -> None:
    folder = shutil.copytree(stored[kind], tmp_path / kind)
    assert refusals(kind, folder, folder / part, harms(folder / part, 1)) > 20


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("config.json", {"modalities": [1]}, r"config\.json is damaged: modalities\.0 = 1: Input should be a valid string"),
        ("config.json", {"modalities": ["smell"]}, r"config\.json fits no model: there is no mask of the modality 'smell'"),
        ("config.json", {"config": None}, r"config\.json is damaged: config = None: "),
        ("config.json", {"metrics": {"decision": 3}}, r"config\.json is damaged: metrics\.decision = 3"),
        ("vocabulary.json", {"entities": {"a": 1}}, r"vocabulary\.json is damaged: entities = "),
        ("vocabulary.json", {"entities": ["a", "a"]}, r"vocabulary\.json is damaged: entities = .* name stands there twice"),
    ],
)
def test_the_value_is_named(stored: dict[str, Path], tmp_path: Path, part: str, change: dict[str, Any], told: str) -> None:
    folder = shutil.copytree(stored["link"], tmp_path / "link")
    content = json.loads((folder / part).read_text())
    (folder / part).write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(folder)


def test_settings_that_ask_for_terabytes_are_refused_before_any_memory_is_taken(
    stored: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(stored["recommender"], tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["config"]["model"] |= {"widths": [8192] * 8, "meta_hidden": 4096, "meta_dim": 64}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="it asks for a larger model than the stored tensors are"):
        load_recommender(folder)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", ["config.json", "vocabulary.json", "model.safetensors", "facts.safetensors"])
def test_a_folder_a_loop_of_links_or_a_pipe_where_a_file_is_meant(stored: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = shutil.copytree(stored["link"], tmp_path / "link")
    (folder / part).unlink()
    (folder / part).mkdir()
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(folder)
    (folder / part).rmdir()
    (folder / part).symlink_to(part)
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(folder)
    (folder / part).unlink()
    os.mkfifo(folder / part)
    with pytest.raises(CheckpointError, match=part):
        load_checkpoint(folder)


@pytest.mark.parametrize(("written", "section"), [("9.9.0", "train"), ("1.0", "data")])
def test_c1_a_key_of_a_later_version_in_any_section(
    stored: dict[str, Path], tmp_path: Path, written: str, section: str
) -> None:
    folder = shutil.copytree(stored["link"], tmp_path / "link")
    content = json.loads((folder / "config.json").read_text())
    content["config"][section]["rotary"] = True
    content["versions"]["imf_search"] = written
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"was written by imf-search {written}, this is"):
        load_checkpoint(folder)
