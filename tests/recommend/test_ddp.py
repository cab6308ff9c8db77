"""The recommender trained by two ranks over gloo: one model, and that which one process trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_interactions import SMALL, write_interactions

from imf_core.config_base import parse_overrides
from imf_core.recommend.config import InteractionConfig, RecommendConfig
from imf_core.recommend.data.prepare import load_recommend, prepare_recommend, save_recommend
from imf_core.recommend.fit import build_model, fit_recommender, validate
from imf_core.runtime import MemoryBudget, Shard

# Without dropout the ranks' gradients are those of their parts of one step, and nothing else differs from one process.
SETTINGS = {**parse_overrides(SMALL), "model.dropout_first": 0.0, "model.dropout_second": 0.0, "train.max_epochs": 2}


def rank_process(rank: int, world: int, prepared: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    said = run(prepared, Shard(rank, world))
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def run(prepared: str, shard: Shard) -> dict:
    data, config = load_recommend(prepared), RecommendConfig().updated(SETTINGS)
    model = build_model(config, data)
    result = fit_recommender(model, data, config, shard=shard)
    with torch.no_grad():
        weights = float(sum(parameter.double().abs().sum() for parameter in model.parameters()))
    again = validate(model, data.interactions, MemoryBudget(2**20)).vector().tolist()
    return {"curve": result.curve, "reported": result.metrics.vector().tolist(), "again": again, "weights": weights}


def test_two_ranks_train_what_one_process_trains(tmp_path: Path) -> None:
    folder = write_interactions(tmp_path / "data")
    save_recommend(prepare_recommend(InteractionConfig(path=str(folder))), tmp_path / "prepared")
    mp.spawn(rank_process, args=(2, str(tmp_path / "prepared"), str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["reported"] == pytest.approx(first["again"], rel=1e-6)  # each ranked its users: none twice, none lost
    alone = run(str(tmp_path / "prepared"), Shard())
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-4)
    assert [mrr for _, mrr in first["curve"]] == pytest.approx([mrr for _, mrr in alone["curve"]], rel=1e-3)
