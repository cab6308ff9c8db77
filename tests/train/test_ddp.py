"""Two ranks over gloo: the same evaluation as one, equal steps, one model; DDP-2, DDP-4 and DDP-6 without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from imf_core.config import Config
from imf_core.evaluate.ranking import evaluate
from imf_core.prepare.link_data import LinkData, load_prepared, save_prepared
from imf_core.runtime import Shard
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving
from tests.support.killed_run import Killed, die_in

SMALL = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 3}
KILLED = "killed in epoch 3"
RUNS: dict[str, dict[str, object]] = {
    "default": {},
    "seed 1": {"train.seed": 1},
    "uniform": {"model.decision": "uniform"},
    "text alone": {"model.modalities": ["text"]},
    "structure alone": {"model.modalities": []},
    "weights of each entity's own": {"model.fusion": "meta_cp", "model.fusion_widths": [8], "model.cp_rank": 3},
    "sparse gradients": {"train.num_negatives": 5},
    "sparse gradients, features too": {"train.num_negatives": 5, "model.finetune_features": True},
    "heads": {
        "model.heads": [{"view": "structure", "scoring": "complex"}], "train.optimizer": "adagrad", "train.regularizer": "n3",
    },
    "sparse gradients, heads": {
        "train.num_negatives": 5, "model.heads": [{"view": "structure", "scoring": "complex"}], "train.optimizer": "adagrad",
    },
    "seldom evaluated": {"train.eval_every": 3},
    "static": {},
    KILLED: {"train.eval_every": 3},
}
Ranks = list[dict[str, object]]


def train(name: str, data: LinkData, shard: Shard, state: Path) -> dict[str, object]:
    """One run on this rank: what it reports, what it would find alone, and a sum over its weights."""
    config = Config().updated({**SMALL, **RUNS[name]})
    model = build_model(config, data)
    losses: list[float] = []
    saving = Saving(state, seconds=0) if name == KILLED else None
    if name == KILLED:
        with patch("imf_core.train.fit.train_epoch", die_in(3, [])), pytest.raises(Killed):
            fit(model, data, config, shard=shard, saving=saving)
        dist.barrier()  # rank 0 has saved
        model = build_model(config, data)
    static = name == "static"
    result = fit(
        model, data, config, lambda report: losses.append(report.train_loss), shard=shard, saving=saving, static=static
    )
    with torch.no_grad():
        bits = float(sum(parameter.double().sum() for parameter in model.state_dict().values()))
    again = evaluate(model, data.graph, data.graph.valid, data.graph.known()).metrics.vector().tolist()
    return {"curve": result.curve, "reported": result.metrics.vector().tolist(), "again": again, "bits": bits, "losses": losses}


def rank_process(rank: int, world: int, folder: str, names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    data = load_prepared(f"{folder}/data")
    results = {name: train(name, data, Shard(rank, world), Path(folder) / "state") for name in names}
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def run(toy: LinkData, folder: Path, *names: str) -> dict[str, Ranks]:
    """Train these runs one after another on the same two processes; both ranks' results by name."""
    save_prepared(toy, folder / "data")
    mp.spawn(rank_process, args=(2, str(folder), names), nprocs=2)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    return {name: [first[name], second[name]] for name in names}


@pytest.fixture(scope="module")
def ranks(toy: LinkData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ranks]:
    """All runs: starting two processes takes longer than any of them."""
    return run(toy, tmp_path_factory.mktemp("ranks"), *RUNS)


def test_two_ranks_hold_one_model_and_score_it_as_one_process_does(toy: LinkData, ranks: dict[str, Ranks]) -> None:
    first, second = ranks["uniform"]
    assert first["curve"] == second["curve"]
    assert first["bits"] == second["bits"]
    # What the ranks reported together (each ranked its shard) is what one process finds alone: no sample twice, none lost.
    assert first["reported"] == pytest.approx(first["again"], rel=1e-6)
    assert first["reported"][0] == 2 * len(toy.graph.valid)


@pytest.mark.slow
def test_equal_seeds_repeat(toy: LinkData, ranks: dict[str, Ranks], tmp_path: Path) -> None:
    """Again in other processes, and as their only run."""
    assert run(toy, tmp_path, "default") == {"default": ranks["default"]}


def test_ranks_draw_their_own_numbers(ranks: dict[str, Ranks]) -> None:
    first, second = ranks["default"]
    assert first["curve"] != ranks["seed 1"][0]["curve"]
    assert first["losses"] != second["losses"]  # different queries, different dropout


def test_ranks_that_die_between_two_evaluations_go_on_to_the_bit(ranks: dict[str, Ranks]) -> None:
    unbroken, broken = ranks["seldom evaluated"], ranks[KILLED]
    parts = ("curve", "reported", "again", "bits")
    assert [[rank[part] for part in parts] for rank in broken] == [[rank[part] for part in parts] for rank in unbroken]
    assert broken[0]["losses"] == unbroken[0]["losses"]  # rank 0 reports


@pytest.mark.parametrize(
    "name", ["default", "text alone", "structure alone", "weights of each entity's own", "heads", "static"]
)
def test_modalities_on_and_off_and_weights_of_each_entity_train_under_ddp(ranks: dict[str, Ranks], name: str) -> None:
    first, second = ranks[name]
    assert len(first["curve"]) == 3
    assert first["bits"] == second["bits"]


@pytest.mark.parametrize("name", ["sparse gradients", "sparse gradients, features too", "sparse gradients, heads"])
def test_sparse_gradients_are_averaged_by_rows(ranks: dict[str, Ranks], name: str) -> None:
    first, second = ranks[name]
    assert first["bits"] == second["bits"]
    assert first["curve"] == second["curve"]
    assert first["losses"] != second["losses"]
