"""Texts that name the answer of a held-out triple."""

from __future__ import annotations

import numpy as np

from imf_core.data.audit.audit import audit
from imf_core.data.audit.leaks import text_leaks
from imf_core.data.graph.graph import RawGraph, Vocabulary

NAMES = ("Berlin", "Germany", "Paris", "France", "block: Latin-1 Supplement", "Georgia (country)", "Li", "Liechtenstein")
RELATIONS = ("capital_of", "in_block", "near")


def graph(valid: list[tuple[int, int, int]], test: list[tuple[int, int, int]]) -> RawGraph:
    rows = [np.array(part, dtype=np.int64).reshape(-1, 3) for part in ([(0, 2, 2)], valid, test)]
    return RawGraph(Vocabulary(NAMES), Vocabulary(RELATIONS, "relation"), *rows)


def test_an_answer_in_the_text_is_found_whatever_case_and_punctuation() -> None:
    texts = {"Berlin": "Berlin is the capital (since 1990) of GERMANY.", "Paris": "A city on the Seine."}
    (leak,) = text_leaks(graph([(0, 0, 1)], [(2, 0, 3)]), texts)
    assert (leak.relation, leak.asked) == ("capital_of", "head")
    assert (leak.counts, leak.told) == ({"valid": 1, "test": 0}, {"valid": 1, "test": 1})
    assert leak.share == 0.5
    assert "Berlin, Germany" in leak.examples[0] and "GERMANY" in leak.examples[0]


def test_a_name_without_its_kind_or_its_brackets_counts() -> None:
    texts = {"Berlin": "a letter of the latin-1 supplement", "Paris": "a town in Georgia"}
    leaks = text_leaks(graph([], [(0, 1, 4), (2, 2, 5)]), texts)
    assert {(leak.relation, leak.counts["test"]) for leak in leaks} == {("in_block", 1), ("near", 1)}


def test_the_last_part_of_an_address_is_a_name() -> None:
    named = Vocabulary(("<http://dbpedia.org/resource/New_York>", "http://example.org/x#Erie_Canal", "c"))
    rows = np.array([(0, 0, 1)])
    raw = RawGraph(named, Vocabulary(("near",), "relation"), rows[:0], None, rows)
    (leak,) = text_leaks(raw, {named.names[0]: "where the Erie canal ends", named.names[1]: "a canal to New York"})[:1]
    assert leak.counts == {"test": 1}
    assert len(text_leaks(raw, {named.names[0]: "the Erie canal", named.names[1]: "to New York"})) == 2


def test_only_whole_words_of_some_length_count() -> None:
    texts = {"Berlin": "Liechtensteiners like it, says Li", "Paris": "germany's"}
    assert text_leaks(graph([(0, 2, 7)], [(0, 2, 6)]), texts) == ()
    assert [leak.counts for leak in text_leaks(graph([], [(2, 2, 1)]), texts)] == [{"test": 1}]


def test_the_other_side_is_looked_at_too_and_chance_is_left_out() -> None:
    texts = {"Germany": "its capital is Berlin"}
    (leak,) = text_leaks(graph([], [(0, 0, 1)]), texts)
    assert leak.asked == "tail"
    assert text_leaks(graph([], [(0, 0, 1)] + [(2, 0, 1)] * 30), texts) == ()


def test_the_audit_tells_it_as_a_finding_and_not_as_a_problem() -> None:
    raw = graph([(0, 0, 1)], [(2, 0, 3)])
    report = audit(raw, baseline_splits=(), texts={"Berlin": "capital of Germany"})
    assert any("capital_of: the text of the head names the tail in 1 of 1 valid triples" in line for line in report.lines())
    assert report.problems == []
    assert report.to_json()["text_leaks"][0]["relation"] == "capital_of"
    assert audit(raw, baseline_splits=()).leaks == ()
