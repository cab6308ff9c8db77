"""One contract for every fusion operator: what each must hold to, whatever its formula."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config, FusionKind, ModelConfig
from imf_core.model.fusion import base
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.build import build_fusion, fusion_size
from imf_core.model.fusion.joined import GatedFusion, StackedFusion
from imf_core.model.fusion.low_rank import TuckerFusion
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model, fit

OPERATORS = get_args(FusionKind)
D = 4
every_operator = pytest.mark.parametrize("kind", OPERATORS)


def made(kind: str, views: int = 3, dropout: float = 0.0, **settings: object) -> Fusion:
    """An operator of a few numbers, in float64."""
    torch.manual_seed(0)
    small = {"fusion_widths": (5,), "meta_dim": 3, "meta_hidden": 6, "cp_rank": 4, **settings}
    config = ModelConfig(fusion=kind, dim=D, dropout_fusion=dropout, **small)
    return build_fusion(config, D, views).double()


def drawn(views: int = 3, nodes: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(nodes, D, generator=generator, dtype=torch.float64) for _ in range(views)]


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


def results(operator: Fusion, views: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """Fused rows, and the gradients of an uneven sum of them by views and parameters."""
    leaves = [view.clone().requires_grad_() for view in views]
    fused = operator(leaves, masks)
    towards = torch.linspace(-1, 2, fused.numel(), dtype=fused.dtype).view_as(fused)
    return [fused.detach(), *torch.autograd.grad((fused * towards).sum(), [*leaves, *operator.parameters()])]


@every_operator
@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("nodes", [0, 1, 7])
def test_any_number_of_views_and_nodes(kind: str, views: int, nodes: int) -> None:
    operator = made(kind, views)
    fused = operator(drawn(views, nodes))
    assert fused.shape == (nodes, D) and fused.dtype == torch.float64
    assert torch.isfinite(fused).all()


@every_operator
def test_another_number_of_views_or_masks_is_refused(kind: str) -> None:
    for views, masks, words in ((drawn(2), None, "2 views"), ([], None, "0 views"), (drawn(3), [None], "1 masks")):
        with pytest.raises(ValueError, match=f"{words} to fuse, made for 3"):
            made(kind)(views, masks)


@every_operator
def test_a_view_that_a_node_lacks_has_no_influence(kind: str) -> None:
    """Neither on the fused row nor on any gradient, whatever stands in its place."""
    has = torch.tensor([True, False, True, True, False, True])
    first, other = drawn(), drawn()
    other[1] = torch.where(has[:, None], other[1], 1e3 * drawn(seed=7)[0])
    found, expected = (results(made(kind), views, [None, has, None]) for views in (first, other))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert not found[2][~has].any()  # the gradient that such a row gets
    whole = made(kind)(other)
    torch.testing.assert_close(found[0][has], whole[has])
    assert not torch.isclose(found[0][~has], whole[~has]).all(dim=1).any()


@every_operator
def test_a_mask_of_everyone_is_no_mask(kind: str) -> None:
    everyone = torch.ones(6, dtype=torch.bool)
    for left, right in zip(results(made(kind), drawn(), [everyone] * 3), results(made(kind), drawn()), strict=True):
        torch.testing.assert_close(left, right)


@every_operator
def test_a_node_without_any_view_is_finite_and_has_no_gradient(kind: str) -> None:
    nobody = torch.zeros(6, dtype=torch.bool)
    fused, *gradients = results(made(kind), drawn(), [nobody] * 3)
    assert torch.isfinite(fused).all() and (fused == fused[:1]).all()  # nothing tells the nodes apart
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert not any(gradient.any() for gradient in gradients[:3])


@every_operator
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_the_order_of_the_views_means_nothing(kind: str, order: tuple[int, ...]) -> None:
    views, masks = drawn(), [None, torch.arange(6) % 3 != 1, torch.arange(6) % 2 == 0]
    moved = reordered(made(kind), order)([views[place] for place in order], [masks[place] for place in order])
    torch.testing.assert_close(moved, made(kind)(views, masks))
    assert not torch.allclose(made(kind)(views), made(kind)([views[place] for place in order]))  # the weights do differ


@every_operator
def test_no_node_sees_its_neighbours(kind: str) -> None:
    views, has = drawn(nodes=9), torch.arange(9) % 4 != 2
    whole = made(kind)(views, [None, has, None])
    for row in range(9):
        alone = made(kind)([view[row : row + 1] for view in views], [None, has[row : row + 1], None])
        torch.testing.assert_close(alone, whole[row : row + 1])
    turned = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(made(kind)([view[turned] for view in views], [None, has[turned], None]), whole[turned])


@every_operator
@pytest.mark.parametrize("widths", [(), (5, 3)])
def test_gradients_are_those_of_finite_differences(kind: str, widths: tuple[int, ...]) -> None:
    operator = made(kind, fusion_widths=widths)
    state = {name: part.detach().requires_grad_() for name, part in operator.named_parameters()}
    views, has = [view.requires_grad_() for view in drawn(nodes=3)], torch.tensor([True, False, True])

    def fuse(*tensors: Tensor) -> Tensor:
        changed = dict(zip(state, tensors[3:], strict=True))
        fused: Tensor = torch.func.functional_call(operator, changed, (list(tensors[:3]), [None, has, None]))
        return fused

    assert torch.autograd.gradcheck(fuse, (*views, *state.values()))


@every_operator
def test_every_parameter_learns(kind: str) -> None:
    fused, *gradients = results(made(kind, fusion_widths=(5, 3)), drawn(nodes=30))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert fused.std(dim=0).min() > 0.01  # no node is like the others at the start


@every_operator
def test_rows_a_few_at_a_time_give_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views, has = drawn(nodes=150), torch.arange(150) % 3 != 1
    whole = results(made(kind), views, [None, has, None])
    monkeypatch.setattr(base, "_ROWS_TIMES_WIDTH", 1)  # 64 rows
    for left, right in zip(results(made(kind), views, [None, has, None]), whole, strict=True):
        torch.testing.assert_close(left, right)


@every_operator
def test_dropout_in_training_alone(kind: str) -> None:
    operator, views = made(kind, dropout=0.5), drawn(nodes=40)
    first, second = operator.train()(views), operator(views)
    assert not torch.isclose(first, second).all(dim=1).any()
    operator.eval()
    torch.testing.assert_close(operator(views), made(kind)(views))
    torch.manual_seed(5)
    masks = [operator.train().drop.draw(view) for view in views]
    torch.manual_seed(5)
    gradients = results(operator, views)[1:4]
    for gradient, mask in zip(gradients, masks, strict=True):
        assert mask is not None and not gradient[~mask.keep].any() and gradient[mask.keep].any()


@every_operator
def test_bfloat16_products_are_near_the_exact_ones(kind: str) -> None:
    operator, views = made(kind).float(), [view.float() for view in drawn(nodes=50)]
    exact = results(operator, views)
    with torch.autocast("cpu", torch.bfloat16):
        near = results(operator, views)
    assert {tensor.dtype for tensor in near} == {torch.float32}
    for left, right in zip(near, exact, strict=True):
        assert 0 < (left - right).norm() < 0.05 * right.norm()


@every_operator
def test_entities_and_relations_take_the_same_operator(kind: str, toy: LinkData) -> None:
    config = Config().updated({"model.fusion": kind, "model.dim": 8, "model.relation_dim": 6})
    model = build_model(config, toy)
    assert type(model.fuse_entities) is type(model.fuse_relations)
    assert (model.fuse_entities.width, model.fuse_relations.width) == (8, 6)
    assert not hasattr(build_model(config.updated({"model.modalities": []}), toy), "fuse_entities")


@every_operator
@pytest.mark.parametrize("widths", [(), (9, 7)])
def test_its_size_is_known_before_it_is_made(kind: str, widths: tuple[int, ...]) -> None:
    config = ModelConfig(fusion=kind, fusion_widths=widths, fusion_rank=3, cp_rank=5)
    parameters = build_fusion(config, 6, 4).named_parameters()
    assert fusion_size(config, 6, 4).parameters == sum(part.numel() for name, part in parameters if "bias" not in name)


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
