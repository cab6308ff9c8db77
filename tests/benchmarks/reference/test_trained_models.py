"""Models of `imf train`, one a seed, as a finished study: tested once, added as a row, pooled with others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reference import reference
from benchmarks.reference import trained_models as trained
from benchmarks.reference.reference_row import paired
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.data.graph.graph import open_split
from imf_core.evaluate.pooled import evaluate_pooled
from imf_core.evaluate.ranking import evaluate
from imf_core.evaluate.test_once import POOLED, RANKS_FILE, read_ranks
from imf_core.prepare.link_data import graph_of
from tests.support.reference_command import command
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return tiny_graph(tmp_path / "graph")


def test_seeds_are_tested_once_and_are_a_row_and_a_member(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# Results\n\n<!-- rows -->\n<!-- /rows -->\n")
    seeds = [tiny_checkpoint(graph, tmp_path / f"s{seed}", seed=seed, model__dim=8) for seed in (1, 0)]
    opened = []
    ask = trained.open_split
    monkeypatch.setattr(trained, "open_split", lambda *given: opened.append(given[1]) or ask(*given))
    assert command(monkeypatch, "trained", tmp_path / "both", *seeds) == 0
    assert opened == ["test"]

    values = json.loads((tmp_path / "both" / "summary.json").read_text())
    data = graph_of(load_checkpoint(seeds[0]).config.data)
    triples, known = open_split(data, "test")
    models = [load_checkpoint(tmp_path / f"s{seed}").model for seed in (0, 1)]
    mrr = [evaluate(model, data, triples, known).metrics.mrr for model in models]
    reached = [evaluate(model, data, data.valid, data.known()).metrics.mrr for model in models]
    assert (values["seeds"], values["test_opened"]) == ([0, 1], 1)
    assert values["test"]["mrr"] == {"mean": pytest.approx(np.mean(mrr)), "std": pytest.approx(np.std(mrr, ddof=1))}
    assert values["winner_validation_mrr"]["by_seed"] == pytest.approx(reached)
    assert values["winner"]["params"]["model.dim"] == 8 and "train.seed" not in values["winner"]["params"]
    together = evaluate_pooled(models, [1.0, 1.0], data, triples, known).metrics.mrr
    assert values["test_otherwise"][POOLED]["mrr"] == {"mean": pytest.approx(together), "std": None}
    assert "structure alone" in values["test_otherwise"]
    ranks, _ = read_ranks(tmp_path / "both" / "final" / RANKS_FILE)
    assert (1 / ranks).mean() == pytest.approx(np.mean(mrr), rel=1e-6)
    best = load_checkpoint(tmp_path / "both" / "best")
    assert best.config.train.seed == int(np.argmax(reached))

    assert command(monkeypatch, "add", tmp_path / "both", "--row", "two", "--data-set", "tiny") == 0
    (row,) = reference.load_reference(tmp_path / "reference.json")
    assert row["cost"] == {"parameters": models[0].num_parameters, "minutes": None, "peak_gb": None}
    assert (row["mrr_mean"], row["seeds"]) == (pytest.approx(np.mean(mrr)), [0, 1])
    wide = [tiny_checkpoint(graph, tmp_path / f"w{seed}", seed=seed, model__dim=16) for seed in (0, 1)]
    assert command(monkeypatch, "trained", tmp_path / "wide", *wide) == 0
    assert command(monkeypatch, "pool", tmp_path / "pool", tmp_path / "both", tmp_path / "wide") == 0
    assert paired(tmp_path / "pool", "own", tmp_path / "both")["p"] <= 1


def test_what_training_cost_stands_in_the_row(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [{"seconds": seconds, "peak_bytes": peak} for seconds, peak in ((60.0, 2e9), (120.0, 1e9), (7200.0, 1e9))]
    seeds = [
        tiny_checkpoint(graph, tmp_path / str(n), seed=n, metrics={"validation": {"mrr": 0.1}, "cost": cost})
        for n, cost in enumerate(costs)
    ]
    assert command(monkeypatch, "trained", tmp_path / "both", *seeds) == 0
    cost = json.loads((tmp_path / "both" / "summary.json").read_text())["cost"]
    assert (cost["minutes"], cost["peak_gb"]) == (2.0, 2.0)


def test_what_belongs_not_together_is_refused_before_test_is_read(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trained, "open_split", lambda *_: pytest.fail("test was read"))

    def refused(*arguments: Path) -> str:
        assert command(monkeypatch, "trained", tmp_path / "out", *arguments) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().err.split())

    first = tiny_checkpoint(graph, tmp_path / "first")
    assert "have the same seed" in refused(first, tiny_checkpoint(graph, tmp_path / "again"))
    assert "differ in train.lr" in refused(first, tiny_checkpoint(graph, tmp_path / "faster", seed=1, train__lr=0.1))
    taught = tiny_checkpoint(graph, tmp_path / "taught", seed=1, metrics={"validation": {"mrr": 0.1}, "teacher": "x"})
    assert "differ in a teacher" in refused(first, taught)
    assert "its test results are known" in refused(tiny_checkpoint(graph, tmp_path / "won", metrics={"test": {}}))
    assert "has no validation MRR" in refused(tiny_checkpoint(graph, tmp_path / "bare", metrics={}))
    (tmp_path / "out").mkdir()
    assert command(monkeypatch, "trained", tmp_path / "out", first) == 2
