"""What finalising reads off the test split: every decision from one pass, the seeds together, ranks that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.evaluate import test_once as tested
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.pooled import evaluate_pooled
from imf_core.evaluate.ranking import evaluate
from imf_core.evaluate.redecide import COMMON, RELATION, TRAINED, decisions_of, redecide
from imf_core.evaluate.test_once import KINDS, OWN, POOLED, RANKS_FILE, flat, rank_test, read_ranks
from imf_core.model.decision import Decision
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget
from imf_core.train.fit import build_model, fit

MEMORY = MemoryBudget(2**27)


@pytest.fixture
def seeds(toy: LinkData, tmp_path: Path) -> dict[int, Path]:
    """Two seeds, their weights decided again as finalising does it."""
    folders = {}
    for seed in (3, 5):
        config = Config.build({
            "model": {"dim": 16, "relation_dim": 8}, "train": {"max_epochs": 2, "batch_size": 32, "seed": seed},
        })
        model = build_model(config, toy)
        fit(model, toy, config)
        found = redecide(model, toy.graph, MEMORY, 100)
        assert found is not None
        folders[seed] = tmp_path / str(seed)
        save_checkpoint(folders[seed], model, found.apply(model, config), toy.graph, {"decision": found.as_dict()})
    return folders


def test_one_pass_says_what_ranking_again_would(toy: LinkData, seeds: dict[int, Path], tmp_path: Path) -> None:
    graph, triples = toy.graph, toy.graph.valid
    known = graph.known()
    found = rank_test(seeds, graph, triples, known, MEMORY, tmp_path / RANKS_FILE)
    assert set(found.decisions) >= {*KINDS.values(), "uniform", "structure alone", "without text"}
    models = [load_checkpoint(folder) for folder in seeds.values()]
    for place, one in enumerate(models):
        own = evaluate(one.model, graph, triples, known, memory=MEMORY).metrics
        assert found.own[place].flat() == own.flat()
        kept = one.metrics["decision"]["kept"]
        assert found.decisions[KINDS[kept]][place] == pytest.approx(flat(own))
        one.model.decision = Decision("uniform", one.model.branches, 0)
        assert found.decisions["uniform"][place]["mrr"] == evaluate(one.model, graph, triples, known, memory=MEMORY).metrics.mrr
    fresh = [load_checkpoint(folder).model for folder in seeds.values()]
    assert found.pooled == flat(evaluate_pooled(fresh, [1.0, 1.0], graph, triples, known, MEMORY).metrics)

    ranks, fingerprint = read_ranks(tmp_path / RANKS_FILE)
    assert fingerprint == graph.fingerprint and len(ranks) == 2 * len(triples)
    assert (1 / ranks).mean() == pytest.approx(np.mean([metrics.mrr for metrics in found.own]), rel=1e-6)
    pooled, _ = read_ranks(tmp_path / RANKS_FILE, POOLED)
    assert (1 / pooled).mean() == pytest.approx(found.pooled["mrr"], rel=1e-6)


def test_where_the_others_would_take_long_the_own_decision_is_ranked_alone(
    toy: LinkData, seeds: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "_MOST", 2 * len(toy.graph.valid) * toy.graph.num_entities * 5)
    found = rank_test(seeds, toy.graph, toy.graph.valid, toy.graph.known(), MEMORY, None)
    assert (len(found.own), found.decisions) == (2, {}) and found.pooled is not None
    monkeypatch.setattr(tested, "_MOST", 2 * len(toy.graph.valid) * toy.graph.num_entities)
    assert rank_test(seeds, toy.graph, toy.graph.valid, toy.graph.known(), MEMORY, None).pooled is None


def test_a_single_seed_of_one_branch_has_nothing_beside_it(toy: LinkData, tmp_path: Path) -> None:
    config = Config.build({"model": {"dim": 16, "relation_dim": 8, "modalities": []}})
    model = build_model(config, toy)
    save_checkpoint(tmp_path / "one", model, config, toy.graph, {})
    found = rank_test({0: tmp_path / "one"}, toy.graph, toy.graph.valid, toy.graph.known(), MEMORY, None)
    assert (len(found.own), found.decisions, found.pooled) == (1, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_decisions_survive_a_checkpoint_s_metrics(seeds: dict[int, Path]) -> None:
    loaded = load_checkpoint(seeds[3])
    found = loaded.metrics["decision"]
    kinds = decisions_of(found, loaded.model.branches)
    assert set(kinds) == {TRAINED, COMMON, RELATION}
    relations = torch.arange(2 * loaded.model.num_relations)
    assert torch.allclose(kinds[found["kept"]].weights(relations), loaded.model.decision.weights(relations), atol=1e-6)
    for made in kinds.values():
        assert torch.allclose(made.weights(relations).sum(dim=1), torch.ones(len(relations)), atol=1e-5)
    assert decisions_of({"kept": TRAINED}, loaded.model.branches) == {}  # a checkpoint of before


def test_an_empty_slice_has_no_figure() -> None:
    ranks = np.array([1.0, 2.0])
    nobody = np.zeros(2, dtype=bool)
    metrics = RankingMetrics.of(ranks, {"cold": nobody, "warm": ~nobody})
    assert flat(metrics) == {**metrics.flat(), "mrr_warm": 0.75}
    assert OWN not in KINDS.values()
