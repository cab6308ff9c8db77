"""The baseline without training: by hand, against brute force, and its published figures on real graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.audit import baseline as module
from imf_core.data.audit.baseline import BaselineMetrics, OneStepRules, baseline
from imf_core.data.formats.readers import read_graph
from imf_core.data.graph.graph import KnownAnswers


def rows(*triples: tuple[int, int, int]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def ranks(train: np.ndarray, test: np.ndarray, entities: int, relations: int, *others: np.ndarray) -> list[float]:
    known = KnownAnswers.build([train, test, *others], relations)
    return OneStepRules(train, entities, relations).ranks(test, known).tolist()


def brute_force(
    train: list[tuple[int, int, int]], test: list[tuple[int, int, int]], filtered: set[tuple[int, int, int]], n: int, r: int
) -> list[float]:
    """The definition, word for word: confidences from sets of pairs, every candidate scored by itself."""
    pairs: dict[int, set[tuple[int, int]]] = {relation: set() for relation in range(2 * r)}
    for h, relation, t in train:
        pairs[relation].add((h, t))
        pairs[relation + r].add((t, h))

    def score(h: int, relation: int, e: int) -> tuple[float, int]:
        confidences = [len(pairs[a] & pairs[relation]) / len(pairs[a]) for a in pairs if a != relation and (h, e) in pairs[a]]
        return max(confidences, default=0.0), sum(tail == e for _, tail in pairs[relation])

    known = filtered | {(t, relation + r, h) for h, relation, t in filtered}
    found = []
    for h, relation, t in test + [(t, relation + r, h) for h, relation, t in test]:
        own = score(h, relation, t)
        others = [score(h, relation, e) for e in range(n) if e != t and (h, relation, e) not in known]
        found.append(1 + sum(other > own for other in others) + sum(other == own for other in others) / 2)
    return found


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_a_rule_stands_before_the_prior() -> None:
    # conf(r1 -> r0) = 1/2: of its pairs (0,1), (2,3) the first is linked by r0. Entity 5 is the most frequent tail of r0.
    train = rows((0, 0, 1), (0, 1, 1), (2, 1, 3), (4, 0, 5), (6, 0, 5))
    # Tails of (2, r0, ?): 3 by the rule, then 5 (twice a tail), 1 (once), the others tie.
    assert ranks(train, rows((2, 0, 3)), 7, 2)[0] == 1.0
    assert ranks(train, rows((2, 0, 5)), 7, 2)[0] == 2.0
    assert ranks(train, rows((2, 0, 1)), 7, 2)[0] == 3.0
    assert ranks(train, rows((2, 0, 0)), 7, 2)[0] == 5.5  # places 4, 5, 6, 7 are shared by 0, 2, 4, 6


def test_reversed_links_are_rules_of_their_own() -> None:
    # r1 is the inverse of r0 in the only pair; (3, r1, 2) then says (2, r0, 3).
    train = rows((0, 0, 1), (1, 1, 0), (3, 1, 2))
    assert ranks(train, rows((2, 0, 3)), 4, 2) == [1.0, 1.0]


def test_a_symmetric_relation_is_a_rule_and_the_relation_itself_is_none() -> None:
    train = rows((0, 0, 1), (1, 0, 0), (2, 0, 3))
    # (3, r0, ?): the reversed link to 2 has confidence 2/3; no rule has r0 in its own direction.
    assert ranks(train, rows((3, 0, 2)), 4, 1) == [1.0, 1.0]


def test_known_answers_are_left_out() -> None:
    train = rows((0, 0, 1), (0, 0, 2), (1, 0, 2), (3, 0, 2))
    # (0, r0, ?): 2 is the more frequent tail, but known; of 0, 3 and 4 nothing is known.
    assert ranks(train, rows((0, 0, 3)), 5, 1)[0] == 2.0
    assert ranks(train, rows((0, 0, 3)), 5, 1, rows((0, 0, 4)))[0] == 1.5


def test_a_constant_score_has_the_mean_rank() -> None:
    assert ranks(rows((0, 0, 1)), rows((2, 1, 3)), 100, 2) == [50.5, 50.5]


def test_a_target_that_is_not_among_the_known_does_not_compete_with_itself() -> None:
    rules = OneStepRules(rows((0, 0, 1)), 4, 1)
    assert rules.ranks(rows((2, 0, 1), (2, 0, 3)), KnownAnswers.build([], 1))[:2].tolist() == [1.0, 3.0]


def test_metrics_are_of_both_directions() -> None:
    train, test = rows((0, 0, 1), (2, 0, 1)), rows((3, 0, 1))
    # Tail: 1 is first. Head of (?, r0, 1): 0 and 2 are known, 1 and 3 tie at 1.5.
    found = baseline(train, 4, 1, test, KnownAnswers.build([train, test], 1))
    assert found == BaselineMetrics(2, pytest.approx((1 + 1 / 1.5) / 2), 1.25, 0.5, 1.0, 1.0)
    assert found.describe() == "MRR 83.3, MR 1, H@1 50.0, H@3 100.0, H@10 100.0"


def test_nothing_to_rank() -> None:
    train = rows((0, 0, 1))
    assert baseline(train, 2, 1, rows(), KnownAnswers.build([train], 1)).count == 0


# --- against brute force --------------------------------------------------------------------------------------------------

TRIPLE = st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5))


@examples(150)
@given(
    train=st.lists(TRIPLE, min_size=1, max_size=25, unique=True),
    test=st.lists(TRIPLE, min_size=1, max_size=6, unique=True),
    others=st.lists(TRIPLE, max_size=6),
    chunk=st.sampled_from([1, 7, 4_000_000]),
    filter_test=st.booleans(),
)
def test_ranks_equal_the_definition(
    train: list[tuple[int, int, int]], test: list[tuple[int, int, int]], others: list[tuple[int, int, int]], chunk: int,
    filter_test: bool,
) -> None:
    filtered = {*train, *others, *(test if filter_test else ())}
    known = KnownAnswers.build([rows(*filtered)], 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        found = OneStepRules(rows(*train), 6, 3).ranks(rows(*test), known).tolist()
    assert found == brute_force(train, test, filtered, 6, 3)


def test_too_many_links_are_sampled_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(*((i, 0, (i + 1) % 20) for i in range(20)), *((i, 1, 0) for i in range(1, 20)))
    known = KnownAnswers.build([train], 2)
    assert OneStepRules(train, 20, 2).evaluate(train, known).sampled_from is None
    monkeypatch.setattr(module, "_MOST", 50)
    sampled = OneStepRules(train, 20, 2).evaluate(train, known)
    assert sampled.sampled_from == len(train)
    assert 0 < sampled.count < 2 * len(train)
    assert "a sample" in sampled.describe()


# --- real graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mrr", "hits"),
    [
        ("DB15K", 29.6, (23.2, 31.6, 41.6)),
        ("MKG-W", 25.7, (20.8, 27.6, 33.3)),
        ("MKG-Y", 29.0, (27.4, 29.2, 30.9)),
    ],
)
def test_published_figures(shared_dir: Path, name: str, mrr: float, hits: tuple[float, ...]) -> None:
    graph = read_graph(shared_dir / "data" / name)
    test = graph.open_test()
    known = graph.known(graph.train, graph.valid, test)
    found = baseline(graph.train, graph.num_entities, graph.num_relations, test, known)
    assert round(100 * found.mrr, 1) == mrr
    assert tuple(round(100 * share, 1) for share in (found.hits_at_1, found.hits_at_3, found.hits_at_10)) == hits
