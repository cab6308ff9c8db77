"""Splits without links across them: bundles stay together, everything keeps a training triple."""

from __future__ import annotations

import numpy as np
import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from imf_core.data.audit.audit import audit
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.data.graph.partition import By, Partition, carve, partition
from imf_core.errors import DataError

TENTHS = {"valid": 0.1, "test": 0.1}


def graph_of(size: tuple[int, int], result: Partition) -> RawGraph:
    entities, relations = (tuple(f"{kind}{i}" for i in range(count)) for kind, count in zip("er", size, strict=True))
    splits = result.train, result.valid, result.test
    return RawGraph(Vocabulary(entities), Vocabulary(relations, "relation"), *splits)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Triples with reversed links, several relations a pair, repeats and self-loops."""
    entities, relations = draw(st.integers(3, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(20, 200))
    rows = np.stack([rng.integers(size, size=count) for size in (entities, relations, entities)], axis=1)
    return np.concatenate([rows, rows[: count // 4][:, [2, 1, 0]], rows[:5]]), entities, relations


@given(graphs(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_link_crosses_and_everything_is_trained(graph: tuple[np.ndarray, int, int], seed: int) -> None:
    rows, entities, relations = graph
    try:
        result = partition(rows, entities, relations, TENTHS, seed=seed)
    except DataError:  # nothing can be spared; see the last test
        return
    parts = (result.train, result.valid, result.test)
    assert sorted(map(tuple, np.concatenate(parts).tolist())) == sorted({tuple(row) for row in rows.tolist()})
    report = audit(graph_of((entities, relations), result), baseline_splits=())
    assert [report.splits[name].linked for name in ("valid", "test")] == [0, 0]
    assert not np.isin(result.test[:, [0, 2]], result.train[:, [0, 2]], invert=True).any()
    assert not np.isin(result.valid[:, 1], result.train[:, 1], invert=True).any()
    pairs = [{frozenset((h, t)) for h, _, t in part.tolist()} for part in parts]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]


def test_each_relation_gives_up_its_share_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    uses = {0: 600, 1: 300, 2: 100}
    rows = np.concatenate([
        np.stack([rng.integers(60, size=count), np.full(count, relation), rng.integers(60, size=count)], axis=1)
        for relation, count in uses.items()
    ])
    result = partition(rows, 60, 3, TENTHS)
    total = np.bincount(np.concatenate([result.train, result.valid, result.test])[:, 1])
    for part in (result.valid, result.test):
        assert np.abs(np.bincount(part[:, 1], minlength=3) - 0.1 * total).max() <= 1
    assert np.array_equal(partition(rows, 60, 3, TENTHS).test, result.test)
    assert not np.array_equal(partition(rows, 60, 3, TENTHS, seed=1).test, result.test)


def test_by_time_the_latest_are_test_and_those_before_validation() -> None:
    rows = np.array([(head, 0, tail) for head in range(15) for tail in range(head)])
    times = np.random.default_rng(0).permutation(len(rows)).astype(float)
    result = partition(rows, 15, 1, TENTHS, by=By.TIME, times=times)
    time = {tuple(row): at for row, at in zip(rows.tolist(), times.tolist(), strict=True)}
    train, valid, test = (
        sorted(time[tuple(row)] for row in part.tolist()) for part in (result.train, result.valid, result.test)
    )
    assert (len(valid), len(test)) == (10, 10)
    assert train[-1] < valid[0] and valid[-1] < test[0]
    again = np.concatenate([rows, rows[:, [2, 1, 0]]])  # told in both directions, first at one time and then at another
    later = partition(again, 15, 1, TENTHS, by=By.TIME, times=np.concatenate([times, np.full(len(rows), 1000.0)]))
    assert {frozenset(row[[0, 2]].tolist()) for row in later.test} == {frozenset(row[[0, 2]].tolist()) for row in result.test}


def test_by_entity_training_never_sees_those_of_test() -> None:
    rng = np.random.default_rng(1)
    rows = np.stack([rng.integers(40, size=300), rng.integers(3, size=300), rng.integers(40, size=300)], axis=1)
    result = partition(rows, 40, 3, TENTHS, by=By.ENTITY)
    test, valid, train = (set(part[:, [0, 2]].ravel().tolist()) for part in (result.test, result.valid, result.train))
    held_out = test - valid - train
    assert len(held_out) == 4
    assert all({row[0], row[2]} & held_out for row in result.test.tolist())
    assert all({row[0], row[2]} - train for row in result.valid.tolist())


def test_a_graph_that_can_spare_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 2 triples can be spared for test"):
        partition(np.array([(0, 0, 1), (2, 1, 3)]), 4, 2, TENTHS)


# --- setting aside ----------------------------------------------------------------------------------------------------


TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 6)), max_size=40, unique=True)
Triple = tuple[int, int, int]


def rows(*triples: Triple) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def names(triples: list[Triple] | list[list[int]]) -> tuple[set[int], set[int], set[frozenset[int]]]:
    """Entities, relations and pairs of entities."""
    ends = {entity for head, _, tail in triples for entity in (head, tail)}
    return ends, {relation for _, relation, _ in triples}, {frozenset((head, tail)) for head, _, tail in triples}


@examples(200)
@given(triples=TRIPLES, count=st.integers(0, 45), seed=st.integers(0, 3), apart=TRIPLES)
def test_carving_moves_whole_bundles_and_keeps_every_entity_and_relation(
    triples: list[Triple], count: int, seed: int, apart: list[Triple]
) -> None:
    kept, aside = carve(rows(*triples), count, 7, 4, seed, apart=rows(*apart))
    left, taken = ([tuple(row) for row in part.tolist()] for part in (kept, aside))
    assert sorted(left + taken) == sorted(triples)
    assert [row for row in triples if row in set(left)] == left
    assert [row for row in triples if row in set(taken)] == taken
    assert names(left)[:2] == names(triples)[:2]
    assert not names(left)[2] & names(taken)[2]
    assert not names(apart)[2] & names(taken)[2]
    assert len(taken) <= count or len(names(taken)[2]) == 1  # every bundle is larger: then the smallest


@examples(100)
@given(triples=TRIPLES, count=st.integers(0, 45), seed=st.integers(0, 3))
def test_carving_takes_as_many_as_it_can(triples: list[Triple], count: int, seed: int) -> None:
    kept, aside = carve(rows(*triples), count, 7, 4, seed)
    left = [tuple(row) for row in kept.tolist()]
    for pair in names(left)[2]:
        bundle = [row for row in left if frozenset((row[0], row[2])) == pair]
        fits = len(aside) + len(bundle) <= count or (count > 0 and not len(aside))
        others = [row for row in left if row not in bundle]
        assert not (fits and names(others)[:2] == names(left)[:2])  # each of the kept ones is needed or too large


def test_carving_is_fixed_by_the_seed_and_in_proportion() -> None:
    triples = rows(*((i, r, (i * 3 + r) % 20) for i in range(20) for r in range(4)))
    first, again, other = (carve(triples, 10, 20, 4, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == len(other) == 10
    assert np.ptp(np.bincount(np.array(first)[:, 1], minlength=4)) <= 1


def test_a_few_of_many_are_set_aside_alike() -> None:
    """Where few are wanted, not every bundle is looked at; where too few of those can be spared, all are."""
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.integers(size, size=4000) for size in (200, 3, 200)], axis=1)
    both = np.unique(np.concatenate([drawn, drawn[:, [2, 1, 0]]]), axis=0)
    kept, aside = carve(both, 60, 200, 3)
    assert len(aside) == 60 and len(kept) + len(aside) == len(both)
    assert np.bincount(aside[:, 1]).tolist() == [20, 20, 20]
    assert not names(kept.tolist())[2] & names(aside.tolist())[2]
    assert np.array_equal(aside, carve(both, 60, 200, 3, every=True)[1])
    star = np.array([(0, 0, tail) for tail in range(1, 400)] + [(1, 0, 2), (2, 0, 3), (3, 0, 1)])
    assert len(carve(star, 3, 400, 1)[1]) == 3


def test_carving_is_the_same_everywhere() -> None:
    triples = rows(*((i, 0, (i + 1) % 8) for i in range(8)), *((i, 0, (i + 3) % 8) for i in range(8)))
    assert carve(triples, 3, 8, 1)[1].tolist() == [[1, 0, 2], [0, 0, 3], [2, 0, 5]]  # by splitmix64 in plain integers


@pytest.mark.parametrize(
    ("triples", "spared"),
    [
        ([(0, 0, 1), (0, 1, 2), (1, 0, 2), (2, 2, 0)], 1),  # r1 and r2 are used once; the others need each other's ends
        ([(0, 0, 0), (0, 0, 1), (1, 0, 0)], 1),  # the self-loop: entity 1 has the other bundle alone
        ([(0, 0, 0), (1, 0, 2)], 0),
    ],
)
def test_carving_by_hand(triples: list[Triple], spared: int) -> None:
    assert len(carve(rows(*triples), 9, 3, 3)[1]) == spared


def test_a_bundle_larger_than_what_is_wanted_is_set_aside_if_there_is_no_other() -> None:
    ring = [(i, 0, (i + 1) % 6) for i in range(6)]
    kept, aside = carve(rows(*ring, *((tail, 0, head) for head, _, tail in ring)), 1, 6, 1)
    assert (len(kept), len(aside)) == (10, 2)
