"""Order and shares of the training queries: DDP-1, DDP-2, DDP-6, and KG-10 (training never looks at test)."""

import numpy as np
import pytest

from imf_core.data.graph import KnowledgeGraph, Vocabulary
from imf_core.errors import DataError
from imf_core.train.batches import Shard, TrainingQueries


def chain(num_queries: int) -> TrainingQueries:
    """A graph with exactly `num_queries` distinct queries (an even number): disjoint pairs under one relation."""
    pairs = num_queries // 2
    train = np.array([(2 * i, 0, 2 * i + 1) for i in range(pairs)])
    graph = KnowledgeGraph(Vocabulary(tuple(map(str, range(2 * pairs + 1)))), Vocabulary(("r",), "relation"), train, train[:0])
    queries = TrainingQueries(graph)
    assert len(queries) == num_queries
    return queries


def ids(queries: TrainingQueries, batch_size: int, seed: int, epoch: int, shard: Shard) -> list[list[tuple[int, int]]]:
    return [
        list(zip(b.heads.tolist(), b.relations.tolist(), strict=True)) for b in queries.epoch(batch_size, seed, epoch, shard)
    ]


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(66, 65, 1), (130, 64, 2), (130, 128, 1), (8, 3, 2), (6, 2, 2), (4, 1, 2), (2, 64, 1)]
)
def test_every_query_once_and_no_batch_of_one(count: int, batch: int, world: int) -> None:
    queries = chain(count)
    shares = [ids(queries, batch, 0, 1, Shard(rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # equal step counts, or ranks would wait for each other
    assert all(len(step) >= 2 for share in shares for step in share)  # BatchNorm needs two
    seen = [query for share in shares for step in share for query in step]
    assert len(seen) == count
    assert set(seen) == set(zip(queries.heads.tolist(), queries.relations.tolist(), strict=True))


def test_weights_make_the_average_of_ranks_the_mean_of_the_batch() -> None:
    queries = chain(10)
    parts = [list(queries.epoch(10, 0, 1, Shard(rank, 3))) for rank in range(3)]
    for step in zip(*parts, strict=True):
        total = sum(len(batch.heads) for batch in step)
        for batch in step:
            # average over ranks of weight * (sum / own count) must be sum / total
            assert batch.weight / 3 / len(batch.heads) == pytest.approx(1 / total)


def test_too_few_queries_are_refused_in_numbers() -> None:
    with pytest.raises(DataError, match="2 training queries are too few for 2 worker"):
        chain(2).num_steps(64, world=2)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    queries = chain(40)
    first = ids(queries, 8, 0, 1, Shard())
    assert first == ids(queries, 8, 0, 1, Shard())
    assert first != ids(queries, 8, 0, 2, Shard())
    assert first != ids(queries, 8, 1, 1, Shard())


def test_positives_are_the_known_training_answers(toy: object) -> None:
    graph = toy.graph  # type: ignore[attr-defined]
    truth = {(h, r, t) for h, r, t in graph.train.tolist()}
    truth |= {(t, r + graph.num_relations, h) for h, r, t in graph.train.tolist()}
    found = set()
    for batch in TrainingQueries(graph).epoch(16, 0, 1):
        np.testing.assert_array_equal(
            np.bincount(batch.positives.rows.numpy(), minlength=len(batch.heads)), batch.positives.counts.numpy()
        )
        for row, tail in zip(batch.positives.rows.tolist(), batch.positives.tails.tolist(), strict=True):
            found.add((int(batch.heads[row]), int(batch.relations[row]), tail))
    assert found == truth
