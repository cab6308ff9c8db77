"""Names that a reader cannot tell apart, and triples of an entity with itself."""

from __future__ import annotations

import numpy as np
import pytest

from imf_core.data.audit.names import colliding, self_loops
from imf_core.data.graph.graph import Vocabulary


@pytest.mark.parametrize(
    "pair",
    [
        ("Micronesia", "micronesia "), ("New_York", "New York"), ("STRASSE", "stra\u00dfe"),
        ("<http://dbpedia.org/resource/Georgia>", "http://example.org/x#Georgia"),
    ],
)
def test_names_that_read_alike_collide(pair: tuple[str, str]) -> None:
    assert colliding(["first", *pair, "last"]) == (pair,)


@pytest.mark.parametrize(("first", "second"), [("C", "C++"), ("Lagos", "Lagos (Portugal)"), ("a/Georgia", "b/Georgia")])
def test_names_that_read_differently_do_not(first: str, second: str) -> None:
    assert colliding([first, second]) == ()


def test_self_loops_are_named() -> None:
    rows = np.array([(0, 0, 0), (0, 0, 1), (1, 1, 1), (2, 0, 2), (3, 0, 3)])
    entities, relations = Vocabulary(tuple("abcd")), Vocabulary(("r", "q"), "relation")
    assert self_loops(rows, entities, relations) == ("a r a", "b q b", "c r c")
