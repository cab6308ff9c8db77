"""The audit: counts by hand, what it says in text, JSON and Markdown, and the known figures of real graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.audit.audit import audit
from imf_core.data.audit.report import AuditReport, Coverage
from imf_core.data.formats.readers import read_raw
from imf_core.data.graph.graph import RawGraph, Vocabulary

Names = list[tuple[str, str, str]]


def raw(train: Names, valid: Names | None = None, test: Names | None = None) -> RawGraph:
    everything = train + (valid or []) + (test or [])
    entities = Vocabulary(tuple(dict.fromkeys(name for h, _, t in everything for name in (h, t))))
    relations = Vocabulary(tuple(dict.fromkeys(r for _, r, _ in everything)), "relation")

    def ids(rows: Names | None) -> np.ndarray | None:
        if rows is None:
            return None
        return np.array([(entities.id(h), relations.id(r), entities.id(t)) for h, r, t in rows], np.int64).reshape(-1, 3)

    numbered = ids(train)
    assert numbered is not None
    return RawGraph(entities, relations, numbered, ids(valid), ids(test), source="drawn")


def lines_of(*text: str) -> Names:
    return [tuple(line.split()) for line in text]  # type: ignore[misc]


def leaking() -> RawGraph:
    """KG-6: 10 training lines, 2 repeats, a self-loop, a relation used once; test has a training triple and inverses."""
    train = lines_of(
        "a r1 b", "c r1 d", "e r1 f", "a r1 b", "g r1 g", "a r3 c", "c r1 d", "b r4 d", "d r4 f", "f r4 a"
    )
    return raw(train, test=lines_of("b r4 d", "b r2 a", "d r2 c", "f r2 e"))


def test_a_leaking_graph() -> None:
    report = audit(leaking())
    train, test = report.splits["train"], report.splits["test"]
    assert (train.lines, train.distinct, train.self_loops) == (10, 8, 1)
    assert (test.lines, test.in_train, test.clean, test.linked_reversed) == (4, 1, 3, 3)
    said = "\n".join(report.lines())
    assert "train: 2 duplicates removed (8 left)" in said
    assert "train: 1 self-loop kept (g r1 g)" in said
    assert "r2: train tells the answer as r1 reversed in 3 of 3 test triples, 100% (b r2 a)" in said
    assert report.to_json()["link_leaks"][0]["share"] == 1.0
    assert "1 single-triple relation: r3" in said
    assert "r2 looks like inverse of r1: 3 of 4 test triples" in said
    assert [problem[:50] for problem in report.problems] == ["1 overlap of test with train: 1 of 4 test lines st"]
    assert report.contaminated
    assert report.baseline["test"].count == 6  # both directions of 3 clean triples: inverses are added in training alone


def test_few_candidates_make_hits_at_10_certain() -> None:
    """KG-8: said, lest somebody reads it as merit."""
    few, more = (audit(raw([(f"e{n}", "r", f"e{n + 1}") for n in range(count)])) for count in (9, 10))
    assert (few.entities, more.entities) == (10, 11)
    assert "10 entities are ranked: Hits@10 is 1 by construction" in few.warnings
    assert not any("by construction" in warning for warning in more.warnings)
    assert "by construction" in few.markdown()


def test_an_inverse_that_train_shows_too() -> None:
    graph = leaking()
    more = RawGraph(
        graph.entities, graph.relations, np.concatenate([graph.train, [[0, graph.relations.id("r2"), 5]]]), None, graph.test
    )
    assert "r2 looks like inverse of r1: 3 of 4 test triples" in "\n".join(audit(more).lines())


def test_unseen_entities_and_relations() -> None:
    report = audit(raw(lines_of("a r b", "b r c"), test=lines_of("a r z", "z r y", "a q b")))
    assert "2 unseen entities in 2 test triples; 1 unseen relation in 1" in report.lines()
    assert report.splits["test"].cold == 2
    assert any(warning.startswith("2 cold test triples of 3") for warning in report.warnings)
    assert report.problems == []


def test_overlaps_are_counted_in_lines() -> None:
    train, test = lines_of("a r b", "b r c", "c r a"), lines_of("a r c", "b r a")
    valid = lines_of("a r b", "a r b", "a r c", "c r b", "c r b", "b r c")
    part = audit(raw(train, valid, test)).splits
    assert (part["valid"].lines, part["valid"].distinct) == (6, 4)
    assert (part["valid"].in_train, part["valid"].in_valid, part["valid"].in_test, part["valid"].clean) == (3, 6, 1, 2)
    assert (part["train"].in_train, part["train"].in_valid, part["train"].in_test, part["train"].clean) == (3, 2, 0, 1)
    assert (part["test"].in_train, part["test"].in_valid, part["test"].in_test, part["test"].clean) == (0, 1, 2, 1)


TRIPLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 3)), max_size=12)


@examples(60)
@given(train=TRIPLES, valid=TRIPLES, test=TRIPLES)
def test_counts_equal_brute_force(
    train: list[tuple[int, int, int]], valid: list[tuple[int, int, int]], test: list[tuple[int, int, int]]
) -> None:
    splits = {"train": train, "valid": valid, "test": test}
    arrays = {name: np.array(rows, np.int64).reshape(-1, 3) for name, rows in splits.items()}
    graph = RawGraph(Vocabulary(("a", "b", "c", "d")), Vocabulary(("r", "q"), "relation"), **arrays)
    report = audit(graph, baseline_splits=())
    seen = {e for h, _, t in train for e in (h, t)}
    pairs = {(h, t) for h, _, t in train}
    for name, rows in splits.items():
        part = report.splits[name]
        others = set().union(*(splits[other] for other in splits if other != name))
        assert (part.lines, part.distinct) == (len(rows), len(set(rows)))
        assert [part.in_train, part.in_valid, part.in_test] == [sum(row in splits[other] for row in rows) for other in splits]
        assert part.clean == sum(row not in others for row in rows)
        assert part.cold == sum(not {h, t} <= seen for h, _, t in rows)
        assert part.self_loops == sum(h == t for h, _, t in rows)
        assert part.linked == sum(bool({(h, t), (t, h)} & pairs) for h, r, t in rows if (h, r, t) not in train)
    assert report.contaminated == bool(set(train) & set(valid) or set(train) & set(test) or set(valid) & set(test))
    unknown = len(test) > 5 and all(not {h, t} <= seen for h, _, t in test)  # of test, nothing can be answered
    assert bool(report.problems) == (report.contaminated or unknown or not (train and valid and test))


def test_a_graph_without_valid_and_test() -> None:
    report = audit(raw(lines_of("a r b", "b r c")))
    assert [warning.split(":")[0] for warning in report.warnings[1:]] == ["no validation split", "no test split"]
    assert "--repair OUT" in report.warnings[1]
    assert report.problems == []
    assert report.baseline == {}
    assert report.to_json()["valid"]["lines"] == 0


def test_empty_splits_are_problems() -> None:
    report = audit(raw([], [], lines_of("a r b")))
    assert len(report.problems) == 2
    assert report.problems[0].startswith("there is no training triple")
    assert report.problems[1] == "the validation file holds no triple"
    assert report.categories == {}


def test_no_test_score_unless_asked_for() -> None:
    graph = raw(lines_of("a r b", "b r c"), lines_of("a r c"), lines_of("c r a"))
    assert set(audit(graph, baseline_splits=("valid",)).baseline) == {"valid"}
    assert set(audit(graph).baseline) == {"valid", "test"}


def test_validation_ranks_do_not_depend_on_test() -> None:
    train, valid = lines_of("a r b", "b r c", "c q a"), lines_of("a r c")
    found = [audit(raw(train, valid, lines_of(*test))).baseline["valid"] for test in (["a r a", "b r b"], ["b q b", "a r b"])]
    assert found[0] == found[1]


def test_categories_count_relations_of_train_and_lines_of_all() -> None:
    graph = raw(lines_of("a r b", "a r c", "a q b"), lines_of("b q c"), lines_of("a r d", "a x d"))
    assert audit(graph).to_json()["categories"] == {
        "1-1": {"relations": 1, "train": 1, "valid": 1, "test": 0},
        "1-N": {"relations": 1, "train": 2, "valid": 0, "test": 1},
        "N-1": {"relations": 0, "train": 0, "valid": 0, "test": 0},
        "N-N": {"relations": 0, "train": 0, "valid": 0, "test": 0},
    }


def test_coverage_is_told_and_its_problems_are_problems() -> None:
    graph = raw(lines_of("a r b"))
    entries = (Coverage("image", 3, 5, unknown=1), Coverage("text", 3, 5, empty=1))
    report = audit(graph, coverage=entries)
    assert "coverage: images 3 of 5, text 3 of 5 (1 empty), 1 unknown id" in report.lines()
    assert report.to_json()["coverage"]["text"]["empty"] == 1
    broken = audit(graph, coverage=[Coverage("sound", 0, 5, problem="damaged"), Coverage("text", 0, 5, unknown=3)])
    assert broken.problems[0] == "sound: damaged"
    assert broken.problems[1].startswith("text: none of the 5 entities has it")


def test_json_is_plain_and_has_the_promised_keys() -> None:
    told = json.loads(json.dumps(audit(leaking()).to_json()))
    for split in ("train", "valid", "test"):
        assert {"lines", "distinct", "in_train", "in_valid", "in_test", "clean", "cold"} <= told[split].keys()
    assert {"inverse_relations", "categories", "coverage", "baseline", "problems", "warnings"} <= told.keys()
    (pair,) = told["inverse_relations"]
    assert (pair["a"], pair["b"], pair["shared"], pair["share_a"], pair["test"]) == ("r2", "r1", 3, 1.0, 3)
    assert {"mrr", "hits_at_1", "hits_at_3", "hits_at_10"} <= told["baseline"]["test"].keys()


def test_markdown_shows_names_as_they_are() -> None:
    graph = raw([("a|b", "<r_1>", "c*"), ("c*", "<r_1>", "d")])
    text = audit(graph).markdown()
    assert text.startswith("## Audit of the data\n")
    single = audit(raw([("a|b", "<r|1>", "c*")])).markdown()
    assert "1 single-triple relation: \\<r\\|1\\>" in single
    assert "| train | 2 | 2 | - | 0 | 0 | 2 | 0 | 0 | 0 |" in text


# --- real graphs ----------------------------------------------------------------------------------------------------------


def real(shared_dir: Path, name: str) -> AuditReport:
    return audit(read_raw(shared_dir / "data" / name, test=True))


def test_db15k(shared_dir: Path) -> None:
    report = real(shared_dir, "DB15K")
    valid, test = report.splits["valid"], report.splits["test"]
    assert (valid.lines, valid.distinct, valid.in_train, valid.in_test, valid.clean) == (9904, 7481, 8719, 1105, 80)
    assert (test.in_train, report.splits["train"].in_test, test.cold) == (0, 0, 77)
    assert "training and test are disjoint" in report.lines()
    assert report.contaminated
    assert report.problems[0].startswith("8,719 of 9,904 validation lines stand in train and 1,105 in test; 80 stand")
    found = report.baseline["test"]
    assert (round(100 * found.mrr, 1), round(100 * (found.mrr_all_lines or 0), 1)) == (28.8, 29.6)  # valid holds lines of test


@pytest.mark.parametrize(("name", "cold", "mrr"), [("MKG-W", 306, 25.7), ("MKG-Y", 388, 29.0)])
def test_clean_graphs(shared_dir: Path, name: str, cold: int, mrr: float) -> None:
    report = real(shared_dir, name)
    assert report.splits["test"].cold == cold
    assert all(part.clean == part.lines == part.distinct for part in report.splits.values())
    assert not report.contaminated
    assert report.problems == []
    assert round(100 * report.baseline["test"].mrr, 1) == mrr


def test_names_that_collide_and_pictures_that_are_shared_are_named() -> None:
    graph = raw([("Berlin", "r", "berlin"), ("a", "r", "b"), ("A", "r", "b")])
    shared = (("a", "b", "c", "d"), ("e", "f"), ("g", "h"), ("i", "j"))
    said = "\n".join(audit(graph, coverage=[Coverage("image", 5, 5, alike=shared)]).lines())
    assert "names that differ in case, blanks or address alone: 2 groups (Berlin = berlin; a = A)" in said
    assert "image: 10 entities share theirs with others, byte for byte: 4 groups (a = b = c = ...; e = f; g = h; ...)" in said
