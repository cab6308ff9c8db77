"""The contract of fusion operators (`imf_core.testing`) for each of the product's, and what is known of these alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config, ModelConfig
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.build import build_fusion
from imf_core.model.fusion.joined import GatedFusion, StackedFusion
from imf_core.model.fusion.low_rank import TuckerFusion
from imf_core.parts.registry import KINDS
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.testing import FusionContract
from imf_core.testing.fusion import D, drawn
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model, fit

OPERATORS = tuple(KINDS["fusion"].built_in)
# Of these the views' order alone distinguishes them, or nothing does: they have tests of their own.
UNORDERED = ("multiscale", "cross_attention", "hub", "modular")
every_operator = pytest.mark.parametrize("kind", OPERATORS)


def made(kind: str, views: int = 3, dropout: float = 0.0, **settings: object) -> Fusion:
    """An operator of a few numbers, in float64."""
    torch.manual_seed(0)
    small = {"fusion_widths": (5,), "meta_dim": 3, "meta_hidden": 6, "cp_rank": 4, **settings}
    config = ModelConfig(fusion=kind, dim=D, dropout_fusion=dropout, **small)
    return build_fusion(config, D, views).double()


def reordered(operator: Fusion, order: Sequence[int]) -> Fusion:
    """The same operator with what belongs to each view moved to the view's new place."""
    blocks = torch.arange(len(order) * D).view(len(order), D)[list(order)].flatten()
    if isinstance(operator, (TuckerFusion, GatedFusion)):
        layers = operator.factors if isinstance(operator, TuckerFusion) else operator.values
        states = [{name: part.clone() for name, part in layer.state_dict().items()} for layer in layers]
        for layer, source in zip(layers, order, strict=True):
            layer.load_state_dict(states[source])
    with torch.no_grad():
        if isinstance(operator, GatedFusion):
            operator.gates.weight.copy_(operator.gates.weight[blocks][:, blocks])
            operator.gates.bias.copy_(operator.gates.bias[blocks])
        if isinstance(operator, StackedFusion):
            first = operator.stack.layers[0]
            first.static.copy_(first.static[blocks])
            if hasattr(first, "tensors"):
                first.tensors.copy_(first.tensors[:, blocks])
            if hasattr(first, "into"):
                first.into.copy_(first.into[blocks])
            if operator.stack.meta is not None:
                squeeze = operator.stack.meta[0]
                squeeze.weight.copy_(squeeze.weight[:, blocks])
    return operator


globals().update({
    f"Test_{kind}": type(f"Test_{kind}", (FusionContract,), {"__module__": __name__, "name": kind}) for kind in OPERATORS
})


@pytest.mark.parametrize("kind", [kind for kind in OPERATORS if kind not in UNORDERED])
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_the_order_of_the_views_means_nothing(kind: str, order: tuple[int, ...]) -> None:
    views, masks = drawn(), [None, torch.arange(6) % 3 != 1, torch.arange(6) % 2 == 0]
    moved = reordered(made(kind), order)([views[place] for place in order], [masks[place] for place in order])
    torch.testing.assert_close(moved, made(kind)(views, masks))
    assert not torch.allclose(made(kind)(views), made(kind)([views[place] for place in order]))  # the weights do differ


@every_operator
@pytest.mark.parametrize(("negatives", "precision"), [(None, "fp32"), (8, "bf16")])
def test_a_checkpoint_answers_as_the_model_did(
    kind: str, negatives: int | None, precision: str, toy: LinkData, tmp_path: Path
) -> None:
    config = Config().updated({
        "model.fusion": kind, "model.dim": 8, "model.relation_dim": 6, "model.missing": "neutral", "train.batch_size": 32,
        "train.max_epochs": 2, "train.num_negatives": negatives, "train.precision": precision, "model.cp_rank": 3,
        "model.fusion_widths": [7], "model.meta_dim": 2, "model.meta_hidden": 5,
    })
    model = build_model(config, toy)
    before = {name: part.clone() for name, part in model.named_parameters() if name.startswith("fuse_")}
    assert len(fit(model, toy, config).curve) == 2
    assert all(not torch.equal(part, before[name]) for name, part in model.named_parameters() if name in before)
    save_checkpoint(tmp_path / "best", model, config, toy.graph, {})
    answers = Predictor.load(tmp_path / "best").tails("entity 4", "next", k=30, known="mark")
    with torch.no_grad():
        model.eval()
        tables = model.tables()
        contexts = model.contexts(tables, torch.tensor([4]), torch.tensor([0]))
        fused = model.branch_scores(tables, contexts)[-1][0]
    scores = {answer.entity: answer.branch_scores["fused"] for answer in answers}
    found = torch.tensor([scores[name] for name in toy.graph.entities.names])
    torch.testing.assert_close(found, fused.softmax(dim=0), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def bundled() -> LinkData:
    return prepare(Config().data)


@every_operator
def test_training_lowers_the_fused_loss_on_the_bundled_data(kind: str, bundled: LinkData) -> None:
    """Pictures are missing for some of the characters; a few steps on the same queries, nothing dropped."""
    config = Config().updated({
        "model.fusion": kind, "model.dim": 16, "model.relation_dim": 8, "model.missing": "neutral", "model.fusion_widths": [16],
        **{f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")},
    })
    torch.manual_seed(0)
    model = build_model(config, bundled)
    assert any(model.mask(name) is not None for name in model.modality_names)
    batch = next(iter(TrainingQueries(bundled.graph).epoch(256, 0, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        parts = model(batch.heads, batch.relations, batch.positives, config.train)
        parts["total"].backward()
        optimizer.step()
        losses.append(float(parts["fused"].detach()))
    assert losses[0] > 8.5  # about the logarithm of 6,015 entities: nothing is known
    assert losses[-1] < 0.8 * losses[0]
