"""The load command, on a few requests: what it counts, and its page. No time is asserted: it is the machine's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from tiny_checkpoint import tiny_checkpoint, tiny_graph

from benchmarks.serve import K, draw_questions, is_right, main
from imf_core.predict import Predictor


def test_a_rehearsal_of_the_command(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tiny_graph(tmp_path / "graph"), tmp_path / "best")
    main(out=tmp_path / "serve.md", requests=20, connections=4, checkpoint=checkpoint)
    figures = json.loads((tmp_path / "serve.json").read_text(encoding="utf-8"))
    assert [(run["connections"], run["requests"], run["failed"]) for run in figures["runs"]] == [(1, 20, 0), (4, 20, 0)]
    for run in figures["runs"]:
        assert 0 < run["p50_ms"] <= run["p99_ms"] <= 1000 * run["seconds"]
        assert run["before"]["descriptors"] == run["after"]["descriptors"] > 3 and run["after"]["rss_mib"] > 50
        assert run["cpu_ms"] >= 0
    page = (tmp_path / "serve.md").read_text(encoding="utf-8")
    assert page.count("| 20 | 0 |") == 2 and figures["host"]["cpu"] in page and "load average" in page


def test_only_the_wanted_answer_is_right(tmp_path: Path) -> None:
    predictor = Predictor.load(tiny_checkpoint(tiny_graph(tmp_path / "graph"), tmp_path / "best"))
    questions = draw_questions(predictor, 90)
    assert len(set(questions)) == 90 and {question.head is None for question in questions} == {True, False}
    (wanted,) = predictor.answers(questions[:1], K)

    def body(answers: list[object]) -> bytes:
        return json.dumps({"results": [{"answers": answers}]}).encode()

    good = [asdict(answer) for answer in wanted]
    assert is_right(200, body(good), wanted)
    assert not is_right(503, body(good), wanted) and not is_right(0, b"", wanted)
    assert not is_right(200, body(good[:-1]), wanted) and not is_right(200, body(good[::-1]), wanted)
    assert not is_right(200, body([{**good[0], "score": wanted[0].score + 1e-3}, *good[1:]]), wanted)
    assert not is_right(200, body([{**good[0], "entity": good[1]["entity"]}, *good[1:]]), wanted)
    tied = [replace(wanted[0]), replace(wanted[1], score=wanted[0].score), *wanted[2:]]
    assert is_right(200, body([asdict(tied[1]), asdict(tied[0]), *map(asdict, tied[2:])]), tied)
