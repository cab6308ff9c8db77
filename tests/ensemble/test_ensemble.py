"""Several models as one: the geometric mean of their probabilities, chosen on validation, in a folder that works alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.config import Config
from imf_core.ensemble.ensemble import EnsemblePredictor, load_ensemble, open_predictor
from imf_core.ensemble.selection import PoolCandidates, greedy, pool_candidates, select
from imf_core.errors import CheckpointError, ConfigError, VocabularyError
from imf_core.evaluate.pooled import PooledScores, evaluate_pooled
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget
from imf_core.train.fit import build_model, fit
from tests.support.command_line import fails, run
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 6}


def model_of(toy: LinkData, epochs: int = 0, **more: object) -> Imf:
    config = Config().updated({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})
    model = build_model(config, toy)
    if epochs:
        fit(model, toy, config.updated({"train.max_epochs": epochs}))
    return model.eval()


@pytest.fixture(scope="module")
def models(toy: LinkData) -> list[Imf]:
    return [model_of(toy, 6, train__seed=seed) for seed in range(3)] + [model_of(toy, 0, train__seed=9)]


def probabilities(model: Imf, heads: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """(B, N) float64 from the definitions: each branch's distribution, combined by the decision weights, normalised."""
    with torch.no_grad():
        tables = model.tables()
        scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
        norms = [torch.logsumexp(score, dim=1) for score in scores]
        decided = model.combine(scores, norms, model.decision_weights(heads, relations)).double()
    return torch.softmax(decided, dim=1) if model.loss_kind == "ce" else decided / decided.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("losses", [("ce", "ce"), ("bce", "bce"), ("ce", "bce")])
def test_the_pool_is_the_weighted_geometric_mean_of_the_distributions(toy: LinkData, losses: tuple[str, str]) -> None:
    pair = [model_of(toy, 2, train__loss=loss, train__seed=seed) for seed, loss in enumerate(losses)]
    heads, relations = torch.tensor([1, 5, 9, 3, 3]), torch.tensor([0, 0, 2, 5, 7])
    wanted = probabilities(pair[0], heads, relations) ** 0.75 * probabilities(pair[1], heads, relations) ** 0.25
    wanted /= wanted.sum(dim=1, keepdim=True)
    with torch.no_grad():
        found = torch.cat([block[0].clone() for block in PooledScores(pair, [3, 1], 2**20).blocks(heads, relations, 2)])
    assert torch.allclose(found.double().exp(), wanted, atol=1e-6)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(5), atol=1e-5)


def test_a_pool_of_one_ranks_as_the_model_does(toy: LinkData, models: list[Imf]) -> None:
    graph = toy.graph
    alone = evaluate(models[0], graph, graph.valid, graph.known())
    pooled = evaluate_pooled([models[0]], [0.3], graph, graph.valid, graph.known())
    assert np.array_equal(alone.tail_ranks, pooled.tail_ranks) and np.array_equal(alone.head_ranks, pooled.head_ranks)
    assert pooled.metrics.slices.keys() == alone.metrics.slices.keys()


def test_little_memory_changes_no_rank(toy: LinkData, models: list[Imf]) -> None:
    graph = toy.graph
    much, little = (
        evaluate_pooled(models, [1, 1, 2, 1], graph, graph.valid, graph.known(), MemoryBudget(size)) for size in (2**28, 2**12)
    )
    assert np.array_equal(much.tail_ranks, little.tail_ranks)


def made(*columns: list[float]) -> PoolCandidates:
    """Queries of one wrong answer each: a model gives the answer its number, the wrong one 0.5."""
    answers = torch.tensor(columns, dtype=torch.float64).T
    values = torch.stack([answers, torch.full_like(answers, 0.5)], dim=1)
    count = len(answers)
    return PoolCandidates(values, torch.ones(count, 2, dtype=torch.bool), torch.arange(count) % 2)


def test_models_that_err_apart_are_pooled_and_noise_is_left_out() -> None:
    first, second, noise = [0.9, 0.9, 0.9, 0.3], [0.3, 0.3, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]
    cached = made(first, second, noise)
    assert greedy(cached) == (0.5, 0.5, 0.0)
    assert cached.mrr([0.5, 0.5, 0.0]) == 1.0 and cached.mrr([1, 0, 0]) == pytest.approx(0.875)


def test_the_better_one_is_taken_several_times() -> None:
    # Only with at least twice the weight of the second does the first keep its answers, and only with the second the last.
    cached = made([0.65, 0.65, 0.65, 0.45], [0.25, 0.25, 0.25, 0.7])
    weights = greedy(cached)
    assert weights[0] == pytest.approx(2 * weights[1]) and cached.mrr(weights) == 1.0
    assert cached.mrr([0.5, 0.5]) < 1.0


def test_equal_models_are_no_pool() -> None:
    same = [0.9, 0.3, 0.9]
    assert greedy(made(same, same)) == (1.0, 0.0)


def test_cached_figures_are_those_of_the_ranking(toy: LinkData, models: list[Imf]) -> None:
    graph = toy.graph
    cached = pool_candidates(models, graph, graph.valid, graph.known())
    for place, model in enumerate(models):
        exact = evaluate(model, graph, graph.valid, graph.known()).metrics.mrr
        assert cached.mrr(np.eye(len(models))[place].tolist()) == pytest.approx(exact, abs=1e-9)
    weights = [0.4, 0.3, 0.2, 0.1]
    assert cached.mrr(weights) == pytest.approx(
        evaluate_pooled(models, weights, graph, graph.valid, graph.known()).metrics.mrr, abs=1e-9
    )
    half = pool_candidates(models, graph, graph.valid, graph.known(), 2**14)
    assert torch.equal(half.fold, cached.fold) and torch.allclose(half.values, cached.values, atol=1e-7)


