"""What the fusion operators have in common.

Shapes: `N` nodes (entities or relations), `M` views, `d` width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from imf_core.model.dropout import Dropout

Masks = Sequence[Tensor | None]


class Fusion(nn.Module):
    """Base: M views of a node -> one vector. A view that a node lacks says nothing, and no node looks at another one.

    Args:
        width: d of every view and of the result.
        num_views: M, at least 1.
        dropout: probability of zeroing an input element.
    """

    def __init__(self, width: int, num_views: int, dropout: float) -> None:
        super().__init__()
        self.width, self.num_views = width, num_views
        self.drop = Dropout(dropout)

    def forward(self, views: Sequence[Tensor], masks: Masks | None = None) -> Tensor:
        """Fuse.

        Args:
            views: M tensors (N, d).
            masks: per view (N,) bool or None; where False the node lacks the view.

        Returns:
            (N, d).

        Raises:
            ValueError: another number of views or masks than M.
        """
        masks = (None,) * len(views) if masks is None else masks
        for found, what in ((len(views), "views"), (len(masks), "masks")):
            if found != self.num_views:
                raise ValueError(f"{found} {what} to fuse, made for {self.num_views}")
        return self.fuse(views, masks)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """As `forward`, with as many views and masks as there should be."""
        raise NotImplementedError  # abstract

    def joined(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """(N, M d): the views side by side after dropout, zeros in place of a view that a node lacks."""
        dropped = [self.drop(view) for view in views]
        return torch.cat([_zeroed(view, mask) for view, mask in zip(dropped, masks, strict=True)], dim=1)


def _zeroed(view: Tensor, mask: Tensor | None) -> Tensor:
    return view if mask is None else torch.where(mask[:, None], view, view.new_zeros(()))
