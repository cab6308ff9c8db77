"""One validation figure: what a trial records, `imf evaluate`, `imf compare` and `imf ensemble` say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_checkpoint import SETTINGS, tiny_graph
from typer.testing import CliRunner

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.cli import app
from imf_core.config import Config
from imf_core.evaluate.calibrate import calibrate, folds, rank_by_fold
from imf_core.evaluate.redecide import COMMON, RELATION, Redecided, fold_decisions, redecide
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.runtime import MemoryBudget
from imf_core.tasks.link import LINK
from imf_core.train.fit import build_model, fit

MEMORY = MemoryBudget(2**27)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LinkData:
    return prepare(Config().updated({"data.path": str(tiny_graph(tmp_path_factory.mktemp("one") / "graph"))}).data)


def trained(data: LinkData, folder: Path, **settings: Any) -> float:
    """Train as a trial does, keep the model, and give the figure that the trial records."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = Config().updated({**SETTINGS, "data.path": data.graph.source, "train.max_epochs": 1, **given})
    model = build_model(config, data)
    result = fit(model, data, config)
    facts = {"validation": result.metrics.as_dict(), "fingerprint": data.graph.fingerprint}
    save_checkpoint(folder, model, config, data.graph, facts)
    return result.best_mrr


def said(command: str, *arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [command, *map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("mode", ["learned", "relation"])
def test_trial_evaluate_and_compare_agree(data: LinkData, tmp_path: Path, mode: str) -> None:
    recorded = trained(data, tmp_path / "a", model__decision=mode)
    other = trained(data, tmp_path / "b", model__decision=mode, train__seed=1)
    found = said("evaluate", tmp_path / "a")
    assert found["mrr"] == pytest.approx(recorded, abs=1e-6)
    assert found["slices"] == load_checkpoint(tmp_path / "a").metrics["validation"]["slices"]
    assert said("evaluate", tmp_path / "a", "--decisions")["decisions"][mode]["mrr"] == pytest.approx(recorded, abs=1e-6)
    compared = said("compare", tmp_path / "a", tmp_path / "b")
    assert compared["mrr"] == pytest.approx([recorded, other], abs=1e-6)
    pooled = said("ensemble", tmp_path / "pool", tmp_path / "a", tmp_path / "b")
    assert {Path(one["folder"]).name: one["mrr"] for one in pooled["members"]}.items() <= {
        "a": pytest.approx(recorded, abs=1e-6), "b": pytest.approx(other, abs=1e-6),
    }.items()
    assert pooled["best_single_mrr"] == pytest.approx(max(recorded, other), abs=1e-6)
    assert said("evaluate", tmp_path / "pool")["mrr"] == pytest.approx(pooled["validation"]["mrr"], abs=1e-6)


@pytest.mark.parametrize("kind", [COMMON, RELATION])
def test_weights_that_were_tuned_again_too(data: LinkData, tmp_path: Path, kind: str) -> None:
    """Finalising records the held-back figure of the kind it keeps; the checkpoint, its card and `imf evaluate` have it too."""
    trained(data, tmp_path / "a", model__decision="learned")
    found = redecide(load_checkpoint(tmp_path / "a").model, data.graph, MEMORY)
    assert found is not None
    loaded = load_checkpoint(tmp_path / "a")
    chosen = Redecided(kind, found.mrr, found.metrics, found.trained, found.tuned, found.kinds[kind], found.kinds)
    save_checkpoint(
        tmp_path / "a", loaded.model, chosen.apply(loaded.model, loaded.config), data.graph,
        {**loaded.metrics, "decision": chosen.as_dict()},
    )
    assert said("evaluate", tmp_path / "a")["mrr"] == pytest.approx(found.mrr[kind], abs=1e-6)


def test_finalising_stores_the_figure_that_it_reports(data: LinkData, tmp_path: Path) -> None:
    recorded = trained(data, tmp_path / "a")
    refined = LINK.refine(tmp_path / "a", Config(), data, recorded)
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.metrics["validation"]["mrr"] == pytest.approx(refined.mrr, abs=1e-9)
    assert said("evaluate", tmp_path / "a")["mrr"] == pytest.approx(refined.mrr, abs=1e-6)
    ranks = LINK.validation_ranks(tmp_path / "a", loaded.config, data)
    assert ranks is not None and (1 / ranks).mean() == pytest.approx(refined.mrr, abs=1e-6)


def test_no_triple_is_ranked_with_weights_that_saw_it(data: LinkData) -> None:
    """Weights for fold 0 depend on fold 1 alone: neither fold 0 nor what the model's own weights were before moves them."""
    model = build_model(Config().updated({**SETTINGS, "model.decision": "learned"}), data)
    graph, fold_of = data.graph, folds(data.graph.valid)
    both = calibrate(model, graph, graph.valid, graph.known())
    one = calibrate(model, graph, graph.valid[fold_of == 1], graph.known())
    assert both is not None and one is not None and model.decision.logits is not None
    assert torch.allclose(both.crosswise[0], one.crosswise[0], atol=1e-5)
    assert not one.crosswise[1].any()  # nobody else was held back: the plain mean
    model.decision.logits.fill_(3.0)
    model.decision.logits[0, 0] = -3.0
    again = calibrate(model, graph, graph.valid, graph.known())
    assert again is not None
    assert all(torch.equal(left, right) for left, right in zip(both.crosswise, again.crosswise, strict=True))


def test_each_fold_has_its_decision(data: LinkData) -> None:
    model = build_model(Config().updated({**SETTINGS, "model.decision": "learned"}), data)
    graph = data.graph
    pair = fold_decisions(model, graph, {})
    both = rank_by_fold(model, graph, graph.valid, graph.known(), [{"": one} for one in pair])[""]
    fold_of = folds(graph.valid)
    for fold, decision in enumerate(pair):
        alone = rank_by_fold(model, graph, graph.valid, graph.known(), [{"": decision}] * 2)[""]
        assert np.array_equal(both.tail_ranks[fold_of == fold], alone.tail_ranks[fold_of == fold])