def test_the_chosen_pool_is_no_worse_than_any_of_its_models(toy: LinkData, models: list[Imf]) -> None:
    graph = toy.graph
    chosen = select(models, graph, graph.valid, graph.known())
    assert sum(chosen.weights) == pytest.approx(1.0)
    kept = [place for place, weight in enumerate(chosen.weights) if weight]
    pooled = evaluate_pooled(
        [models[place] for place in kept], [chosen.weights[place] for place in kept], graph, graph.valid, graph.known()
    )
    assert pooled.metrics.mrr >= max(chosen.alone) - 1e-9
    assert 0 < chosen.held_back <= 1 and 0 < chosen.held_back_single <= 1


# --- the folder and the commands ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    graph = tiny_graph(folder / "graph")
    for seed in range(3):
        tiny_checkpoint(graph, folder / f"m{seed}", seed=seed, model__decision="uniform")
    return folder


@pytest.fixture(scope="module")
def pool(place: Path) -> Path:
    run("ensemble", str(place / "pool"), *(str(place / f"m{seed}") for seed in range(3)))
    return place / "pool"


def test_the_folder_works_alone(place: Path, pool: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(pool, moved)
    loaded, again = load_ensemble(moved), load_ensemble(pool)
    assert loaded.weights == again.weights and sum(loaded.weights) == pytest.approx(1.0)
    predictor = open_predictor(moved)
    assert isinstance(predictor, EnsemblePredictor)
    answers = predictor.tails("e3", "next", k=24, known="mark")
    assert sum(answer.score for answer in answers) == pytest.approx(1.0, abs=1e-4)
    alone = [
        {answer.entity: answer.score for answer in Predictor.load(member.path).tails("e3", "next", 24, "mark")}
        for member in loaded.members
    ]
    whole = {
        name: math.prod(part[name] ** weight for part, weight in zip(alone, loaded.weights, strict=True)) for name in alone[0]
    }
    for answer in answers:
        assert answer.score == pytest.approx(whole[answer.entity] / sum(whole.values()), abs=1e-5)
        parts = [part[answer.entity] for part in alone]
        assert list(answer.branch_scores.values()) == pytest.approx(parts, abs=1e-5)
        assert list(answer.weights.values()) == pytest.approx(list(loaded.weights))


def test_commands_take_it_as_they_take_a_checkpoint(place: Path, pool: Path, tmp_path: Path) -> None:
    found = json.loads(run("evaluate", str(pool), "--json"))
    described = json.loads((pool / "ensemble.json").read_text())
    assert found["mrr"] == pytest.approx(described["metrics"]["validation"]["mrr"], abs=1e-9)
    assert "e4" in run("predict", str(pool), "--head", "e3", "-r", "next", "-k", "24", "--known", "mark")
    compared = json.loads(run("compare", str(pool), str(place / "m0"), "--json"))
    assert compared["mrr"][0] == pytest.approx(found["mrr"])
    about = open_predictor(pool).about()
    assert len(about["branches"]) == len(about["weights"]) and about["figures"]["candidates"] == 3
    error = fails("export", str(pool), str(tmp_path / "vectors.safetensors"))
    assert isinstance(error, ConfigError) and "members" in str(error.remedy)
    assert "no branches to decide by" in fails("evaluate", str(pool), "--decisions").problem


def test_what_is_said_agrees_with_what_is_kept(place: Path, tmp_path: Path) -> None:
    sources = [str(place / f"m{seed}") for seed in range(3)]
    said = json.loads(run("ensemble", str(tmp_path / "again"), *sources, "--json"))
    described = json.loads((tmp_path / "again" / "ensemble.json").read_text())
    assert [member["weight"] for member in said["members"]] == [member["weight"] for member in described["members"]]
    assert said["validation"]["mrr"] >= said["best_single_mrr"] - 1e-9
    shown = run("ensemble", str(tmp_path / "again"), *sources)
    assert "chosen on one half, measured on the other" in " ".join(shown.split())


def test_a_study_gives_the_checkpoints_that_it_keeps(place: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    for target, seed in (("trials/trial-001", 0), ("trials/trial-004", 1), ("final/trial-001-seed-0", 0),
                         ("final/trial-001-seed-1", 2), ("final/trial-001-structure-only", 2)):
        shutil.copytree(place / f"m{seed}", study / target / "best")
    said = json.loads(run("ensemble", str(tmp_path / "out"), str(study), "--json"))
    assert said["candidates"] == 3  # equal weights count once, the ablation not at all


def test_what_does_not_belong_together_is_refused(place: Path, pool: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tiny_graph(tmp_path / "graph", first=[b"odd"]), tmp_path / "other")
    out = str(tmp_path / "out")
    assert isinstance(fails("ensemble", out, str(place / "m0"), str(other)), VocabularyError)
    assert "1 model is no ensemble" in fails("ensemble", out, str(place / "m0"), str(place / "m0")).problem
    assert "neither a checkpoint nor a study" in fails("ensemble", out, str(tmp_path)).problem
    assert not Path(out).exists()
    for change, words in (
        ({"format": 99}, "has format 99"), ({"members": []}, "members = \\[\\]"),
        ({"members": [{"folder": "../../m0", "weight": 1.0}]}, "outside its folder"), ({"members": 3}, "members = 3"),
    ):
        damaged = tmp_path / "damaged"
        shutil.copytree(pool, damaged)
        described = json.loads((damaged / "ensemble.json").read_text())
        (damaged / "ensemble.json").write_text(json.dumps({**described, **change}))
        with pytest.raises(CheckpointError, match=words):
            load_ensemble(damaged)
        shutil.rmtree(damaged)
