"""Modalities that are added one after another to a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import imf_core as imf
from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import app
from imf_core.config import Config
from imf_core.data.features.feature_files import Features, save_features
from imf_core.errors import ConfigError, DataError
from imf_core.model.imf import Imf
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import FitResult
from imf_core.train.sequential import add_modalities, take_weights
from tests.support.tiny_checkpoint import tiny_graph


def settings(**more: object) -> Config:
    return Config().updated({
        "model.dim": 8, "model.relation_dim": 6, "train.batch_size": 32, "train.max_epochs": 3, "train.patience": 2,
        "model.fusion": "modular", "model.modalities": ["image"],
        **{name.replace("__", "."): value for name, value in more.items()},
    })


def shortened(found: FitResult, mrr: float) -> FitResult:
    return replace(found, best_mrr=mrr)


@pytest.mark.parametrize("fusion", ["modular", "tucker", "multiscale", "none"])
@pytest.mark.parametrize("decision", ["learned", "relation"])
def test_a_larger_model_takes_all_weights(toy: LinkData, fusion: str, decision: str) -> None:
    config = settings(model__fusion=fusion, model__decision=decision)
    model = build_model(config, toy)
    fit(model, toy, config)
    larger = build_model(config.updated({"model.modalities": ["image", "text"], "train.seed": 9}), toy)
    take_weights(larger, model)
    own, old = larger.state_dict(), model.state_dict()
    for name, tensor in old.items():
        if not name.startswith("decision."):
            assert torch.equal(own[name], tensor), name
    relations = torch.arange(8)
    weights, before = larger.decision.weights(relations), model.decision.weights(relations)
    places = [larger.branches.index(branch) for branch in model.branches]
    torch.testing.assert_close(weights[:, places] / weights[:, places].sum(dim=1, keepdim=True), before)
    assert (weights[:, larger.branches.index("text")] < 0.1).all()


def test_structure_alone_takes_its_first_modality(toy: LinkData) -> None:
    config = settings(model__modalities=[])
    model = build_model(config, toy)
    larger = build_model(config.updated({"model.modalities": ["text"], "train.seed": 1}), toy)
    take_weights(larger, model)
    assert torch.equal(larger.structure, model.structure) and larger.decision.logits is not None
    assert larger.decision.logits[0, 0] == 0 and (larger.decision.logits[0, 1:] == -3).all()


@pytest.mark.parametrize("fusion", ["concat", "gated", "hub", "cross_attention"])
def test_an_operator_that_cannot_take_one_more_says_so(toy: LinkData, fusion: str) -> None:
    config = settings(model__fusion=fusion)
    larger = build_model(config.updated({"model.modalities": ["image", "text"]}), toy)
    with pytest.raises(ConfigError, match=rf"model\.fusion={fusion} cannot take a modality later") as refused:
        take_weights(larger, build_model(config, toy))
    assert "modular" in refused.value.remedy


def test_what_helps_is_kept_and_the_next_one_builds_on_it(toy: LinkData) -> None:
    """The trainings are stand-ins that gain, lose, and gain."""
    others = (replace(toy.modalities[1], name=name) for name in ("more", "last"))
    data = LinkData(toy.graph, (*toy.modalities, *others))
    config, gains, trained = settings(), {"text": 0.4, "more": 0.3, "last": 0.5}, list[tuple[str, ...]]()

    def train_one(model: Imf, its_config: Config, report: object) -> FitResult:
        assert tuple(its_config.model.modalities) == model.modality_names
        trained.append(model.modality_names)
        return shortened(fit(model, data, its_config.updated({"train.max_epochs": 1})), gains[model.modality_names[-1]])

    model = build_model(config, data)
    done = add_modalities(model, config, data, ["text", "more", "last"], 0.35, train_one)
    assert trained == [("image", "text"), ("image", "text", "more"), ("image", "text", "last")]
    assert [(item.before, item.after, item.kept) for item in done.additions] == [
        (0.35, 0.4, True), (0.4, 0.3, False), (0.4, 0.5, True)
    ]
    assert done.model.modality_names == done.config.model.modalities == ("image", "text", "last")
    assert done.result is not None and done.result.best_mrr == 0.5
    assert done.additions[1].describe().endswith("left out")


def test_a_modality_that_does_not_help_stops_early(toy: LinkData) -> None:
    """Against an MRR that nothing beats its training ends at the first evaluations, not at max_epochs."""
    config, epochs = settings(train__max_epochs=40, train__patience=2), list[int]()

    def train_one(model: Imf, its_config: Config, report: object) -> FitResult:
        def each(found: object) -> None:
            epochs.append(found.epoch)  # type: ignore[attr-defined]
            report(found)  # type: ignore[operator]

        return fit(model, toy, its_config, each)

    model = build_model(config, toy)
    done = add_modalities(model, config, toy, ["text"], 1.0, train_one)
    assert epochs == [1, 2] and done.additions[0].epochs == 2
    assert done.model is model and done.config == config and done.result is None


def test_what_cannot_be_added_is_refused_before_the_work(toy: LinkData) -> None:
    config = settings()
    model = build_model(config, toy)
    for order, kind, words in (
        (["image"], ConfigError, "image is there already"), (["text", "text"], ConfigError, "text is there already"),
        (["text", "sound"], DataError, "'sound' is not there"),
    ):
        with pytest.raises(kind, match=words):
            add_modalities(model, config, toy, order, 0.5, lambda *given: pytest.fail("trained"))


def test_in_python_modalities_come_in_order(toy: LinkData) -> None:
    flat = {**settings().flat(), "model.modalities": None, "train.modality_order": ["text", "image"], "train.max_epochs": 2}
    chosen = {name: value for name, value in flat.items() if name.startswith(("model.", "train."))}
    told = list[str]()
    model = imf.train(toy, chosen, say=told.append)
    additions = model.metrics["additions"]
    assert [item["modality"] for item in additions] == ["text", "image"]
    assert model.model.modality_names == tuple(item["modality"] for item in additions if item["kept"])
    assert additions[0]["after"] == additions[1]["before"] or not additions[0]["kept"]
    assert sum("without" in line for line in told) == 2
    best = model.metrics["validation"]["mrr"]
    assert best >= max(item["before"] for item in additions) - 1e-9
    with pytest.raises(ConfigError, match="modality_order names 'sound'"):
        imf.train(toy, {**chosen, "train.modality_order": ["sound"]})


def test_the_search_refuses_the_order(toy: LinkData) -> None:
    from imf_core.tasks.link import LINK

    with pytest.raises(ConfigError, match=r"train\.modality_order is for imf train"):
        LINK.read(Config().updated({"train.modality_order": ["text"]}), strict=False)


def test_the_command_adds_to_a_checkpoint(tmp_path: Path) -> None:
    """Features that give each entity away must help; a modality of nothing need not."""
    graph = tiny_graph(tmp_path / "graph")
    short = ["--set", "train.max_epochs=3", "--set", "model.dim=8", "--set", "model.relation_dim=6"]
    run = CliRunner().invoke
    first = ["train", str(tmp_path / "first"), "--data", str(graph), *short]
    first += ["--set", "model.fusion=modular", "--set", "model.modalities=[]"]
    assert run(app, first, catch_exceptions=False).exit_code == 0
    names = imf.read_graph(str(graph)).entities.names
    rows = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    (graph / "modalities").mkdir(exist_ok=True)
    save_features(graph / "modalities" / "late.safetensors", Features(names, rows))
    added = ["train", str(tmp_path / "second"), "--from", str(tmp_path / "first"), "--add-modality", "late"]
    done = run(app, added)
    if done.exit_code == 0:
        second = load_checkpoint(tmp_path / "second")
        assert second.model.modality_names == ("late",) and second.metrics["additions"][0]["kept"]
    else:
        assert isinstance(done.exception, ConfigError) and "none of the modalities helps" in done.exception.problem
    with pytest.raises(ConfigError, match="no trained model to add a modality to"):
        run(app, ["train", str(tmp_path / "x"), "--data", str(graph), "--add-modality", "late"], catch_exceptions=False)
