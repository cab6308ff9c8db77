"""Where the structure branch starts: from nothing, from a file by name, from attention that is trained once and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import imf_core.encode.structure.attention as encoder
from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config, DataConfig, StructureConfig
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.encode.structure.table import cache_key, structure_table
from imf_core.errors import ConfigError, DataError
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData, load_prepared, prepare, save_prepared
from imf_core.train.fit import build_model, fit

GAT = StructureConfig(init="gat", width=8, heads=2, epochs=2, batch_size=64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "structure"


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[StructureConfig]:
    """The settings of each training that really took place."""
    seen: list[StructureConfig] = []
    original = encoder.pretrain

    def counted(graph: KnowledgeGraph, config: StructureConfig, **more: bool) -> tuple[np.ndarray, encoder.PretrainReport]:
        seen.append(config)
        return original(graph, config, **more)

    monkeypatch.setattr(encoder, "pretrain", counted)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "graph"
    root.mkdir()
    lines = [f"e{i}\tnext\te{(i + 1) % 12}\n" for i in range(12)] + [f"e{i}\tjump\te{(5 * i + 2) % 12}\n" for i in range(12)]
    (root / "train.tsv").write_text("".join(lines[:20]))
    (root / "valid.tsv").write_text("".join(lines[20:]))
    return root


def test_random_makes_no_table(toy: LinkData, trainings: list[StructureConfig], cache: Path) -> None:
    assert structure_table(toy.graph, StructureConfig()) == (None, [])
    assert trainings == [] and not cache.exists()


def test_attention_is_trained_once(folder: Path, trainings: list[StructureConfig], cache: Path) -> None:
    config = DataConfig(path=str(folder))
    first, again = prepare(config, GAT), prepare(config, GAT)
    assert trainings == [GAT]
    assert first.structure is not None and again.structure is not None
    assert np.array_equal(first.structure, again.structure) and first.structure.shape == (12, 8)
    assert "trained for 2 epochs" in first.notes[-1] and "from the cache" in again.notes[-1]
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]  # and no half-written file
    prepare(config, GAT.model_copy(update={"lr": 0.1}))
    assert len(trainings) == 2
    assert prepare(config).structure is None


def test_a_damaged_cache_is_made_again(toy: LinkData, trainings: list[StructureConfig], cache: Path) -> None:
    table, _ = structure_table(toy.graph, GAT)
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:50])
    again, _ = structure_table(toy.graph, GAT)
    assert len(trainings) == 2
    assert table is not None and np.array_equal(table, again)


def test_the_key_is_of_train_and_settings_alone(toy: LinkData) -> None:
    key = cache_key(toy.graph, GAT)
    assert cache_key(replace(toy.graph, valid=toy.graph.valid[:2]), GAT) == key
    assert cache_key(replace(toy.graph, train=toy.graph.train[:-1]), GAT) != key
    for name, value in {"seed": 1, "epochs": 3, "margin": 2.0, "width": 16, "neighbours": 3, "dropout": 0.0}.items():
        assert cache_key(toy.graph, GAT.model_copy(update={name: value})) != key, name


def test_a_cache_that_cannot_be_written_is_named(toy: LinkData, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be kept"):
        structure_table(toy.graph, GAT)


def test_a_file_is_aligned_by_name_and_the_others_start_at_random(folder: Path, tmp_path: Path) -> None:
    names = ["e3", "nobody", "e0"]
    features = np.array([[1, 2], [9, 9], [3, 4]], dtype=np.float32)
    Modality("x", features, np.ones(3, bool)).save(tmp_path / "structure.safetensors", names)  # the name of a branch is fine
    np.save(tmp_path / "mine.npy", features)
    (tmp_path / "mine.names.txt").write_text("\n".join(names) + "\n")
    for file in ("structure.safetensors", "mine.npy"):
        data = prepare(DataConfig(path=str(folder)), StructureConfig(init="file", file=str(tmp_path / file)))
        assert data.structure is not None
        index = data.graph.entities.index
        assert data.structure[index["e3"]].tolist() == [1, 2] and data.structure[index["e0"]].tolist() == [3, 4]
        assert int(np.isnan(data.structure).any(axis=1).sum()) == 10
        assert "2 of 12 entities, 2 wide" in data.notes[-1]
        assert "1 rows of unknown names ignored" in data.notes[-1]
        model = build_model(Config().updated({"model.dim": 8, "model.relation_dim": 4}), data)
        assert torch.isfinite(model.structure).all()


def test_a_file_that_is_not_there_is_named(toy: LinkData) -> None:
    with pytest.raises(DataError, match=r"'nowhere\.npy' is no file"):
        structure_table(toy.graph, StructureConfig(init="file", file="nowhere.npy"))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"init": "file"}, "belong together"),
        ({"file": "x.npy"}, "belong together"),
        ({"init": "gat", "width": 9}, "no multiple of 2 heads"),
        ({"init": "nonsense"}, "structure.init"),
        ({"epochs": 0}, "structure.epochs"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Config.build({"structure": values})


# --- use --------------------------------------------------------------------------------------------------------------


def small(data: LinkData) -> Config:
    return Config().updated({"model.dim": 8, "model.relation_dim": 4, "train.batch_size": 64, "train.max_epochs": 2})


def with_table(toy: LinkData) -> LinkData:
    table = np.random.default_rng(5).normal(size=(toy.graph.num_entities, 6)).astype(np.float32)
    table[3] = np.nan
    return replace(toy, structure=table)


def test_prepared_data_carries_the_table_so_that_all_ranks_and_trials_start_alike(toy: LinkData, tmp_path: Path) -> None:
    data = with_table(toy)
    save_prepared(data, tmp_path / "a")
    save_prepared(toy, tmp_path / "b")
    ranks = [load_prepared(tmp_path / "a") for _ in range(2)]
    assert np.array_equal(ranks[0].structure, data.structure, equal_nan=True)
    assert load_prepared(tmp_path / "b").structure is None
    config = small(data)
    here, *there = [build_model(config, one).structure for one in (data, *ranks)]
    assert all(torch.equal(here, one) for one in there)
    assert not torch.equal(here, build_model(config, toy).structure)
    other = build_model(config.updated({"train.seed": 1}), data).structure
    assert torch.nn.functional.cosine_similarity(here[4, :6], other[4, :6], dim=0) > 0.9999  # another seed, the same table
    assert torch.nn.functional.cosine_similarity(here[3], other[3], dim=0) < 0.99  # what it lacks is the seed's


def test_a_checkpoint_needs_no_table(toy: LinkData, tmp_path: Path) -> None:
    data = with_table(toy)
    config = small(data).updated({"structure.init": "gat", "structure.epochs": 1})
    model = build_model(config, data)
    fit(model, data, config)
    save_checkpoint(tmp_path / "one", model, config, data.graph)
    loaded = load_checkpoint(tmp_path / "one")
    assert loaded.config.structure.init == "gat"
    assert torch.equal(loaded.model.structure, model.structure)
    assert len(Predictor.load(tmp_path / "one").tails("entity 3", "next", k=3)) == 3


def test_a_checkpoint_from_before_the_section_loads_with_its_defaults(toy: LinkData, tmp_path: Path) -> None:
    config = small(toy)
    model = build_model(config, toy)
    save_checkpoint(tmp_path / "old", model, config, toy.graph)
    described = json.loads((tmp_path / "old" / "config.json").read_text())
    del described["config"]["structure"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(described))
    assert load_checkpoint(tmp_path / "old").config == config
