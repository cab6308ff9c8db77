"""The base class of the fusion operators.

Shapes: `N` nodes (entities or relations), `M` views, `d` width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imf_core.model.dropout import Dropout

Masks = Sequence[Tensor | None]  # per view (N,) bool, which nodes have it; None: all

_ROWS_TIMES_WIDTH = 2**19  # numbers of a product at a time on a CPU: they stay in its cache
_ON_GPU = 2**28


class Fusion(nn.Module):
    """Base: M views of a node -> one vector. A view that a node lacks has no influence, and nodes are fused independently.

    Args:
        width: d of every view and of the result.
        num_views: M, at least 1.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, dropout: float) -> None:
        super().__init__()
        self.width, self.num_views = width, num_views
        self.drop = Dropout(dropout)

    def forward(self, views: Sequence[Tensor], masks: Masks | None = None) -> Tensor:
        """Fuse the views of each node.

        Args:
            views: M tensors (N, d).
            masks: per view (N,) bool, False for nodes that lack it, or None if none does; None: no node lacks a view.

        Returns:
            (N, d).

        Raises:
            ValueError: the number of views or masks is not M.
        """
        masks = (None,) * len(views) if masks is None else masks
        for count, what in ((len(views), "views"), (len(masks), "masks")):
            if count != self.num_views:
                raise ValueError(f"{count} {what} to fuse, made for {self.num_views}")
        return self.fuse(views, masks)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """As `forward`, called with M views and M masks."""
        raise NotImplementedError  # abstract

    def joined(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """(N, M d): the views side by side after dropout, zeros for a view that a node lacks."""
        dropped = [self.drop(view) for view in views]
        return torch.cat([_zeroed(view, mask) for view, mask in zip(dropped, masks, strict=True)], dim=1)


def rows_at_a_time(device: torch.device, width: int) -> int:
    """Rows of `width` numbers that are multiplied at a time, so that they stay in a CPU's cache; at least 64."""
    return max(64, (_ROWS_TIMES_WIDTH if device.type == "cpu" else _ON_GPU) // width)


def _zeroed(view: Tensor, mask: Tensor | None) -> Tensor:
    return view if mask is None else torch.where(mask[:, None], view, view.new_zeros(()))
