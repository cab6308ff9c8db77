"""Filtered ranking: hand-computed ranks, ties, non-finite scores, chunks, shards, and agreement of all scoring paths."""

import numpy as np
import pytest
import torch

from imf_core.config import Config
from imf_core.data.graph import KnownAnswers
from imf_core.data.prepared import LinkData
from imf_core.errors import DivergedError
from imf_core.train.batches import Shard
from imf_core.train.fit import build_model
from imf_core.train.ranking import ModelScores, RankingMetrics, evaluate, rank


class Table:
    """Scores that stand in a table; query i is row `heads[i]`."""

    device = torch.device("cpu")

    def __init__(self, table: list[list[float]] | torch.Tensor) -> None:
        self.table = torch.as_tensor(table)
        self.num_entities = self.table.shape[1]

    def block(self, heads: torch.Tensor, relations: torch.Tensor) -> "Table._Block":
        return Table._Block(self.table[heads])

    class _Block:
        def __init__(self, rows: torch.Tensor) -> None:
            self.rows = rows

        def chunk(self, low: int, high: int) -> torch.Tensor:
            return self.rows[:, low:high].clone()


def ranks(
    table: list[list[float]] | torch.Tensor, targets: list[int], known: dict[int, list[int]] | None = None, chunk: int = 10**6
) -> list[float]:
    triples = [np.array([[head, 0, tail] for head, tails in (known or {}).items() for tail in tails], np.int64).reshape(-1, 3)]
    heads = np.arange(len(targets))
    index = KnownAnswers.build(triples, 1)
    return rank(Table(table), heads, np.zeros_like(heads), np.array(targets), index, block=2, chunk=chunk).tolist()


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_hand_computed(chunk: int) -> None:
    table = [[-1.0, -2.0, -0.5, -3.0], [0.1, 0.2, 0.3, 0.4], [5.0, 1.0, 5.0, 5.0]]
    assert ranks(table, [1, 3, 0], chunk=chunk) == [3.0, 1.0, 2.0]
    # KG-7: 0 known from train, 2 from valid; removed means -inf, not 0, which would beat the negative scores.
    assert ranks(table, [1, 3, 0], {0: [0, 2, 1]}, chunk=chunk) == [1.0, 1.0, 2.0]
    assert ranks(table, [3, 3, 0], {0: [0, 1, 2], 1: [3]}, chunk=chunk) == [
        1.0,
        1.0,
        2.0,
    ]  # the last entity, ragged answer lists


@pytest.mark.parametrize("chunk", [7, 100])
def test_constant_model_has_the_mean_rank(chunk: int) -> None:
    """KG-8: ties."""
    got = ranks(torch.zeros(3, 100), [0, 50, 99], chunk=chunk)
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
def test_all_scoring_paths_agree(toy: LinkData, loss: str, missing: str) -> None:
    """Training scores, whole evaluation, chunked evaluation and a plain double loop give one ranking."""
    config = Config().updated({"model.dim": 8, "model.relation_dim": 4, "model.missing": missing, "train.loss": loss})
    model, graph = build_model(config, toy).eval(), toy.graph
    with torch.no_grad():
        torch.nn.init.normal_(model.structure)
    known = graph.known()
    tables = model.tables()
    heads, relations, tails = (torch.from_numpy(graph.valid[:, column].copy()) for column in range(3))
    with torch.no_grad():
        scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
        decided = model.decide(
            scores, [torch.logsumexp(score, 1) for score in scores], model.decision_weights(heads, relations)
        )
    expected = []
    for row, (head, relation, tail) in enumerate(graph.valid.tolist()):
        others = {t for part in (graph.train, graph.valid) for h, r, t in part.tolist() if (h, r) == (head, relation)} - {tail}
        left = [float(decided[row, entity]) for entity in range(graph.num_entities) if entity not in others]
        own = float(decided[row, tail])
        expected.append(sum(score > own for score in left) + (1 + sum(score == own for score in left)) / 2)
    for chunk in (3, graph.num_entities):
        got = rank(ModelScores(model, chunk), heads.numpy(), relations.numpy(), tails.numpy(), known, block=4, chunk=chunk)
        np.testing.assert_allclose(got, expected)
    whole = evaluate(model, graph, graph.valid, known)
    np.testing.assert_allclose(whole.tail_ranks, expected)


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
    wide = evaluate(model, toy.graph, toy.graph.valid, known, budget_mb=512)
    from imf_core.train import ranking

    original = ranking.chunk_size
    ranking.chunk_size = lambda *args: 5
    try:
        narrow = evaluate(model, toy.graph, toy.graph.valid, known)
    finally:
        ranking.chunk_size = original
    np.testing.assert_allclose(narrow.metrics.vector(), wide.metrics.vector(), rtol=1e-6)
