"""Triples as numbers, and repeats merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.graph.splits import codes, distinct


def rows(*triples: tuple[int, int, int]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


@given(triples=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)), max_size=30))
def test_distinct_keeps_the_first_of_each(triples: list[tuple[int, int, int]]) -> None:
    assert [tuple(row) for row in distinct(rows(*triples), 4, 2).tolist()] == list(dict.fromkeys(triples))


def test_codes_are_one_to_one() -> None:
    every = rows(*((h, r, t) for h in range(3) for r in range(2) for t in range(3)))
    assert codes(every, 3, 2).tolist() == list(range(18))


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OverflowError, match="too many triples to number"):
        codes(rows(), 2**31, 2)
