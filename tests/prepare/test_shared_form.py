"""Features stay in the pages of the file that all trials and ranks map: neither a model nor training has a copy of its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.model.modality_table import ModalityTable
from imf_core.prepare.link_data import LinkData, load_prepared, save_prepared
from imf_core.runtime import Shard
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.max_epochs": 2}
WIDTH = 20_000  # wide features: 30 rows of them fill hundreds of pages


def mappings(path: Path) -> list[tuple[int, int, int]]:
    """First and last address of each mapping of a file in this process, and the bytes in it that are private copies."""
    found: list[tuple[int, int, int]] = []
    current: tuple[int, int] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            low, high = (int(address, 16) for address in first.split("-"))
            current = (low, high) if others[-1] == str(path) else None
        elif first == "Anonymous:" and current is not None:
            found.append((*current, 1024 * int(others[0])))
    return found


def facts(model: Imf, folder: Path) -> dict[str, object]:
    """Whether the model's features lie in the mapped file, how much of it was copied, and what features and masks hold."""
    mapped = mappings(folder / "arrays.safetensors")
    tables = [table for table in model.features.values() if isinstance(table, ModalityTable)]
    features = [table.features for table in tables if table.features is not None]
    inside = [
        any(low <= each.data_ptr() and each.data_ptr() + each.nbytes <= high for low, high, _ in mapped) for each in features
    ]
    held = [tensor.numpy().tobytes() for table in tables for tensor in (table.features, table.mask) if tensor is not None]
    return {
        "inside": inside, "copied": sum(copied for _, _, copied in mapped), "held": hashlib.sha256(b"".join(held)).hexdigest()
    }


@pytest.fixture
def prepared(toy: LinkData, tmp_path: Path) -> Path:
    """The toy graph with two wide modalities; the first is there for two thirds of the entities."""
    draw = np.random.default_rng(2).normal
    wide = []
    for modality in toy.modalities:
        matrix = draw(size=(len(modality.mask), WIDTH)).astype(np.float32)
        wide.append(Modality(modality.name, np.where(modality.mask[:, None], matrix, np.float32(0)), modality.mask))
    save_prepared(replace(toy, modalities=tuple(wide)), tmp_path / "data")
    return tmp_path / "data"


def test_the_measure_sees_a_copy(prepared: Path) -> None:
    """Without this the others would prove nothing: a write copies a page, and a clone lies elsewhere."""
    path = prepared / "arrays.safetensors"
    tensor = load_file(path)["matrix.text"]
    low, high, copied = next(each for each in mappings(path) if each[0] <= tensor.data_ptr() < each[1])
    assert copied == 0
    tensor[0, 0] = 1
    assert [copied for start, _, copied in mappings(path) if start == low] == [4096]
    assert not low <= tensor.clone().data_ptr() < high


def test_models_of_several_trials_read_one_mapping(prepared: Path, tmp_path: Path) -> None:
    data = load_prepared(prepared)
    config = Config().updated(SETTINGS)
    models = [build_model(config, data) for _ in range(3)]
    assert len({model.features["text"].features.data_ptr() for model in models}) == 1
    before = facts(models[0], prepared)
    for number, model in enumerate(models):
        fit(model, data, config, saving=Saving(tmp_path / f"state{number}", seconds=0))
        evaluate(model, data.graph, data.graph.valid, data.graph.known())
        assert facts(model, prepared) == before
    assert (before["inside"], before["copied"]) == ([True, True], 0)


@pytest.mark.parametrize("missing", ["learned", "mean", "neutral"])
def test_no_policy_for_missing_rows_writes_into_the_features(prepared: Path, missing: str) -> None:
    data = load_prepared(prepared)
    config = Config().updated({**SETTINGS, "model.missing": missing})
    model = build_model(config, data)
    fit(model, data, config)
    said = facts(model, prepared)
    assert (said["inside"], said["copied"]) == ([True, True], 0)


def rank_process(rank: int, prepared: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    data = load_prepared(prepared)
    config = Config().updated(SETTINGS)
    model = build_model(config, data)
    fit(model, data, config, shard=Shard(rank, 2))
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(facts(model, Path(prepared))))
    dist.destroy_process_group()


def test_ranks_neither_send_nor_copy_the_features(prepared: Path, tmp_path: Path) -> None:
    """DDP synchronises buffers unless told not to: rank 0's features would be written over those of the others, page by page.

    MM-1: features and masks are the same on both ranks.
    """
    mp.spawn(rank_process, args=(str(prepared), str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["inside"], first["copied"]) == ([True, True], 0)
