"""Filtered ranking: hand-computed ranks, ties, non-finite scores, chunks, shards, and agreement of all scoring paths."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnownAnswers, Vocabulary
from imf_core.errors import DivergedError
from imf_core.evaluate import ranking
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import ModelScores, evaluate, evaluate_decisions, rank
from imf_core.model.combined_scores import padded_count
from imf_core.model.decision import Decision
from imf_core.model.losses import tiles
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget, Shard
from imf_core.train.fit import build_model


class Table:
    """Scores that stand in a table; query i is row `heads[i]`."""

    device = torch.device("cpu")
    num_variants = 1

    def __init__(self, table: list[list[float]] | torch.Tensor) -> None:
        self.table = torch.as_tensor(table)
        self.num_entities = self.table.shape[1]

    def blocks(self, heads: torch.Tensor, relations: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        yield from (self.table[part][None] for part in heads.split(size))


def ranks(
    table: list[list[float]] | torch.Tensor, targets: list[int], known: dict[int, list[int]] | None = None, block: int = 2
) -> list[float]:
    triples = [np.array([[head, 0, tail] for head, tails in (known or {}).items() for tail in tails], np.int64).reshape(-1, 3)]
    heads = np.arange(len(targets))
    index = KnownAnswers.build(triples, 1)
    (found,) = rank(Table(table), heads, np.zeros_like(heads), np.array(targets), index, block=block).tolist()
    return list(found)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_hand_computed(block: int) -> None:
    table = [[-1.0, -2.0, -0.5, -3.0], [0.1, 0.2, 0.3, 0.4], [5.0, 1.0, 5.0, 5.0]]
    assert ranks(table, [1, 3, 0], block=block) == [3.0, 1.0, 2.0]
    # KG-7: 0 known from train, 2 from valid; removed means -inf, not 0, which would beat the negative scores.
    assert ranks(table, [1, 3, 0], {0: [0, 2, 1]}, block=block) == [1.0, 1.0, 2.0]
    # The last entity, ragged answer lists.
    assert ranks(table, [3, 3, 0], {0: [0, 1, 2], 1: [3]}, block=block) == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("entities", [1000, 2**12])
def test_many_rows_are_compared_some_at_a_time(entities: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_ROWS", 3 * entities)
    monkeypatch.setattr(ranking, "_EXACT", 2**11)  # above it, sums are taken in double precision
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, 50, (10, entities), generator=generator).float()
    answers = torch.randint(0, entities, (10,), generator=generator)
    own = table.gather(1, answers[:, None])
    expected = (table > own).sum(1) + ((table == own).sum(1) + 1) / 2
    assert ranks(table, answers.tolist(), block=10) == expected.tolist()


def test_constant_model_has_the_mean_rank() -> None:
    """KG-8: ties."""
    got = ranks(torch.zeros(3, 100), [0, 50, 99])
    assert got == [50.5] * 3
    metrics = RankingMetrics.of(np.array(got))
    assert metrics.mrr == pytest.approx(0.019802, abs=1e-6)
    assert metrics.hits_at(1) == metrics.hits_at(10) == 0.0


def test_two_hundred_equal_vectors_tie_exactly() -> None:
    """KG-8: the target is scored with the candidates, not apart."""
    generator = torch.Generator().manual_seed(0)
    query, vector = torch.randn(3, 33, generator=generator), torch.randn(33, generator=generator)
    scores = query @ vector.expand(200, -1).T
    assert ranks(scores, [0, 77, 199]) == [100.5] * 3


@pytest.mark.parametrize(
    "row", [[0.1, float("nan"), 0.3], [float("nan")] * 3, [0.1, float("inf"), 0.3], [0.1, float("-inf"), 0.3]]
)
def test_non_finite_scores_never_rank(row: list[float]) -> None:
    """KG-9."""
    with pytest.raises(DivergedError, match="non-finite score"):
        ranks([row], [1])


def test_rank_eleven_is_no_hit_at_ten() -> None:
    metrics = RankingMetrics.of(np.array([11.0, 10.0, 1.0, 3.5]))
    assert metrics.hits == (1, 1, 3)
    assert metrics.hits_at(10) == 0.75
    assert metrics.mean_rank == pytest.approx(25.5 / 4)


def test_metrics_add_up_and_survive_the_vector_form() -> None:
    values = np.array([1.0, 2.5, 7.0, 40.0, 11.0])
    cold = np.array([True, False, False, True, False])
    whole = RankingMetrics.of(values, {"cold": cold, "warm": ~cold})
    parts = [
        RankingMetrics.of(values[piece], {"cold": cold[piece], "warm": ~cold[piece]}) for piece in (slice(0, 2), slice(2, 5))
    ]
    total = parts[0] + parts[1]
    assert (total.count, total.hits, total.total) == (whole.count, whole.hits, whole.total)
    np.testing.assert_allclose(total.vector(), whole.vector(), rtol=1e-12)
    assert whole.with_vector(whole.vector()) == whole
    rebuilt = parts[0].with_vector(parts[0].vector() + parts[1].vector())
    assert rebuilt.hits == whole.hits
    np.testing.assert_allclose(rebuilt.vector(), whole.vector(), rtol=1e-12)


def test_empty_slice_is_zero_not_nan() -> None:
    assert RankingMetrics.of(np.array([])).flat() == {
        "mrr": 0.0,
        "mean_rank": 0.0,
        "hits_at_1": 0.0,
        "hits_at_3": 0.0,
        "hits_at_10": 0.0,
    }


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("missing", ["learned", "mean", "neutral"])
@pytest.mark.parametrize("scoring", ["contextual", "distmult", "transe"])
@pytest.mark.parametrize("modalities", [None, [], ["text"]], ids=["some missing", "structure", "complete"])
def test_all_scoring_paths_agree(
    toy: LinkData, loss: str, missing: str, scoring: str, modalities: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training scores, evaluation in one and in many tiles and blocks, and a plain double loop give one ranking."""
    config = Config().updated({
        "model.dim": 8, "model.relation_dim": 4 if scoring == "contextual" else 8, "model.missing": missing, "train.loss": loss,
        "model.scoring": scoring, "model.modalities": modalities,
    })
    model, graph = build_model(config, toy).eval(), toy.graph
    with torch.no_grad():
        torch.nn.init.normal_(model.structure)
    known = graph.known()
    tables = model.tables()
    heads, relations = (torch.from_numpy(graph.valid[:, column].copy()) for column in range(2))
    with torch.no_grad():
        scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
        decided = model.combine(
            scores, [torch.logsumexp(score, 1) for score in scores], model.decision_weights(heads, relations)
        )
    expected = []
    for row, (head, relation, tail) in enumerate(graph.valid.tolist()):
        others = {t for part in (graph.train, graph.valid) for h, r, t in part.tolist() if (h, r) == (head, relation)} - {tail}
        left = [float(decided[row, entity]) for entity in range(graph.num_entities) if entity not in others]
        own = float(decided[row, tail])
        expected.append(sum(score > own for score in left) + (1 + sum(score == own for score in left)) / 2)
    whole = evaluate(model, graph, graph.valid, known)
    np.testing.assert_allclose(whole.tail_ranks, expected)
    monkeypatch.setattr(tiles, "_NARROWEST", 7)
    monkeypatch.setattr(tiles, "_TILE", 1)
    monkeypatch.setattr(ranking, "_MOST", 4)
    many = evaluate(model, graph, graph.valid, known)
    np.testing.assert_allclose(many.tail_ranks, expected)
    np.testing.assert_allclose(many.head_ranks, whole.head_ranks)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_decisions_side_by_side_rank_as_each_alone(toy: LinkData, loss: str) -> None:
    """And the branches are scored once for all of them."""
    config = Config().updated({"model.dim": 8, "model.relation_dim": 4, "train.loss": loss, "model.decision": "relation"})
    model, graph = build_model(config, toy), toy.graph
    assert model.decision.logits is not None
    torch.nn.init.normal_(model.decision.logits)
    relations = 2 * model.num_relations
    variants = {
        "own": model.decision,
        "uniform": Decision("uniform", model.branches, relations),
        **{branch: Decision("fixed", model.branches, relations, {branch: 1.0}) for branch in model.branches},
    }
    together = evaluate_decisions(model, graph, graph.valid, graph.known(), variants)
    assert list(together) == list(variants)
    scored: list[int] = []
    original = model.each_score
    for name, decision in variants.items():
        model.decision = decision
        alone = evaluate(model, graph, graph.valid, graph.known())
        np.testing.assert_allclose(together[name].tail_ranks, alone.tail_ranks)
        np.testing.assert_allclose(together[name].head_ranks, alone.head_ranks)
        assert together[name].metrics == alone.metrics
    assert len({ranked.metrics.mrr for ranked in together.values()}) > 2

    def counted(*args: object) -> Iterator[torch.Tensor]:
        scored.append(1)
        return original(*args)  # type: ignore[arg-type]

    model.each_score = counted  # type: ignore[method-assign]
    evaluate_decisions(model, graph, graph.valid, graph.known(), variants)
    once = len(scored)
    evaluate_decisions(model, graph, graph.valid, graph.known(), {"own": variants["own"], "uniform": variants["uniform"]})
    assert once > 0 and len(scored) == 2 * once


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("modalities", [None, []], ids=["all", "structure"])
@pytest.mark.parametrize("entities", [30, 1003])
def test_equal_vectors_of_a_model_tie_exactly(
    toy: LinkData, loss: str, modalities: list[str] | None, entities: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KG-8: equal columns get equal sums and equal sigmoids, wherever they stand."""
    config = Config().updated({"model.dim": 40, "model.relation_dim": 4, "model.modalities": modalities, "train.loss": loss})
    names = Vocabulary(tuple(f"entity {place}" for place in range(entities)))
    graph = replace(toy.graph, entities=names)
    equal = tuple(
        Modality(item.name, np.ones((entities, 3), np.float32), np.ones(entities, bool)) for item in toy.modalities
    )
    model = build_model(config, replace(toy, graph=graph, modalities=equal))
    with torch.no_grad():
        model.structure.copy_(torch.randn(40) * 0.1)
    known = KnownAnswers.build([], graph.num_relations)
    for budget in (512, 0):
        found = evaluate(model, graph, graph.valid, known, memory=MemoryBudget(budget * 2**20))
        assert set(found.tail_ranks) == set(found.head_ranks) == {(entities + 1) / 2}


@pytest.mark.parametrize("threads", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("count", [1, 63, 64, 32768, 32769, 100_000, 2**20, 2**20 + 5])
def test_padded_numbers_fill_the_registers_of_every_thread(count: int, threads: int) -> None:
    padded = padded_count(count, threads)
    tasks = max(1, min(threads, -(-padded // 32768)))
    assert count <= padded < count + 64 * (threads + 1)
    assert padded % tasks == 0 and padded // tasks % 64 == 0


def test_a_block_of_many_relations_is_cut_to_the_budget(toy: LinkData) -> None:
    model = build_model(Config().updated({"model.dim": 8, "model.relation_dim": 4}), toy)
    scores = ModelScores(model, 8 * 4 * 4 * 8**2 // 4)  # two matrices
    asked = torch.tensor([0, 0, 0, 1, 2, 3, 3, 5])
    assert scores.relation_runs(asked) == [slice(0, 4), slice(4, 7), slice(7, 8)]
    assert scores.relation_runs(asked[:1]) == [slice(0, 1)]
    heads = torch.arange(8)
    wide = ModelScores(model, 2**30)
    with torch.no_grad():
        blocks = [block.clone() for block in scores.blocks(heads, asked, 2)]  # the next block takes the same memory
        found, (expected,) = torch.cat(blocks, dim=1), wide.blocks(heads, asked, 8)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (scores.block, wide.block) == (8 * 4 * 4 * 8**2 // 4 // (4 * 30 * 2), 1024)
    assert ModelScores(model, 4 * 30 * 2 * 100).block == 96  # whole rows of a product: 100 queries cost as much as 128


def test_all_blocks_of_a_ranking_share_one_place(toy: LinkData) -> None:
    model = build_model(Config().updated({"model.dim": 8, "model.relation_dim": 4}), toy)
    heads = torch.arange(10)
    with torch.no_grad():
        places = {block.untyped_storage().data_ptr() for block in ModelScores(model, 2**30).blocks(heads, heads % 3, 4)}
    assert len(places) == 1


def test_shards_add_up_to_the_whole_without_counting_a_triple_twice(toy: LinkData) -> None:
    model = build_model(Config().updated({"model.dim": 8, "model.relation_dim": 4}), toy)
    known = toy.graph.known()
    whole = evaluate(model, toy.graph, toy.graph.valid, known).metrics
    parts = [evaluate(model, toy.graph, toy.graph.valid, known, shard=Shard(rank, 3)).metrics for rank in range(3)]
    total = parts[0] + parts[1] + parts[2]
    assert whole.count == total.count == 2 * len(toy.graph.valid)
    np.testing.assert_allclose(total.vector(), whole.vector(), rtol=1e-9)


def test_a_small_budget_gives_the_same_numbers(toy: LinkData) -> None:
    model = build_model(Config().updated({"model.dim": 8, "model.relation_dim": 4}), toy)
    known = toy.graph.known()
    wide = evaluate(model, toy.graph, toy.graph.valid, known, memory=MemoryBudget(2**29))
    narrow = evaluate(model, toy.graph, toy.graph.valid, known, memory=MemoryBudget(0))  # one query at a time
    np.testing.assert_allclose(narrow.metrics.vector(), wide.metrics.vector(), rtol=1e-6)
