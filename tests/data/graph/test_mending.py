"""Splits that no file holds: set aside from train in bundles, so that no link crosses them, and written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from imf_core.data.audit.audit import audit
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.data.graph.mending import mended, with_test
from imf_core.errors import DataError

COUNTRIES = 30


@pytest.fixture
def countries() -> RawGraph:
    """`borders` told in both directions, `capital_of` with its inverse `has_capital`, and a repeated line."""
    pairs = [(i, j) for i in range(COUNTRIES) for j in range(i) if (i + j) % 6 == 0]
    rows = [(i, 0, j) for i, j in pairs] + [(j, 0, i) for i, j in pairs]
    capitals = [(COUNTRIES + i + step, i) for i in range(COUNTRIES) for step in (0, COUNTRIES)]
    rows += [(city, 1, country) for city, country in capitals] + [(country, 2, city) for city, country in capitals]
    rows += [(city, 1, (country + 1) % COUNTRIES) for city, country in capitals]
    relations = Vocabulary(("borders", "capital_of", "has_capital"), "relation")
    names = tuple(f"e{number}" for number in range(3 * COUNTRIES))
    return RawGraph(Vocabulary(names), relations, np.array([*rows, rows[0]]), source="countries")


def test_a_graph_without_splits_gets_both_and_no_link_crosses_them(countries: RawGraph) -> None:
    split = with_test(countries, 0.1)
    graph = mended(split, None, "keep")
    assert split.test is not None
    distinct = len(countries.train) - 1
    assert (graph.made["test"]["wanted"], graph.made["test"]["written"]) == (round(distinct / 10), len(split.test))
    assert graph.made["valid"]["written"] == len(graph.valid)
    assert len(split.test) == pytest.approx(distinct / 10, abs=1)
    assert len(graph.train) + len(graph.valid) + len(split.test) == distinct
    report = audit(replace(countries, train=graph.train, valid=graph.valid, test=split.test), baseline_splits=())
    assert [(report.splits[name].linked, report.splits[name].cold) for name in ("valid", "test")] == [(0, 0), (0, 0)]
    assert {relation for _, relation, _ in split.test.tolist()} == {0, 1, 2}
    ends = [{frozenset(row[[0, 2]].tolist()) for row in rows} for rows in (graph.valid, split.test)]
    assert not ends[0] & ends[1]


def test_test_keeps_apart_from_a_validation_split_that_is_there(countries: RawGraph) -> None:
    valid = countries.train[60::7]
    graph = replace(countries, train=np.delete(countries.train, np.s_[60::7], axis=0), valid=valid)
    split = with_test(graph, 0.2)
    assert split.test is not None and np.array_equal(split.valid, valid)
    held_out = {frozenset(row[[0, 2]].tolist()) for row in valid}
    assert not held_out & {frozenset(row[[0, 2]].tolist()) for row in split.test}


def test_what_nobody_can_spare_is_said() -> None:
    chain = RawGraph(Vocabulary(("a", "b")), Vocabulary(("r",), "relation"), np.array([(0, 0, 1)]), source="chain")
    with pytest.raises(DataError, match="chain has no test split, and no training triple can be spared"):
        with_test(chain, 0.1)
