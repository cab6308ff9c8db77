"""Training triples between the ends of held-out triples, against a count by hand and by brute force."""

from __future__ import annotations

import numpy as np
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.audit import links
from imf_core.data.audit.links import LinkLeak, link_leaks
from imf_core.data.graph.graph import Vocabulary

ENTITIES = Vocabulary(tuple(f"e{number}" for number in range(40)))
RELATIONS = Vocabulary(("borders", "capital_of", "has_capital"), "relation")


def rows(triples: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def test_reversed_and_inverse_links_are_counted_with_examples() -> None:
    border = [(i, 0, i + 1) for i in range(10)]
    train = [(tail, 0, head) for head, _, tail in border[:7]] + [(20 + i, 1, i) for i in range(5)]
    valid, test = border[:4] + [(i, 2, 20 + i) for i in range(3)], [*border[4:], (3, 2, 23)]
    splits = {"train": rows(train), "valid": rows(valid), "test": rows(test)}
    borders, capital = link_leaks(splits, ENTITIES, RELATIONS)
    assert borders == LinkLeak(
        "borders", "borders", True, {"valid": 4, "test": 3}, {"valid": 4, "test": 6},
        ("e0 borders e1", "e1 borders e2", "e2 borders e3"),
    )
    assert (capital.relation, capital.by, capital.reverse, capital.share) == ("has_capital", "capital_of", True, 1.0)
    assert borders.describe() == (
        "borders: train tells the answer as borders reversed in 4 of 4 valid and 3 of 6 test triples, 70% (e0 borders e1)"
    )


TRIPLES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 4)), max_size=20, unique=True)


@examples(100)
@given(train=TRIPLES, valid=TRIPLES, test=TRIPLES)
def test_counts_equal_brute_force(
    train: list[tuple[int, int, int]], valid: list[tuple[int, int, int]], test: list[tuple[int, int, int]]
) -> None:
    splits = {"train": rows(train), "valid": rows(valid), "test": rows(test)}
    found = {
        (leak.relation, leak.by, leak.reverse): (leak.counts["valid"], leak.counts["test"])
        for leak in link_leaks(splits, ENTITIES, RELATIONS, least=0.0)
    }
    expected = {}
    for a in range(3):
        for b in range(3):
            for reverse in (False, True):
                if a == b and not reverse:
                    continue
                told = {(t, h) if reverse else (h, t) for h, r, t in train if r == b}
                counts = tuple(
                    sum(r == a and (h, t) in told and not (reverse and h == t) for h, r, t in part) for part in (valid, test)
                )
                if sum(counts) >= links.MIN_SHARED:
                    expected[RELATIONS.names[a], RELATIONS.names[b], reverse] = counts
    assert found == expected
