"""The contract of a fusion operator.

Shapes: `N` nodes, `M` views, `d` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imf_core.model.fusion import base
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.build import build_fusion, fusion_size
from imf_core.testing.base import ModelPartContract, toy
from imf_core.train.fit import build_model

D = 4
_FEW = {"model__fusion_widths": (5,), "model__meta_dim": 3, "model__meta_hidden": 6, "model__cp_rank": 4}


def drawn(views: int = 3, nodes: int = 6, seed: int = 1) -> list[Tensor]:
    """M views (N, d), float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(nodes, D, generator=generator, dtype=torch.float64) for _ in range(views)]


def results(operator: Fusion, views: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
    """Fused rows, and the gradients of an uneven sum of them by views and parameters."""
    leaves = [view.clone().requires_grad_() for view in views]
    fused = operator(leaves, masks)
    towards = torch.linspace(-1, 2, fused.numel(), dtype=fused.dtype).view_as(fused)
    return [fused.detach(), *torch.autograd.grad((fused * towards).sum(), [*leaves, *operator.parameters()])]


class FusionContract(ModelPartContract):
    """An operator: a view that a node lacks has no influence, and no node sees another one."""

    kind, chosen_by = "fusion", "model.fusion"

    def made(self, views: int = 3, dropout: float = 0.0, **changes: Any) -> Fusion:
        """An operator of a few numbers, in float64."""
        torch.manual_seed(0)
        config = self.config(**{**_FEW, "model__dim": D, "model__dropout_fusion": dropout, **changes})
        return build_fusion(config.model, D, views).double()

    def test_any_number_of_views_and_nodes(self) -> None:
        for views in (1, 2, 4):
            for nodes in (0, 1, 7):
                fused = self.made(views)(drawn(views, nodes))
                assert fused.shape == (nodes, D) and fused.dtype == torch.float64
                assert torch.isfinite(fused).all()

    def test_another_number_of_views_or_masks_is_refused(self) -> None:
        for views, masks, words in ((drawn(2), None, "2 views"), ([], None, "0 views"), (drawn(3), [None], "1 masks")):
            refused = ""
            try:
                self.made()(views, masks)
            except ValueError as error:
                refused = str(error)
            assert f"{words} to fuse, made for 3" in refused, "override `fuse`, not `forward`"

    def test_a_view_that_a_node_lacks_has_no_influence(self) -> None:
        """Neither on the fused row nor on any gradient, whatever stands in its place."""
        has = torch.tensor([True, False, True, True, False, True])
        first, other = drawn(), drawn()
        other[1] = torch.where(has[:, None], other[1], 1e3 * drawn(seed=7)[0])
        found, expected = (results(self.made(), views, [None, has, None]) for views in (first, other))
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=0)
        assert not found[2][~has].any()  # the gradient that such a row gets
        whole = self.made()(other)
        torch.testing.assert_close(found[0][has], whole[has])
        assert not torch.isclose(found[0][~has], whole[~has]).all(dim=1).any()

    def test_a_mask_of_everyone_is_no_mask(self) -> None:
        everyone = torch.ones(6, dtype=torch.bool)
        both = results(self.made(), drawn(), [everyone] * 3), results(self.made(), drawn())
        for left, right in zip(*both, strict=True):
            torch.testing.assert_close(left, right)

    def test_a_node_without_any_view_is_finite_and_has_no_gradient(self) -> None:
        nobody = torch.zeros(6, dtype=torch.bool)
        fused, *gradients = results(self.made(), drawn(), [nobody] * 3)
        assert torch.isfinite(fused).all() and (fused == fused[:1]).all()  # nothing tells the nodes apart
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        assert not any(gradient.any() for gradient in gradients[:3])

    def test_no_node_sees_its_neighbours(self) -> None:
        views, has = drawn(nodes=9), torch.arange(9) % 4 != 2
        whole = self.made()(views, [None, has, None])
        for row in range(9):
            alone = self.made()([view[row : row + 1] for view in views], [None, has[row : row + 1], None])
            torch.testing.assert_close(alone, whole[row : row + 1])
        turned = torch.randperm(9, generator=torch.Generator().manual_seed(3))
        torch.testing.assert_close(self.made()([view[turned] for view in views], [None, has[turned], None]), whole[turned])

    def test_gradients_are_those_of_finite_differences(self) -> None:
        """In float64, for views and parameters, with and without hidden layers."""
        for widths in ((), (5, 3)):
            operator = self.made(model__fusion_widths=widths)
            state = {name: part.detach().requires_grad_() for name, part in operator.named_parameters()}
            views, has = [view.requires_grad_() for view in drawn(nodes=3)], torch.tensor([True, False, True])

            def fuse(
                *tensors: Tensor, operator: Fusion = operator, names: tuple[str, ...] = tuple(state), has: Tensor = has
            ) -> Tensor:
                changed = dict(zip(names, tensors[3:], strict=True))
                fused: Tensor = torch.func.functional_call(operator, changed, (list(tensors[:3]), [None, has, None]))
                return fused

            assert torch.autograd.gradcheck(fuse, (*views, *state.values()))

    def test_every_parameter_learns(self) -> None:
        fused, *gradients = results(self.made(model__fusion_widths=(5, 3)), drawn(nodes=30))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)
        assert fused.std(dim=0).min() > 0.01  # no node is like the others at the start

    def test_rows_a_few_at_a_time_give_the_same(self) -> None:
        """Results and gradients do not depend on how many nodes are fused at a time."""
        views, has = drawn(nodes=150), torch.arange(150) % 3 != 1
        whole = results(self.made(), views, [None, has, None])
        usual = base._ROWS_TIMES_WIDTH
        base._ROWS_TIMES_WIDTH = 1  # 64 rows
        try:
            for left, right in zip(results(self.made(), views, [None, has, None]), whole, strict=True):
                torch.testing.assert_close(left, right)
        finally:
            base._ROWS_TIMES_WIDTH = usual

    def test_dropout_in_training_alone(self) -> None:
        """Training draws anew and sends no gradient to what it dropped; evaluation drops nothing."""
        operator, views = self.made(dropout=0.5), drawn(nodes=40)
        first, second = operator.train()(views), operator(views)
        assert not torch.isclose(first, second).all(dim=1).any()
        operator.eval()
        torch.testing.assert_close(operator(views), self.made()(views))
        torch.manual_seed(5)
        masks = [operator.train().drop.draw(view) for view in views]
        torch.manual_seed(5)
        gradients = results(operator, views)[1:4]
        for gradient, mask in zip(gradients, masks, strict=True):
            assert mask is not None and not gradient[~mask.keep].any() and gradient[mask.keep].any()

    def test_bfloat16_products_are_near_the_exact_ones(self) -> None:
        operator, views = self.made().float(), [view.float() for view in drawn(nodes=50)]
        exact = results(operator, views)
        with torch.autocast("cpu", torch.bfloat16):
            near = results(operator, views)
        assert {tensor.dtype for tensor in near} == {torch.float32}
        for left, right in zip(near, exact, strict=True):
            assert (left - right).norm() < 0.05 * right.norm()

    def test_entities_and_relations_take_the_same_operator(self) -> None:
        config, data = self.config(), toy()
        model = build_model(config, data)
        assert type(model.fuse_entities) is type(model.fuse_relations)
        assert (model.fuse_entities.width, model.fuse_relations.width) == (8, 6)
        assert not hasattr(build_model(config.updated({"model.modalities": []}), data), "fuse_entities")

    def test_its_size_is_known_before_it_is_made(self) -> None:
        for widths in ((), (9, 7)):
            config = self.config(model__fusion_widths=widths, model__fusion_rank=3, model__cp_rank=5).model
            parameters = list(build_fusion(config, 6, 4).named_parameters())
            each = sum(part.numel() for _, part in parameters)
            weights = sum(part.numel() for name, part in parameters if "bias" not in name)
            size = fusion_size(config, 6, 4)
            assert size.parameters in (weights, each) and size.per_node > 0

    def test_it_trains_with_views_that_entities_lack_and_on_sampled_entities(self) -> None:
        for changes in ({"model__missing": "neutral"}, {"train__num_negatives": 8, "train__precision": "bf16"}):
            model = self.trained(self.config(**changes))
            assert torch.isfinite(self.scores(model)).all()
