"""Carving and telling splits apart: nothing is lost, nothing depends on a random generator."""

from __future__ import annotations

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.graph.splits import carve, codes, distinct


def rows(*triples: tuple[int, int, int]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.integers(0, 6)), max_size=40, unique=True)


@examples(200)
@given(triples=TRIPLES, count=st.integers(0, 45), seed=st.integers(0, 3))
def test_carving_keeps_every_entity_and_relation(triples: list[tuple[int, int, int]], count: int, seed: int) -> None:
    kept, aside = carve(rows(*triples), count, 7, 4, seed)
    left, taken = [tuple(row) for row in kept.tolist()], [tuple(row) for row in aside.tolist()]
    assert sorted(left + taken) == sorted(triples)
    assert [row for row in triples if row in set(left)] == left
    assert [row for row in triples if row in set(taken)] == taken
    assert {r for _, r, _ in left} == {r for _, r, _ in triples}
    assert {e for h, _, t in left for e in (h, t)} == {e for h, _, t in triples for e in (h, t)}
    assert len(taken) <= count


@examples(100)
@given(triples=TRIPLES, count=st.integers(0, 45), seed=st.integers(0, 3))
def test_carving_takes_as_many_as_it_can(triples: list[tuple[int, int, int]], count: int, seed: int) -> None:
    kept, aside = carve(rows(*triples), count, 7, 4, seed)
    left = kept.tolist()
    if len(aside) < count:
        for h, r, t in left:  # each of the kept ones is the last of an entity or of the relation
            others = [row for row in left if row != [h, r, t]]
            entities = {e for a, _, b in others for e in (a, b)}
            assert not ({h, t} <= entities and r in {kind for _, kind, _ in others})


def test_carving_is_fixed_by_the_seed() -> None:
    triples = rows(*((i, r, (i * 3 + r) % 20) for i in range(20) for r in range(4)))
    first, again, other = (carve(triples, 10, 20, 4, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == len(other) == 10


def test_carving_is_the_same_everywhere() -> None:
    triples = rows(*((i, 0, (i + 1) % 8) for i in range(8)), *((i, 0, (i + 3) % 8) for i in range(8)))
    assert carve(triples, 3, 8, 1)[1].tolist() == [[1, 0, 2], [2, 0, 5], [6, 0, 1]]  # by splitmix64 in plain integers


@pytest.mark.parametrize(
    ("triples", "spared"),
    [
        ([(0, 0, 1), (1, 0, 0), (0, 1, 1)], 1),  # r1 is used once: it stays
        ([(0, 0, 0), (0, 0, 1), (1, 0, 0)], 2),  # the self-loop counts once for entity 0
        ([(0, 0, 0), (1, 0, 2)], 0),
    ],
)
def test_carving_by_hand(triples: list[tuple[int, int, int]], spared: int) -> None:
    assert len(carve(rows(*triples), 9, 3, 2)[1]) == spared


@given(triples=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)), max_size=30))
def test_distinct_keeps_the_first_of_each(triples: list[tuple[int, int, int]]) -> None:
    assert [tuple(row) for row in distinct(rows(*triples), 4, 2).tolist()] == list(dict.fromkeys(triples))


def test_codes_are_one_to_one() -> None:
    every = rows(*((h, r, t) for h in range(3) for r in range(2) for t in range(3)))
    assert codes(every, 3, 2).tolist() == list(range(18))


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OverflowError, match="too many triples to number"):
        codes(rows(), 2**31, 2)
