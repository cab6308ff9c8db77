"""Fusion at several scales without a preferred modality.

Shapes: `C` nodes of a block, `M` views, `d` width, `w` pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.blocked import BlockedFusion


class MultiscaleFusion(BlockedFusion):
    """Pooled views of several widths, symmetric in the views (U3M, arXiv 2405.15365).

        p_m^k = tanh(pool_k(W e_m + b))                    k coordinates averaged into one, for each scale k
        e     = sum_k  U_k [mean_m p_m^k ; max_m p_m^k]    over the views that the node has

    Carried over: unbiased fusion (all views share their weights, so that their order means nothing) and pooling at several
    scales; left: convolutions over the picture and the four stages of the backbone, since a view has one vector.

    Args:
        width: d of every view and of the result.
        num_views: M.
        pools: how many coordinates are averaged into one at each scale; 1 keeps them all.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, pools: Sequence[int], dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.shared = nn.Linear(width, width)
        self.widths = tuple(-(-width // pool) for pool in pools)
        self.scales = nn.ModuleList(nn.Linear(2 * pooled, width, bias=False) for pooled in self.widths)
        for layer in (self.shared, *self.scales):
            nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(self.shared.bias)

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`."""
        return cls(width, num_views, config.multiscale_pools, config.dropout_fusion)

    def fuse_rows(self, views: Tensor, has: Tensor | None, *beside: Tensor | None) -> Tensor:
        """See `BlockedFusion.fuse_rows`; zeros for a node without any view."""
        values = self.shared(views)  # (C, M, d)
        summed = []
        for width, scale in zip(self.widths, self.scales, strict=True):
            pooled = functional.adaptive_avg_pool1d(values, width).tanh()  # (C, M, w)
            summed.append(scale(torch.cat([_mean(pooled, has), _max(pooled, has)], dim=1)))
        return torch.stack(summed).sum(dim=0)


def _mean(pooled: Tensor, has: Tensor | None) -> Tensor:
    """(C, M, w) -> (C, w): mean over the views that a node has."""
    if has is None:
        return pooled.mean(dim=1)
    return (pooled * has[:, :, None]).sum(dim=1) / has.sum(dim=1, keepdim=True).clamp_min(1)


def _max(pooled: Tensor, has: Tensor | None) -> Tensor:
    """(C, M, w) -> (C, w): largest over the views that a node has; 0 without any."""
    if has is None:
        return pooled.amax(dim=1)
    largest = pooled.masked_fill(~has[:, :, None], torch.finfo(pooled.dtype).min).amax(dim=1)
    return largest.masked_fill(~has.any(dim=1, keepdim=True), 0.0)
