"""Repaired copies: what is taken out and carved, what never changes, and the folder that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.audit.audit import audit
from imf_core.data.audit.repair import Repaired, repair
from imf_core.data.formats.readers import read_raw
from imf_core.data.formats.writers import REPAIR_RECORD, check_place, write_graph
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.errors import DataError

Triple = tuple[int, int, int]


def raw(train: list[Triple], valid: list[Triple] | None = None, test: list[Triple] | None = None, size: int = 30) -> RawGraph:
    def rows(triples: list[Triple]) -> np.ndarray:
        return np.array(triples, np.int64).reshape(-1, 3)

    entities = Vocabulary(tuple(f"e{i}" for i in range(size)))
    relations = Vocabulary(("r0", "r1", "r2"), "relation")
    optional = (rows(part) if part is not None else None for part in (valid, test))
    return RawGraph(entities, relations, rows(train), *optional, source="drawn")


def triples(rows: np.ndarray | None) -> list[Triple]:
    return [tuple(row) for row in rows.tolist()] if rows is not None else []  # type: ignore[misc]


RING = [(i, r, (i + 1 + r) % 30) for i in range(30) for r in range(3)]  # 90 triples, each entity in 6 of them
HELD = [(i, 0, (i + 15) % 30) for i in range(10)]


def test_repeats_and_overlaps_are_taken_out() -> None:
    valid = [RING[0], RING[0], HELD[0], HELD[1], (5, 2, 20), (6, 2, 21), (7, 2, 22), (8, 2, 23), (9, 2, 24), (5, 2, 20)]
    found = repair(raw([*RING, RING[3]], valid, [*HELD, HELD[0]]))
    assert triples(found.train) == RING
    assert triples(found.test) == HELD
    assert triples(found.valid) == [(5, 2, 20), (6, 2, 21), (7, 2, 22), (8, 2, 23), (9, 2, 24)]  # half of 10 wanted: enough
    assert found.facts["valid"] == {
        "lines": 10, "repeats": 2, "written": 5, "in_train": 1, "in_test": 2, "kept": 5, "carved": 0, "wanted": 10,
        "too_little": False, "test_linked": 0.0,
    }
    assert "valid: 1 triples that stand in train and 2 that stand in test left out; 5 kept" in found.lines()


def test_too_little_validation_is_filled_up_and_the_clean_rest_kept() -> None:
    found = repair(raw(RING, [RING[0], (5, 2, 20)], HELD))
    assert triples(found.valid)[0] == (5, 2, 20)
    assert (len(found.valid), len(found.train)) == (10, 81)
    assert set(triples(found.valid)[1:]) | set(triples(found.train)) == set(RING)
    assert "valid: 9 triples moved there from train (seed 0)" in found.lines()
    assert triples(repair(raw(RING, [RING[0], (5, 2, 20)], HELD), seed=1).valid) != triples(found.valid)


def test_a_graph_without_validation_is_given_one() -> None:
    assert len(repair(raw(RING)).valid) == 9  # a tenth of train
    assert len(repair(raw(RING, None, HELD)).valid) == 10  # as many as test


def test_never_more_than_a_fifth_of_train_is_wanted() -> None:
    test = [(i, r, (i + 15 + r) % 30) for i in range(30) for r in range(3)]
    assert len(repair(raw(RING, None, test)).valid) == 18


def test_as_many_as_asked_for_are_moved_to_validation() -> None:
    leaking = [RING[0], (5, 2, 20), (6, 2, 20)]
    found = repair(raw(RING, leaking, HELD), valid_size=4)
    assert triples(found.valid)[:2] == [(5, 2, 20), (6, 2, 20)]
    assert (len(found.valid), len(found.train), found.facts["valid"]["wanted"]) == (4, len(RING) - 2, 4)
    assert len(repair(raw(RING, leaking, HELD), valid_size=2).valid) == 2  # enough are left
    assert len(repair(raw(RING, None, HELD), valid_size=1000).valid) == 18  # a fifth of train at most
    assert triples(repair(raw(RING, [(5, 2, 20)], HELD), valid_size=4).valid) == [(5, 2, 20)]  # its owner's choice


def test_a_small_clean_validation_stays_as_it_is() -> None:
    found = repair(raw(RING, [(5, 2, 20)], HELD))
    assert triples(found.valid) == [(5, 2, 20)]
    assert found.lines()[0] == "nothing had to be repaired"


def test_training_triples_of_test_leave_train_and_test_stays() -> None:
    found = repair(raw(RING, None, [RING[0], *HELD]))
    assert triples(found.test) == [RING[0], *HELD]
    assert RING[0] not in triples(found.train) + triples(found.valid)
    assert "train: 1 triples that stand in test left out" in found.lines()


def borders() -> list[Triple]:
    """A symmetric relation told in both directions, and `capital_of` (r1) with its inverse (r2)."""
    border = [(i, 0, j) for i in range(20) for j in range(20) if i != j and (i * j) % 5 == 1]
    capital = [(20 + i % 10, 1, i) for i in range(20)]
    return [*border, *capital, *((tail, 2, head) for head, _, tail in capital)]


def test_no_reversed_or_inverse_link_stays_in_train() -> None:
    graph = raw(borders(), None, [(0, 0, 15), (1, 0, 17)])
    repaired = repair(graph, valid_size=12)
    assert len(repaired.valid) == 12
    uses = np.bincount(graph.train[:, 1])
    assert np.abs(np.bincount(repaired.valid[:, 1]) - 12 * uses / len(graph.train)).max() <= 1
    report = audit(replace(graph, **repaired.splits), baseline_splits=())
    assert report.splits["valid"].linked == 0
    assert [report.splits[name].cold for name in ("valid", "test")] == [0, 0]
    assert not any(pair.valid for pair in report.similar)


def test_what_links_the_ends_of_a_test_triple_stays_in_train() -> None:
    test = [(tail, 0, head) for head, relation, tail in borders() if relation == 0][:10]
    repaired = repair(raw([row for row in borders() if row not in test], None, test))
    ends = {frozenset((head, tail)) for head, _, tail in test}
    assert len(repaired.valid) and not ends & {frozenset((head, tail)) for head, _, tail in triples(repaired.valid)}


def test_validation_is_drawn_as_test_was() -> None:
    """Two relations that often join the same entities: where test holds such triples, validation does too."""
    drawn = np.random.default_rng(0)
    pairs = [tuple(map(int, pair)) for pair in drawn.choice(30, (150, 2)) if pair[0] != pair[1]]
    rows = sorted({(head, relation, tail) for head, tail in pairs for relation in (0, 1)})
    order = drawn.permutation(len(rows)).tolist()
    test, train = [rows[i] for i in order[:40]], [rows[i] for i in order[40:]]
    found = repair(raw(train, None, test))

    def linked(repaired: Repaired) -> float:
        ends = {frozenset((head, tail)) for head, _, tail in triples(repaired.train)}
        return float(np.mean([frozenset((head, tail)) in ends for head, _, tail in triples(repaired.valid)]))

    assert found.facts["by"] == "triple" and "drawn triple by triple, as test was" in "\n".join(found.lines())
    assert found.facts["valid"]["test_linked"] == pytest.approx(0.8, abs=0.1)
    assert len(found.valid) == 40 and linked(found) > 0.5
    apart = [row for row in rows if (row[0], 1 - row[1], row[2]) not in test and row not in test]  # test joins none of the ends
    assert linked(repair(raw(apart, None, [(0, 2, 1)]), valid_size=20)) == 0


@pytest.mark.parametrize("train", [[], HELD[:2]])
def test_nothing_left_to_train_on(train: list[Triple]) -> None:
    with pytest.raises(DataError, match=r"drawn has no training triple"):
        repair(raw(train, None, HELD))


TRIPLES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5)), max_size=25)


@examples(100)
@given(train=TRIPLES.filter(bool), valid=st.none() | TRIPLES, test=st.none() | TRIPLES, seed=st.integers(0, 2))
def test_a_repaired_graph_has_no_overlap_and_loses_nothing_it_need_not(
    train: list[Triple], valid: list[Triple] | None, test: list[Triple] | None, seed: int
) -> None:
    graph = raw(train, valid, test, size=6)
    own = set(train) - set(test or ())
    if not own:
        return
    found = repair(graph, seed)
    left, held, final = (triples(part) for part in (found.train, found.valid, found.test))
    for rows in (left, held, final):
        assert len(rows) == len(set(rows))
    assert not set(left) & set(held)
    assert not (set(left) | set(held)) & set(final)
    assert set(final) == set(test or ())
    assert set(left) | set(held) == own | (set(valid or ()) - set(test or ()))
    assert {e for h, _, t in left for e in (h, t)} == {e for h, _, t in own for e in (h, t)}
    assert {r for _, r, _ in left} == {r for _, r, _ in own}


def write_repaired(graph: RawGraph, repaired: Repaired, out: Path, beside: Path | None = None) -> list[str]:
    return write_graph(out, beside, graph.entities, graph.relations, repaired.splits, REPAIR_RECORD, repaired.facts)


# --- the folder -----------------------------------------------------------------------------------------------------------


def test_the_folder_is_read_back_with_the_same_ids(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "deep" / "out"
    (source / "images").mkdir(parents=True)
    (source / "images" / "e1.png").write_bytes(b"picture")
    (source / "elsewhere.tsv").write_text("e1\ttext\n")
    (source / "descriptions.tsv").symlink_to(source / "elsewhere.tsv")
    graph = raw(RING, [RING[0], (5, 2, 20)], HELD)
    found = repair(graph)
    assert write_repaired(graph, found, out, source) == ["descriptions.tsv", "images"]
    again = read_raw(out, test=True)
    assert (again.entities.names, again.relations.names) == (graph.entities.names, graph.relations.names)
    for name, rows in (("train", found.train), ("valid", found.valid), ("test", found.test)):
        assert triples(getattr(again, name)) == triples(rows)
    assert (out / "images" / "e1.png").read_bytes() == b"picture"
    assert not (out / "descriptions.tsv").is_symlink()
    assert (out / "descriptions.tsv").read_text() == "e1\ttext\n"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    facts = json.loads((out / "repair.json").read_text())
    assert facts["valid"]["carved"] == 9
    assert (facts["by"], facts["seed"]) == ("bundle", 0)
    assert audit(again).problems == []


def test_odd_bytes_survive(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    graph = RawGraph(Vocabulary((odd, "b")), Vocabulary(("r",), "relation"), np.array([[0, 0, 1], [1, 0, 0]]))
    write_repaired(graph, repair(graph), tmp_path / "out")
    assert read_raw(tmp_path / "out").entities.names == (odd, "b")


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    graph = RawGraph(Vocabulary(("a\tb", "b")), Vocabulary(("r",), "relation"), np.array([[0, 0, 1]]))
    with pytest.raises(DataError, match=r"'a\\tb' holds a tab"):
        write_repaired(graph, repair(graph), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(DataError, match=r"there already"):
        check_place(tmp_path, None)
    with pytest.raises(DataError, match=r"there already"):
        check_place(tmp_path / "mine", None)
    with pytest.raises(DataError, match=r"lies in the graph's own folder"):
        check_place(tmp_path / "images" / "out", tmp_path)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_repaired(raw(RING), repair(raw(RING)), out)
    assert (out / "train.tsv").exists()
    assert not (out / "test.tsv").exists()


def test_a_link_that_leads_nowhere_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "images" / "e1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cannot be written"):
        write_repaired(raw(RING), repair(raw(RING)), tmp_path / "out", source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_db15k(shared_dir: Path) -> None:
    graph = read_raw(shared_dir / "data" / "DB15K", test=True)
    found = repair(graph)
    facts = found.facts["valid"]
    assert (facts["in_train"], facts["in_test"], facts["kept"], facts["written"]) == (6584, 824, 73, 9902)
    assert len(found.train) == 79_222 - (9902 - 73)
    assert np.array_equal(found.test, graph.test)
    repaired = RawGraph(graph.entities, graph.relations, found.train, found.valid, found.test)
    report = audit(repaired, baseline_splits=())
    assert report.problems == []
    assert report.splits["test"].cold == 77
