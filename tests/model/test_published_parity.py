"""The `published` preset gives the numbers that the published implementation gave (recorded, evaluation mode)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from imf_core.config import published
from imf_core.data.features.modality import Modality
from imf_core.model.imf import Imf
from imf_core.model.losses.contrastive import contrastive_loss
from imf_core.model.losses.dense import binary_loss
from imf_core.model.losses.target import Positives

FIXTURE = Path(__file__).parents[1] / "fixtures" / "published_imf.safetensors"
BRANCHES = {
    "structure": ("TuckER_S", ""),
    "image": ("TuckER_I", "img_"),
    "text": ("TuckER_D", "txt_"),
    "fused": ("TuckER_MM", ""),
}
RECORDED = {"structure": "structure", "image": "visual", "text": "textual", "fused": "multimodal"}


def load_published(path: Path) -> tuple[Imf, dict[str, torch.Tensor]]:
    recorded = load_file(path)
    weights = {name.removeprefix("weights."): tensor for name, tensor in recorded.items() if name.startswith("weights.")}
    entities, width = weights["entity_embeddings.weight"].shape
    both, narrow = weights["relation_embeddings.weight"].shape
    config = published().updated({"model.dim": width, "model.relation_dim": narrow})
    features = [Modality(name, np.ones((entities, 1), np.float32), np.ones(entities, bool)) for name in ("image", "text")]
    model = Imf(config.model, entities, both // 2, features, config.train.loss).eval()
    state = model.state_dict()
    for branch, (tucker, prefix) in BRANCHES.items():
        state[f"scorers.{branch}.core"] = weights[f"{tucker}.W"]
        for ours, theirs in (("norm_head", "bn0"), ("norm_context", "bn1")):
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                state[f"scorers.{branch}.{ours}.{part}"] = weights[f"{tucker}.{theirs}.{part}"]
        if branch != "fused":
            state[f"relations.{branch}"] = weights[f"{prefix}relation_embeddings.weight"]
    state["structure"] = weights["entity_embeddings.weight"]
    for name, prefix in (("image", "img_"), ("text", "txt_")):
        state[f"features.{name}.table"] = weights[f"{prefix}entity_embeddings.weight"]
    for ours, theirs in (("fuse_entities", "Mutan_MM_E"), ("fuse_relations", "Mutan_MM_R")):
        for view in range(3):
            for part in ("weight", "bias"):
                ranks = [weights[f"{theirs}.modal{view + 1}_layers.{rank}.1.{part}"] for rank in range(2)]
                state[f"{ours}.factors.{view}.{part}"] = torch.cat(ranks)
    model.load_state_dict(state)
    return model, recorded


def check(path: Path) -> None:
    model, recorded = load_published(path)
    heads, relations, labels = recorded["in.heads"], recorded["in.relations"], recorded["in.labels"]
    with torch.no_grad():
        tables = model.tables()
        scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
        rows, tails = labels.nonzero(as_tuple=True)
        positives = Positives(rows, tails, labels.sum(dim=1))
        for branch, score in zip(model.branches, scores, strict=True):
            torch.testing.assert_close(score.sigmoid(), recorded[f"out.probabilities.{RECORDED[branch]}"], rtol=1e-5, atol=1e-5)
        loss = sum(binary_loss(score, positives, 0.1) for score in scores)
        torch.testing.assert_close(loss.reshape(1), recorded["out.loss_sum_of_four_bce_smoothed"], rtol=1e-5, atol=1e-5)
        decided = model.combine(scores, [], model.decision_weights(heads, relations))
        mean = torch.stack([recorded[f"out.probabilities.{name}"] for name in RECORDED.values()]).mean(dim=0)
        torch.testing.assert_close(decided, mean, rtol=1e-5, atol=1e-5)


def test_recorded_probabilities_loss_and_decision() -> None:
    check(FIXTURE)


def test_fixture_is_the_shared_recording(shared_dir: Path) -> None:
    check(shared_dir / "parity" / "imf.safetensors")


def test_total_of_a_training_step_is_the_sum_of_the_branch_losses() -> None:
    model, recorded = load_published(FIXTURE)
    labels = recorded["in.labels"]
    rows, tails = labels.nonzero(as_tuple=True)
    with torch.no_grad():
        parts = model(
            recorded["in.heads"], recorded["in.relations"], Positives(rows, tails, labels.sum(dim=1)), published().train
        )
    assert set(parts) == {"total", "structure", "image", "text", "fused"}  # no joint and no contrastive term
    torch.testing.assert_close(parts["total"].reshape(1), recorded["out.loss_sum_of_four_bce_smoothed"], rtol=1e-5, atol=1e-5)


def test_published_contrastive_value_is_near_inert_and_ours_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    view = torch.randn(64, 16, generator=generator)
    other = torch.randn(64, 16, generator=generator)
    aligned, unrelated = contrastive_loss(view, view, 0.1), contrastive_loss(view, other, 0.1)
    assert aligned < 0.5 < unrelated
    value = float(load_file(FIXTURE)["out.reference_contrastive_loss"])
    assert value == pytest.approx(0.6858, abs=1e-4)  # ln 2 = 0.6931 would be "no information"


def test_fused_activation_is_relu_on_each_factor() -> None:
    model, _ = load_published(FIXTURE)
    factor = model.fuse_entities.factors[0]
    view = model.structure
    product = torch.ones(len(view), 2 * model.config.dim)
    for layer, table in zip(model.fuse_entities.factors, (view, *(part() for part in model.features.values())), strict=True):
        product = product * functional.relu(table @ layer.weight.T + layer.bias)
    expected = product.view(len(view), 2, -1).sum(dim=1)
    torch.testing.assert_close(model.tables().entities["fused"], expected)
    assert factor.weight.shape == (2 * model.config.dim, model.config.dim)
