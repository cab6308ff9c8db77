"""The base of operators whose intermediate results are larger than their views: they exist for a block of nodes at a time.

Shapes: `N` nodes (entities or relations), `C` of them at a time, `M` views, `d` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion, FusionSize, Masks, presence, rows_at_a_time


class BlockedFusion(Fusion):
    """Base: an operator overrides `fuse_rows`. What a block computes is computed again in the backward pass, not kept.

    Args:
        width: d of every view and of the result.
        num_views: M.
        dropout: probability of zeroing an input element, 0 <= p < 1.

    Attributes:
        inside: numbers that a node takes between views and result; the larger, the fewer nodes at a time.
    """

    inside: int

    def __init__(self, width: int, num_views: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.inside = num_views * width

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """See `Fusion.size_of`: the joined views and their gradient are kept, and nothing of what lies behind them."""
        with torch.device("meta"):  # counted, not allocated
            operator = cls.of(config, *settings, width=width, num_views=num_views)
        return FusionSize(sum(parameter.numel() for parameter in operator.parameters()), 2 * num_views * width)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """See `Fusion.fuse`."""
        joined = self.joined(views, masks)  # (N, M d)
        has = presence(joined, masks)
        beside = self.beside(len(joined))
        step = rows_at_a_time(joined.device, self.inside)
        blocks = []
        for low in range(0, max(1, len(joined)), step):
            rows = slice(low, low + step)
            views_of = joined[rows].view(-1, self.num_views, self.width)
            given = [None if part is None else part[rows] for part in (has, *beside)]
            if torch.is_grad_enabled() and len(joined) > step:
                # Nothing inside is random: dropout came before.
                blocks.append(checkpoint(self.fuse_rows, views_of, *given, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(self.fuse_rows(views_of, *given))
        return torch.cat(blocks).to(next(self.parameters()).dtype)

    def beside(self, count: int) -> tuple[Tensor | None, ...]:
        """What `fuse_rows` gets besides views and masks: tensors (N, ...) of all `count` nodes. Here: nothing."""
        return ()

    def fuse_rows(self, views: Tensor, has: Tensor | None, *beside: Tensor | None) -> Tensor:
        """Fuse a block of nodes.

        Args:
            views: (C, M, d), zeros where a node lacks the view.
            has: (C, M) bool, which views each node has; None: all.
            beside: the block's rows of what `beside` returns.

        Returns:
            (C, d).
        """
        raise NotImplementedError  # abstract


def attend(queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
    """Scaled dot-product attention within each node; zeros for a query that may look at nothing.

    Args:
        queries: (C, q, heads, w).
        keys, values: (C, t, heads, w) of the t tokens.
        allowed: bool, broadcastable to (C, q, t); None: every query sees every token.

    Returns:
        (C, q, heads * w).
    """
    logits = torch.einsum("cqhw,cthw->chqt", queries, keys) * queries.shape[-1] ** -0.5  # (C, heads, q, t)
    if allowed is None:
        weights = logits.softmax(dim=-1)
    else:
        seen = allowed[:, None]
        # The lowest finite number: with minus infinity the softmax of a query without tokens would be NaN.
        weights = logits.masked_fill(~seen, torch.finfo(logits.dtype).min).softmax(dim=-1) * seen
    return torch.einsum("chqt,cthw->cqhw", weights.to(values.dtype), values).flatten(2)
