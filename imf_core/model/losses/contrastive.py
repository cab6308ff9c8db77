"""The contrastive constraint: the views of an entity should be closer to each other than to those of other entities.

Shapes: `n` rows of a view, `B` rows that are compared, `d` width, `M` views.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LEAST = -1e30  # similarity of what is no choice: finite, since a softmax over minus infinity alone would be NaN


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between two views of the same entities (model section 4).

    Args:
        first, second: (B, d) vectors of the same B entities in two modalities; row i of both is the positive pair.
        temperature: tau > 0.

    Returns:
        Scalar in nats: ln B for unrelated views, towards 0 for aligned ones.
    """
    similarity = functional.normalize(first.float(), dim=1) @ functional.normalize(second.float(), dim=1).T / temperature
    target = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2


def contrastive_over_pairs(
    views: Sequence[Tensor], masks: Sequence[Tensor | None], nodes: Tensor, temperature: float
) -> Tensor:
    """Mean `contrastive_loss` over the pairs of views, each over the entities that have both; 0 if no pair shares two.

    Args:
        views: M tensors (n, d).
        masks: per view (n,) bool, which entities have it; None where every entity does.
        nodes: (B,) int64, rows of the views to compare.
        temperature: tau > 0.

    Returns:
        Scalar in nats.
    """
    losses = []
    for (first, first_mask), (second, second_mask) in combinations(zip(views, masks, strict=True), 2):
        both = nodes
        for mask in (first_mask, second_mask):
            if mask is not None:
                both = both[mask[both]]
        if len(both) > 1:
            losses.append(contrastive_loss(first[both], second[both], temperature))
    return torch.stack(losses).mean() if losses else views[0].new_zeros(())


def contrastive_over_stack(views: Tensor, nodes: Tensor, pair_weights: Tensor, temperature: float) -> Tensor:
    """As `contrastive_over_pairs`, of fixed shape: all views against all views at once.

    Args:
        views: (V, n, d).
        nodes: (B,) int64, rows of the views to compare; padding repeats one.
        pair_weights: (V, V, B), weight of node i in the cross entropy that picks its row in view w by its row in view v; 0 for
            a view against itself, for padding, and for a node that lacks v or w. All together they sum to 1.
        temperature: tau > 0.

    Returns:
        Scalar in nats.
    """
    rows = functional.normalize(views.index_select(1, nodes).float(), dim=2)
    loss: Tensor = _AllPairs.apply(rows, pair_weights, temperature)
    return loss


class _AllPairs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pair_weights: Tensor, temperature: float) -> Tensor:
        """(V, B, d) of unit length, (V, V, B) -> scalar; the gradient is formed here."""
        count, nodes, _ = rows.shape
        flat = rows.flatten(0, 1)
        similarity = (flat @ flat.T).div_(temperature).view(count, nodes, count, nodes)
        similarity.masked_fill_((pair_weights == 0)[:, None], _LEAST)  # nodes that are no choice in view w
        logs, weights = torch.log_softmax(similarity, dim=3), pair_weights.to(rows.dtype)
        loss = -(logs.diagonal(dim1=1, dim2=3) * weights).sum()  # the diagonal: (V, V, B)
        slope = logs.exp_().mul_(weights.transpose(1, 2)[..., None])  # (V, B, V, B)
        slope.diagonal(dim1=1, dim2=3).sub_(weights)
        slope = slope.view(count * nodes, count * nodes)
        ctx.save_for_backward(((slope + slope.T) @ flat).view_as(rows) / temperature)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None
