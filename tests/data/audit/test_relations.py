"""Shared pairs against brute force; relations that say the same, by hand and on real graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.audit.relations import (
    DUPLICATE,
    INVERSE,
    SYMMETRIC,
    RelationPair,
    flipped,
    shared_pairs,
    similar_relations,
)
from imf_core.data.formats.readers import read_graph


def rows(*triples: tuple[int, int, int]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


TRIPLES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4)), max_size=20, unique=True)


@examples(80)
@given(first=TRIPLES, second=TRIPLES)
def test_shared_pairs_equal_brute_force(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> None:
    def pairs(triples: list[tuple[int, int, int]], relation: int) -> set[tuple[int, int]]:
        return {(h, t) for h, r, t in triples if r == relation}

    found = shared_pairs(rows(*first), rows(*second), 5, 3).toarray().tolist()
    assert found == [[len(pairs(first, a) & pairs(second, b)) for b in range(3)] for a in range(3)]


def test_an_inverse_that_only_test_shows() -> None:
    train = rows((0, 0, 1), (2, 0, 3), (4, 0, 5), (6, 0, 7), (8, 1, 9))
    test = rows((1, 1, 0), (3, 1, 2), (5, 1, 4))
    # r1 has 4 pairs, 3 of them reversed pairs of r0: 0.75 over all splits, but all of its test triples.
    assert similar_relations({"train": train, "test": test}, 10, 2) == [RelationPair(INVERSE, 1, 0, 3, 0.75, 0.75, 0, 3)]


def test_near_duplicates_and_symmetric_relations() -> None:
    train = rows(*((i, r, i + 10) for i in range(4) for r in (0, 1)), (0, 1, 1), *((i, 2, i + 1) for i in (20, 22)))
    train = np.concatenate([train, flipped(rows((20, 2, 21), (22, 2, 23)))])
    valid = rows((24, 0, 25), (10, 2, 0))
    found = similar_relations({"train": train, "valid": valid}, 30, 3)
    assert found == [RelationPair(DUPLICATE, 0, 1, 4, 0.8, 0.8), RelationPair(SYMMETRIC, 2, 2, 4, 0.8, 0.8)]


def test_self_loops_make_no_relation_symmetric() -> None:
    assert similar_relations({"train": rows((0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3))}, 4, 1) == []


def test_few_shared_pairs_are_chance() -> None:
    assert similar_relations({"train": rows((0, 0, 1), (0, 1, 1), (2, 0, 3), (2, 1, 3))}, 4, 2) == []


def test_a_graph_without_shared_pairs() -> None:
    assert similar_relations({"train": rows((0, 0, 1)), "test": rows()}, 2, 1) == []


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("WN18RR", {SYMMETRIC: 3}),
        ("MKG-Y", {DUPLICATE: 2, SYMMETRIC: 1}),
        ("FB15K237", {DUPLICATE: 9, INVERSE: 11, SYMMETRIC: 21}),
    ],
)
def test_real_graphs(shared_dir: Path, name: str, kinds: dict[str, int]) -> None:
    graph = read_graph(shared_dir / "data" / name)
    splits = {"train": graph.train, "valid": graph.valid, "test": graph.open_test()}
    found = similar_relations(splits, graph.num_entities, graph.num_relations)
    assert {kind: sum(pair.kind == kind for pair in found) for kind in sorted({pair.kind for pair in found})} == kinds
