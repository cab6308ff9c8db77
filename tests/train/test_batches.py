"""Order and shares of the training queries: DDP-1, DDP-2, DDP-6, and KG-10 (training never looks at test)."""

import numpy as np
import pytest

from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.errors import DataError
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import Shard
from imf_core.train.batches import TrainingQueries, fitting_run, shuffled
from imf_core.train.fit import build_model


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


# --- the answers of a query in parts -----------------------------------------------------------------------------------


def triples_of(queries: TrainingQueries, epoch: int, world: int = 1) -> list[list[tuple[int, int, int]]]:
    """(head, relation, answer) of each query that is asked."""
    asked = []
    for rank in range(world):
        for batch in queries.epoch(16, 0, epoch, Shard(rank, world), per_triple=True, together=3):
            rows, tails = batch.positives.rows.numpy(), batch.positives.tails.tolist()
            for row, (head, relation) in enumerate(zip(batch.heads.tolist(), batch.relations.tolist(), strict=True)):
                asked.append([(head, relation, tails[at]) for at in np.flatnonzero(rows == row)])
    return asked


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_each_answer_comes_once_in_parts_of_nearly_the_same_size(toy: LinkData, most: int, world: int) -> None:
    whole = {each[0][:2]: len(each) for each in triples_of(TrainingQueries(toy.graph), 1)}
    assert max(whole.values()) > 3
    queries = TrainingQueries(toy.graph, answers_per_query=most)
    asked = triples_of(queries, 1, world)
    assert len(asked) == len(queries) == sum(-(-count // most) for count in whole.values())
    every = [triple for part in asked for triple in part]
    assert len(every) == len(set(every)) == 2 * len(toy.graph.train)
    for query, count in whole.items():
        sizes = sorted(len(part) for part in asked if part[0][:2] == query)
        assert sum(sizes) == count and sizes[-1] <= most and sizes[-1] - sizes[0] <= 1
    if most > 1:  # other answers come together in another epoch
        first, second = ({frozenset(part) for part in triples_of(queries, epoch)} for epoch in (1, 2))
        assert first != second and first & second


def test_parts_weigh_as_many_triples_as_they_have_answers(toy: LinkData) -> None:
    """The mean of the parts' losses, by their triples, is the loss of the whole queries; so is a process's share."""
    config = Config().updated({
        "model.scoring": "complex", "model.modalities": [], "train.label_smoothing": 0.0, "model.norm": "none",
        **{f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context")},
    })
    model = build_model(config, toy)
    losses = []
    for most, world in ((None, 1), (2, 1), (2, 3)):
        total = count = 0.0
        for rank in range(world):
            for batch in TrainingQueries(toy.graph, None, most).epoch(10**6, 0, 1, Shard(rank, world), per_triple=True):
                mean = model(batch.heads, batch.relations, batch.positives, config.train)["total"].item()
                total, count = total + batch.weight / world * mean, count + batch.weight / world
        assert count == pytest.approx(1.0)
        losses.append(total)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


# --- queries of a relation together ------------------------------------------------------------------------------------

COUNTS = (300, 40, 7, 1, 52)  # queries of each relation
RELATIONS = np.random.default_rng(1).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))


def orders(together: int, times: int) -> list[np.ndarray]:
    return [shuffled(RELATIONS, together, np.random.default_rng((0, epoch))) for epoch in range(times)]


def runs(order: np.ndarray) -> np.ndarray:
    """Lengths of the runs of one relation."""
    own = RELATIONS[order]
    return np.diff(np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1], [True]))))


@pytest.mark.parametrize("together", [1, 2, 8, 1000])
def test_every_order_is_a_permutation(together: int) -> None:
    first, second = orders(together, 2)
    assert sorted(first) == sorted(second) == list(range(len(RELATIONS)))
    assert (first != second).any()


def test_runs_make_batches_of_few_relations() -> None:
    distinct = {}
    for together in (1, 16):
        pieces = np.array_split(orders(together, 1)[0], len(RELATIONS) // 20)
        distinct[together] = np.mean([len(set(RELATIONS[piece])) for piece in pieces])
    assert distinct[16] < 0.8 * distinct[1]
    assert runs(orders(1000, 1)[0]).max() > 100 and runs(orders(1, 1)[0]).mean() < 3


def test_one_is_the_plain_permutation() -> None:
    np.testing.assert_array_equal(orders(1, 1)[0], np.random.default_rng((0, 0)).permutation(len(RELATIONS)))


@pytest.mark.parametrize("together", [4, 16])
def test_a_query_is_as_likely_in_one_batch_as_in_any_other(together: int) -> None:
    """Over 3,000 epochs: for each query the counts of its five batches pass a chi-squared test, also those at the ends of a
    relation's runs; and so does the query that follows it, among those of its relation.
    """
    epochs, batches = 3000, 5
    counts = np.zeros((len(RELATIONS), batches))
    after_first: list[int] = []
    first = int(np.flatnonzero(RELATIONS == 1)[0])
    for order in orders(together, epochs):
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        counts[np.arange(len(order)), place * batches // len(order)] += 1
        following = order[place[first] + 1] if place[first] + 1 < len(order) else -1
        if following >= 0 and RELATIONS[following] == 1:
            after_first.append(int(following))
    expected = epochs / batches
    statistic = ((counts - expected) ** 2 / expected).sum(axis=1)  # 4 degrees of freedom
    # Runs have unequal lengths, so that their places are not quite even; 0.1 % of 400 queries may exceed 18.5 by chance.
    assert np.mean(statistic) < 4.6 and (statistic > 18.5).mean() < 0.02
    partners = np.bincount(after_first, minlength=len(RELATIONS))[RELATIONS == 1]
    assert np.count_nonzero(partners) == COUNTS[1] - 1  # every other query of the relation follows it now and then
    assert partners.max() < 2 * partners[partners > 0].mean()


def test_the_run_that_fits() -> None:
    """Matrices at most as much as the scores: 6 r d^2 per relation against 6 N d per query."""
    assert fitting_run(256, 256, 15_000) == 5
    assert fitting_run(128, 64, 15_000) == 1
    assert fitting_run(64, 32, 1_000_000) == 1
