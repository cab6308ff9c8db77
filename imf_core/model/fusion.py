"""Fusion operators: several views of a node -> one vector.

Shapes: `N` nodes (entities or relations), `M` views, `d` width, `k` fusion rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imf_core.model.dropout import Dropout


class TuckerFusion(nn.Module):
    """Low-rank bilinear (Tucker) pooling, the core factorised to rank k as in MUTAN (IMF, section 2.2).

        e = sum_{i=1..k}  prod_m  relu(W_i^m drop(e_m) + b_i^m)

    Args:
        width: d of every view and of the result.
        num_views: M.
        rank: k, at least 1.
        dropout: probability of zeroing an input element.
    """

    def __init__(self, width: int, num_views: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.width, self.rank = width, rank
        self.drop = Dropout(dropout)
        # One layer a view computes the factors of all ranks at once: one (N, d) x (d, k d) product instead of k.
        self.factors = nn.ModuleList(nn.Linear(width, rank * width) for _ in range(num_views))
        for layer in self.factors:
            nn.init.xavier_normal_(layer.weight.view(rank, width, width))  # type: ignore[operator]
            nn.init.constant_(layer.bias, 0.1)  # type: ignore[arg-type]

    def forward(self, views: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> Tensor:
        """Fuse.

        Args:
            views: M tensors (N, d).
            masks: per view (N,) bool or None; where False the view's factor is the neutral 1.

        Returns:
            (N, d).
        """
        product: Tensor | None = None
        for position, (view, layer) in enumerate(zip(views, self.factors, strict=True)):
            factor = torch.relu(layer(self.drop(view)))
            mask = masks[position] if masks is not None else None
            if mask is not None:
                factor = torch.where(mask[:, None], factor, torch.ones((), dtype=factor.dtype, device=factor.device))
            product = factor if product is None else product * factor
        if product is None:
            raise ValueError("nothing to fuse")
        return product.view(-1, self.rank, self.width).sum(dim=1)
