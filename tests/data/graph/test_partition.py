"""Splits without links across them: bundles stay together, everything keeps a training triple."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imf_core.data.audit.audit import audit
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.data.graph.partition import By, Partition, partition
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
