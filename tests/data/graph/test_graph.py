"""The graph: index of known answers against brute force, inverses, categories, cold entities, fingerprint, test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.formats.readers import read_graph
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, Vocabulary, expand_ranges, with_inverses
from imf_core.errors import DataError, VocabularyError


def rows(*triples: tuple[int, int, int]) -> np.ndarray:
    return np.array(triples, dtype=np.int64).reshape(-1, 3)


def graph(train: np.ndarray, valid: np.ndarray | None = None, entities: int = 6, relations: int = 2) -> KnowledgeGraph:
    names = Vocabulary(tuple(f"e{i}" for i in range(entities)))
    kinds = Vocabulary(tuple(f"r{i}" for i in range(relations)), "relation")
    return KnowledgeGraph(names, kinds, train, rows() if valid is None else valid, source="drawn")


# --- known answers ------------------------------------------------------------------------------------------------------

TRIPLES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 6)), max_size=30)


@examples(60)
@given(first=TRIPLES, second=TRIPLES, queries=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=20))
def test_lookup_equals_brute_force(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]], queries: list[tuple[int, int]]
) -> None:
    known = KnownAnswers.build([rows(*first), rows(*second)], 3)
    facts = {(h, r, t) for h, r, t in first + second} | {(t, r + 3, h) for h, r, t in first + second}
    entities, relations = (np.array([query[part] for query in queries], dtype=np.int64) for part in (0, 1))
    found = list(zip(*(part.tolist() for part in known.lookup(entities, relations)), strict=True))
    expected = [(place, t) for place, query in enumerate(queries) for t in sorted(t for h, r, t in facts if (h, r) == query)]
    assert found == expected
    asked = list(zip(*(part.tolist() for part in known.queries()), strict=True))
    assert asked == sorted({(h, r) for h, r, _ in facts})
    assert len(known.answers) == len(facts)


def test_index_by_hand() -> None:
    known = KnownAnswers.build([rows((0, 0, 2), (0, 0, 1), (0, 0, 2)), rows((3, 1, 0))], 2)
    # keys are entity * 2R + relation with R = 2: (0,0) (0,3) (1,2) (2,2) (3,1)
    assert known.keys.tolist() == [0, 3, 6, 10, 13]
    assert known.answers.tolist() == [1, 2, 3, 0, 0, 0]
    assert known.offsets.tolist() == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("parts", [[], [rows()], [rows(), rows()]])
def test_an_empty_index_answers_nothing(parts: list[np.ndarray]) -> None:
    known = KnownAnswers.build(parts, 2)
    places, answers = known.lookup(np.array([0, 5]), np.array([1, 3]))
    assert len(known.keys) == len(places) == len(answers) == 0
    assert known.offsets.tolist() == [0]


def test_lookup_of_no_query() -> None:
    known = KnownAnswers.build([rows((0, 0, 1))], 1)
    places, answers = known.lookup(np.empty(0, np.int64), np.empty(0, np.int64))
    assert len(places) == len(answers) == 0


def test_lookup_keeps_the_order_and_repeats_of_the_queries() -> None:
    known = KnownAnswers.build([rows((4, 0, 1), (2, 0, 3))], 1)
    places, answers = known.lookup(np.array([4, 2, 5, 4]), np.array([0, 0, 0, 0]))
    assert (places.tolist(), answers.tolist()) == ([0, 1, 3], [1, 3, 1])


def test_expand_ranges() -> None:
    found = expand_ranges(np.array([4, 0, 2]), np.array([6, 0, 3]), np.arange(10) * 10)
    assert [part.tolist() for part in found] == [[0, 0, 2], [40, 50, 20]]


def test_with_inverses() -> None:
    assert with_inverses(rows((1, 0, 2), (3, 4, 3)), 5).tolist() == [[1, 0, 2], [3, 4, 3], [2, 5, 1], [3, 9, 3]]
    assert with_inverses(rows(), 5).shape == (0, 3)


# --- the graph ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("triples", "category"),
    [
        ([(0, 0, 1), (2, 0, 3)], 0),  # 1-1
        ([(0, 0, 1), (0, 0, 2), (3, 0, 4)], 1),  # 3 triples over 2 heads = 1.5 tails a head: just "N"
        ([(0, 0, 1), (0, 0, 2), (3, 0, 4), (5, 0, 3)], 0),  # 4 over 3 heads = 1.33: not "N"
        ([(1, 0, 0), (2, 0, 0), (4, 0, 3)], 2),  # 1.5 heads a tail
        ([(0, 0, 2), (0, 0, 3), (1, 0, 2), (1, 0, 3)], 3),  # 2 and 2
    ],
)
def test_categories_by_hand(triples: list[tuple[int, int, int]], category: int) -> None:
    assert graph(rows(*triples)).categories.tolist() == [category, 0]  # a relation without triples counts as 1-1


def test_categories_are_of_each_relation_by_itself_and_of_train_alone() -> None:
    train = rows((0, 0, 1), (0, 0, 2), (1, 1, 0), (2, 1, 0))
    assert graph(train).categories.tolist() == [1, 2]
    assert graph(train, rows((3, 0, 1), (4, 0, 1), (5, 0, 1), (3, 0, 2))).categories.tolist() == [1, 2]


def test_seen_is_of_train_alone() -> None:
    made = graph(rows((0, 0, 2), (4, 1, 4)), rows((1, 0, 0)))
    assert made.seen.tolist() == [True, False, True, False, True, False]


def test_known_defaults_to_train_and_valid() -> None:
    made = graph(rows((0, 0, 1)), rows((0, 0, 2)))
    assert made.known().lookup(np.array([0]), np.array([0]))[1].tolist() == [1, 2]
    assert made.known(made.train).lookup(np.array([0]), np.array([0]))[1].tolist() == [1]


def test_no_training_triple_is_refused() -> None:
    with pytest.raises(DataError, match=r"drawn has no training triple"):
        graph(rows())


def test_fingerprint_follows_names_and_triples() -> None:
    base = graph(rows((0, 0, 1), (2, 1, 3)), rows((4, 0, 5)))
    again = graph(rows((0, 0, 1), (2, 1, 3)), rows((4, 0, 5)))
    others = [
        graph(rows((0, 0, 1), (2, 1, 4)), rows((4, 0, 5))),
        graph(rows((0, 0, 1), (2, 1, 3)), rows((4, 0, 4))),
        graph(rows((0, 0, 1), (2, 1, 3)), rows((4, 0, 5)), entities=7),
        graph(rows((0, 0, 1), (2, 1, 3)), rows((4, 0, 5)), relations=3),
    ]
    assert base.fingerprint == again.fingerprint
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_fingerprint_does_not_follow_the_test_file(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a\tr\tb\nb\tr\tc\n")
    (tmp_path / "valid.tsv").write_text("a\tr\tc\n")
    prints = []
    for line in ("c\tr\ta\n", "b\tr\ta\n"):
        (tmp_path / "test.tsv").write_text(line)
        prints.append(read_graph(tmp_path).fingerprint)
    assert prints[0] == prints[1]


def test_open_test_reads_when_asked_and_not_before() -> None:
    calls = []

    def reader() -> np.ndarray:
        calls.append(1)
        return rows((0, 0, 5))

    made = KnowledgeGraph(graph(rows((0, 0, 1))).entities, graph(rows((0, 0, 1))).relations, rows((0, 0, 1)), rows(), reader)
    assert made.fingerprint and made.seen.any() and not calls
    assert made.open_test().tolist() == [[0, 0, 5]]
    assert calls == [1]


def test_open_test_without_a_test_split() -> None:
    with pytest.raises(DataError, match=r"drawn has no test split"):
        graph(rows((0, 0, 1))).open_test()


# --- vocabulary ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_proposes_the_nearest() -> None:
    names = Vocabulary(("Berlin", "Bern", "Paris"))
    assert [names.id(name) for name in names.names] == [0, 1, 2]
    with pytest.raises(VocabularyError, match=r"'Berlln' is no entity .*\(3 known\); did you mean 'Berlin'\?") as caught:
        names.id("Berlln")
    assert caught.value.name == "Berlln"


def test_the_hash_depends_on_order_and_survives_odd_bytes() -> None:
    odd = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert Vocabulary(("a", "b")).sha256 != Vocabulary(("b", "a")).sha256
    assert Vocabulary((odd,)).sha256 != Vocabulary(("a",)).sha256
