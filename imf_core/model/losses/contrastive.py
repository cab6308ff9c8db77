"""The contrastive constraint: the views of an entity should be closer to each other than to those of other entities.

Shapes: `n` rows of a view, `B` rows that are compared, `d` width, `M` views.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional


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
