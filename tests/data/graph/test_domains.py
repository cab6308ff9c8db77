"""Which questions make sense, and which are settled by a known answer, by hand on a small graph."""

from __future__ import annotations

import numpy as np
import pytest

from imf_core.data.graph.domains import Domains
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary

PEOPLE, CITIES = ("ann", "bob", "cy", "dee"), ("rome", "oslo")
RELATIONS = ("born in", "works in", "married", "likes", "twin of")
TRAIN = (
    "ann born in rome|bob born in oslo|cy born in rome|ann works in rome|bob works in rome|dee works in oslo|ann married bob|"
    "ann likes bob|ann likes cy|bob likes cy|bob likes dee|cy likes bob|rome twin of oslo"
)


def parsed(text: str) -> np.ndarray:
    names = (*PEOPLE, *CITIES)
    rows = []
    for line in text.split("|"):
        head, relation, tail = line.split(" ")[0], " ".join(line.split(" ")[1:-1]), line.split(" ")[-1]
        rows.append((names.index(head), RELATIONS.index(relation), names.index(tail)))
    return np.array(rows)


@pytest.fixture
def graph() -> KnowledgeGraph:
    vocabularies = Vocabulary((*PEOPLE, *CITIES)), Vocabulary(RELATIONS, "relation")
    return KnowledgeGraph(*vocabularies, parsed(TRAIN), parsed("dee born in rome"))


def questions(keys: tuple[np.ndarray, np.ndarray]) -> set[tuple[str, str]]:
    names, width = (*PEOPLE, *CITIES), len(RELATIONS)
    return {(names[e], ("" if r < width else "~") + RELATIONS[r % width]) for e, r in zip(*keys, strict=True)}


def test_questions_that_make_sense(graph: KnowledgeGraph) -> None:
    domains = Domains.of(graph)
    every = np.repeat(np.arange(6), 10), np.tile(np.arange(10), 6)
    sensible = domains.make_sense(*every)
    found = questions((every[0][sensible], every[1][sensible]))
    assert ("cy", "works in") in found  # two of the three who were born somewhere work somewhere
    assert ("dee", "born in") in found  # two of the three who work somewhere were born somewhere
    assert ("ann", "married") in found and ("cy", "married") not in found  # one of three: no rule
    assert {("rome", "~born in"), ("oslo", "~works in")} <= found
    assert not {("rome", "born in"), ("oslo", "married"), ("ann", "~born in")} & found


def test_a_settled_question_is_not_open(graph: KnowledgeGraph) -> None:
    domains = Domains.of(graph)
    width = len(RELATIONS)
    assert domains.single[:3].all() and not domains.single[3]  # most like several
    assert not domains.single[width]  # more than one is born in rome
    still = questions(domains.open_questions(graph.known()))
    assert ("cy", "works in") in still and ("ann", "likes") in still and ("rome", "~born in") in still
    assert not {("ann", "born in"), ("ann", "married"), ("bob", "works in")} & still
    assert ("dee", "born in") not in still  # validation has settled it
    assert ("dee", "born in") in questions(domains.open_questions(graph.known(graph.train)))
