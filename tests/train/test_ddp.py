"""Two ranks over gloo: the same evaluation as one, equal steps, one model; DDP-2, DDP-4 and DDP-6 without Ray."""

from __future__ import annotations

import json
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

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 3}


def rank_process(rank: int, world: int, prepared: str, out: str, settings: dict[str, object], killed_in: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=world)
    data = load_prepared(prepared)
    config = Config().updated(settings)
    model = build_model(config, data)
    losses: list[float] = []
    saving = Saving(Path(out) / "state", seconds=0) if killed_in else None
    if killed_in:
        with patch("imf_core.train.fit.train_epoch", die_in(killed_in, [])), pytest.raises(Killed):
            fit(model, data, config, shard=Shard(rank, world), saving=saving)
        dist.barrier()  # rank 0 has saved
        model = build_model(config, data)
    result = fit(model, data, config, lambda report: losses.append(report.train_loss), shard=Shard(rank, world), saving=saving)
    with torch.no_grad():
        bits = float(sum(parameter.double().sum() for parameter in model.state_dict().values()))
    again = evaluate(model, data.graph, data.graph.valid, data.graph.known()).metrics.vector().tolist()
    said = {"curve": result.curve, "reported": result.metrics.vector().tolist(), "again": again, "bits": bits, "losses": losses}
    (Path(out) / f"rank{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def run(toy: LinkData, folder: Path, killed_in: int = 0, **more: object) -> list[dict]:
    folder.mkdir(exist_ok=True)
    save_prepared(toy, folder / "data")
    settings = {**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}}
    mp.spawn(rank_process, args=(2, str(folder / "data"), str(folder), settings, killed_in), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_ranks_hold_one_model_and_score_it_as_one_process_does(toy: LinkData, tmp_path: Path) -> None:
    first, second = run(toy, tmp_path / "a", model__decision="uniform")
    assert first["curve"] == second["curve"]
    assert first["bits"] == second["bits"]
    # What the ranks reported together (each ranked its shard) is what one process finds alone: no sample twice, none lost.
    assert first["reported"] == pytest.approx(first["again"], rel=1e-6)
    assert first["reported"][0] == 2 * len(toy.graph.valid)


def test_equal_seeds_repeat_and_ranks_draw_their_own_numbers(toy: LinkData, tmp_path: Path) -> None:
    once, again = run(toy, tmp_path / "a"), run(toy, tmp_path / "b")
    other = run(toy, tmp_path / "c", train__seed=1)
    assert once == again
    assert once[0]["curve"] != other[0]["curve"]
    assert once[0]["losses"] != once[1]["losses"]  # different queries, different dropout


def test_ranks_that_die_between_two_evaluations_go_on_to_the_bit(toy: LinkData, tmp_path: Path) -> None:
    unbroken = run(toy, tmp_path / "a", train__eval_every=3)
    broken = run(toy, tmp_path / "b", killed_in=3, train__eval_every=3)
    parts = ("curve", "reported", "again", "bits")
    assert [[rank[part] for part in parts] for rank in broken] == [[rank[part] for part in parts] for rank in unbroken]
    assert broken[0]["losses"] == unbroken[0]["losses"]  # rank 0 reports


@pytest.mark.parametrize("modalities", [None, ["text"], []])
def test_modalities_on_and_off_train_under_ddp(toy: LinkData, tmp_path: Path, modalities: list[str] | None) -> None:
    first, second = run(toy, tmp_path / "a", model__modalities=modalities)
    assert len(first["curve"]) == 3
    assert first["bits"] == second["bits"]


def test_weights_of_each_entity_s_own_train_under_ddp(toy: LinkData, tmp_path: Path) -> None:
    first, second = run(toy, tmp_path / "a", model__fusion="meta_cp", model__fusion_widths=[8], model__cp_rank=3)
    assert len(first["curve"]) == 3
    assert first["bits"] == second["bits"]


@pytest.mark.parametrize("finetune", [False, True])
def test_sparse_gradients_are_averaged_by_rows(toy: LinkData, tmp_path: Path, finetune: bool) -> None:
    first, second = run(toy, tmp_path / "a", train__num_negatives=5, model__finetune_features=finetune)
    assert first["bits"] == second["bits"]
    assert first["curve"] == second["curve"]
    assert first["losses"] != second["losses"]
