"""Several studies as one model: an ensemble a seed, weighed on validation, test read once and after that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference import pool as pooling
from benchmarks.reference import reference
from benchmarks.reference.reference_row import summary_row
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.data.graph.graph import open_split
from imf_core.ensemble.ensemble import Ensemble, load_ensemble, open_predictor, rank_split
from imf_core.evaluate.pooled import evaluate_pooled
from imf_core.evaluate.ranking import evaluate
from imf_core.evaluate.test_once import OWN, POOLED, RANKS_FILE, read_ranks
from imf_core.prepare.link_data import graph_of
from tests.support.reference_command import command
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph

PAGE = "# Results\n\n<!-- rows -->\n<!-- /rows -->\n"


@pytest.fixture
def studies(tmp_path: Path) -> list[Path]:
    """Two finished studies with the seeds 0 and 1, the second with seed 2 besides."""
    graph = tiny_graph(tmp_path / "graph")
    made = []
    for name, dim, seeds in (("narrow", 8, (0, 1)), ("wide", 16, (0, 1, 2))):
        study = tmp_path / name
        for seed in seeds:
            tiny_checkpoint(graph, study / "final" / f"t000-seed-{seed}" / "best", seed=seed, model__dim=dim)
        (study / "summary.json").write_text(json.dumps({"seeds": list(seeds), "test_opened": 1}))
        made.append(study)
    return made


def test_an_ensemble_of_each_seed_and_a_row_of_it(
    studies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    order = []
    ask = pooling.open_split
    monkeypatch.setattr(pooling, "open_split", lambda *given: order.append("test") or ask(*given))
    weigh = pooling.select
    monkeypatch.setattr(pooling, "select", lambda *given, **more: order.append("weights") or weigh(*given, **more))
    assert command(monkeypatch, "pool", tmp_path / "both", *studies) == 0
    assert order == ["weights", "weights", "test"]

    values = json.loads((tmp_path / "both" / "summary.json").read_text())
    assert (values["seeds"], values["test_opened"]) == ([0, 1], 1)
    graph = graph_of(load_checkpoint(studies[0] / "final" / "t000-seed-0" / "best").config.data)
    triples, known = open_split(graph, "test")
    mrr = [load_ensemble(tmp_path / "both" / f"seed-{seed}").rank(graph, triples, known).metrics.mrr for seed in (0, 1)]
    assert values["test"]["mrr"]["mean"] == pytest.approx(np.mean(mrr))
    assert values["test"]["mrr"]["std"] == pytest.approx(np.std(mrr, ddof=1))
    ranks, _ = read_ranks(tmp_path / "both" / "final" / RANKS_FILE)
    assert (1 / ranks).mean() == pytest.approx(np.mean(mrr), rel=1e-6)
    every = [load_ensemble(tmp_path / "both" / f"seed-{seed}") for seed in (0, 1)]
    models = [member.model for one in every for member in one.members]
    shares = [weight / 2 for one in every for weight in one.weights]
    together = evaluate_pooled(models, shares, graph, triples, known).metrics.mrr
    assert values["test_otherwise"][POOLED]["mrr"] == {"mean": pytest.approx(together), "std": None}
    assert (1 / read_ranks(tmp_path / "both" / "final" / RANKS_FILE, POOLED)[0]).mean() == pytest.approx(together, rel=1e-6)
    reached = values["winner_validation_mrr"]["by_seed"]

    def validation(one: Ensemble) -> float:
        return rank_split(one, graph, "valid", graph.valid, graph.known())[OWN].metrics.mrr

    assert reached == [validation(one) for one in every]
    best = load_ensemble(tmp_path / "both" / "best")
    assert validation(best) == max(reached)
    alone = evaluate(best.members[0].model, graph, graph.valid, graph.known()).metrics.mrr
    assert 0 < alone <= 1 and open_predictor(tmp_path / "both" / "best").tails(*graph_example(graph), k=1)

    assert command(monkeypatch, "add", tmp_path / "both", "--row", "both", "--data-set", "tiny") == 0
    (row,) = reference.load_reference(tmp_path / "reference.json")
    assert row == summary_row(values, "tiny", "both") | {"against": []}
    assert "benchmarks.reference pool" in row["command"]
    assert command(monkeypatch, "pool", tmp_path / "both", *studies) == 2  # its test figures are known


def graph_example(graph: object) -> tuple[str, str]:
    first = graph.valid[0]  # type: ignore[attr-defined]
    return graph.entities.names[first[0]], graph.relations.names[first[1]]  # type: ignore[attr-defined]


def test_what_is_no_ensemble_is_refused(
    studies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert command(monkeypatch, "pool", tmp_path / "out", *arguments) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    assert "an ensemble needs two or more studies" in refused(studies[0])
    assert "not the summary of a study" in refused(studies[0], tmp_path / "graph")
    summary = studies[1] / "summary.json"
    summary.write_text(json.dumps({"seeds": [0], "test_opened": 2}))
    assert "opened for several winners" in refused(*studies)
    summary.write_text(json.dumps({"seeds": [7], "test_opened": 1}))
    assert "has 0 checkpoints of seed 7" in refused(*studies)
    summary.write_text(json.dumps({"seeds": [2], "test_opened": 1}))
    assert "no seed in common" in refused(*studies)
