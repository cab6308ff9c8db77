"""Splits that share lines: the figure of the clean triples first, that of all lines beside it, and repeats ranked once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import tiny_checkpoint, tiny_graph
from typer.testing import CliRunner

from imf_core.card.card import model_card
from imf_core.card.text import Facts
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import app
from imf_core.data.audit.audit import audit
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.data.graph.graph import ALL_LINES, KnowledgeGraph, Vocabulary, counted_triples, open_split, overlap_note
from imf_core.ensemble.ensemble import save_ensemble
from imf_core.evaluate.ranking import evaluate
from imf_core.prepare.link_data import prepare
from imf_core.runtime import Shard
from imf_core.tasks.link import LINK


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 28 test triples 20 stand in train and 1 in valid, 2 are repeated; of 8 validation triples 3 stand in train."""
    folder = tmp_path_factory.mktemp("shared")
    graph = tiny_graph(folder / "graph")
    lines = {name: (graph / f"{name}.tsv").read_bytes().splitlines() for name in ("train", "valid", "test")}
    clean = lines["test"][:7]
    test = [*lines["train"][:20], lines["valid"][0], *clean, clean[0], clean[1]]
    (graph / "test.tsv").write_bytes(b"\n".join(test) + b"\n")
    (graph / "valid.tsv").write_bytes(b"\n".join([*lines["valid"][:5], *lines["train"][:3]]) + b"\n")
    for seed in (0, 1):
        tiny_checkpoint(graph, folder / f"m{seed}", seed=seed, model__decision="uniform")
    return folder


def run(*arguments: object) -> tuple[dict[str, Any], str]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def by_hand(place: Path) -> dict[str, float]:
    """MRR on the 7 clean test triples, and on all 28, from the ranks of each triple."""
    loaded = load_checkpoint(place / "m0")
    graph = read_graph(place / "graph")
    triples, known = open_split(graph, "test")
    ranked = evaluate(loaded.model, graph, triples, known)
    met = {tuple(row) for row in np.concatenate([graph.train, graph.valid]).tolist()}
    clean = np.array([tuple(row) not in met for row in triples.tolist()])
    assert (len(triples), clean.sum()) == (28, 7)
    of_triples = (1 / ranked.tail_ranks + 1 / ranked.head_ranks) / 2
    return {"clean": of_triples[clean].mean(), "all": of_triples.mean()}


def test_evaluate_gives_the_clean_figure_first(place: Path, by_hand: dict[str, float]) -> None:
    found, told = run("evaluate", place / "m0", "--split", "test")
    assert (found["mrr"], found["mrr_all_lines"]) == (pytest.approx(by_hand["clean"]), pytest.approx(by_hand["all"]))
    assert (found["count"], found["slices"][ALL_LINES]["count"]) == (14, 56)
    assert found["slices"]["head"]["count"] == 7
    words = "21 of 28 test triples stand in train or valid too: figures are of the other 7"
    assert words in told and words in " ".join(found["notes"])
    assert "2 repeated test lines merged" in found["notes"]
    shown = CliRunner().invoke(app, ["evaluate", str(place / "m0"), "--split", "test"]).stdout
    assert shown.index("clean") < shown.index(ALL_LINES)


def test_compare_gives_the_figures_of_evaluate(place: Path, by_hand: dict[str, float]) -> None:
    found, told = run("compare", place / "m0", place / "m1", "--split", "test")
    assert (found["triples"], found["mrr"][0]) == (7, pytest.approx(by_hand["clean"]))
    assert (found["mrr_all_lines"][0], found["slices"][ALL_LINES]["queries"]) == (pytest.approx(by_hand["all"]), 56)
    assert "21 of 28 test triples" in told


def test_validation_too(place: Path) -> None:
    found, told = run("evaluate", place / "m0")
    assert (found["count"], found["slices"][ALL_LINES]["count"]) == (10, 16)
    assert "3 of 8 validation triples stand in train too" in told
    compared, _ = run("compare", place / "m0", place / "m1")
    assert compared["mrr"][0] == pytest.approx(found["mrr"])


def test_an_ensemble_too(place: Path, tmp_path: Path) -> None:
    made, told = run("ensemble", tmp_path / "pool", place / "m0", place / "m1")
    assert "3 of 8 validation triples" in told and made["validation"]["count"] == 10
    again, _ = run("evaluate", tmp_path / "pool")
    assert again["mrr"] == pytest.approx(made["validation"]["mrr"])
    assert again["mrr_all_lines"] == pytest.approx(made["validation"]["mrr_all_lines"])
    save_ensemble(tmp_path / "one", [place / "m0"], [1.0], {})
    tested, _ = run("evaluate", tmp_path / "one", "--split", "test")
    assert tested["mrr"] == pytest.approx(run("evaluate", place / "m0", "--split", "test")[0]["mrr"], abs=1e-6)


def test_what_a_search_records_and_the_card_says(place: Path, by_hand: dict[str, float], tmp_path: Path) -> None:
    loaded = load_checkpoint(place / "m0")
    data = prepare(loaded.config.data)
    found = LINK.test({0: place / "m0", 1: place / "m1"}, loaded.config, data, tmp_path / "ranks.safetensors")
    assert found.runs[0]["mrr"] == pytest.approx(by_hand["clean"])
    assert found.runs[0]["mrr_all_lines"] == pytest.approx(by_hand["all"])
    assert found.pooled is not None and "mrr_all_lines" in found.pooled
    assert found.baseline is not None and found.baseline.count == 14  # the clean triples alone, both directions
    assert "21 of 28 test triples" in " ".join(found.notes)
    LINK.publish(place / "m0", tmp_path / "best", found.details[0])
    card = model_card(load_checkpoint(tmp_path / "best"), Facts({}))
    section = card.partition("### Test")[2]
    assert "21 of 28 test triples stand in train or valid too: figures are of the other 7" in section
    assert section.index(f"{by_hand['clean']:.4f}") < section.index(f"{by_hand['all']:.4f}")


def test_the_audit_and_the_reading_path_count_the_same(place: Path) -> None:
    graph, report = read_graph(place / "graph"), audit(read_raw(place / "graph", test=True))
    triples = graph.open_test()
    assert len(triples) == report.splits["test"].distinct == 28
    assert "test: 2 duplicates removed (28 left)" in report.lines()
    assert graph.test_notes[0] == "2 repeated test lines merged"
    assert report.baseline["test"].count == 14 and report.baseline["valid"].count == 10
    assert "(all lines " in " ".join(report.baseline_lines())


def test_where_no_triple_is_clean_the_figures_are_of_all() -> None:
    names = Vocabulary(("a", "b", "c"))
    rows = np.array([[0, 0, 1], [1, 0, 2]])
    graph = KnowledgeGraph(names, Vocabulary(("r",), "relation"), rows, rows)
    counted = counted_triples(graph, "valid", rows)
    assert counted is not None and counted.all()
    assert overlap_note("valid", counted).startswith("all 2 validation triples stand in train too")
    assert counted_triples(graph, "valid", np.array([[2, 0, 0]])) is None and overlap_note("valid", None) == ""


def test_shards_add_up(place: Path) -> None:
    loaded = load_checkpoint(place / "m0")
    graph = read_graph(place / "graph")
    triples, known = open_split(graph, "test")
    counted = counted_triples(graph, "test", triples)
    whole = evaluate(loaded.model, graph, triples, known, counted=counted).metrics
    first, second = (
        evaluate(loaded.model, graph, triples, known, counted=counted, shard=Shard(rank, 2)).metrics for rank in (0, 1)
    )
    assert (first + second).vector().tolist() == pytest.approx(whole.vector().tolist())
