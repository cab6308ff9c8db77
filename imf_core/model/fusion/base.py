"""The base class of the fusion operators.

Shapes: `N` nodes (entities or relations), `M` views, `d` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.dropout import Dropout
from imf_core.model.fusion.facts import GivenFacts

Masks = Sequence[Tensor | None]  # per view (N,) bool, which nodes have it; None: all

_ROWS_TIMES_WIDTH = 2**19  # numbers of a product at a time on a CPU: they stay in its cache
_ON_GPU = 2**28
_MEASURED = 32  # nodes on which the memory of an operator is measured


@dataclass(frozen=True)
class FusionSize:
    """Size of an operator.

    Args:
        parameters: number of trained parameters.
        per_node: numbers that a training step keeps for each node, besides the views, the result and their gradients.
    """

    parameters: int
    per_node: int


class Fusion(nn.Module):
    """Base: M views of a node -> one vector. A view that a node lacks has no influence, and nodes are fused independently.

    An operator of one's own overrides `fuse`, and takes its own settings as the last argument if it has some.

    Args:
        width: d of every view and of the result.
        num_views: M, at least 1.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, dropout: float) -> None:
        super().__init__()
        self.width, self.num_views = width, num_views
        self.drop = Dropout(dropout)

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """The operator for entities or for relations.

        Args:
            config: of the model; `dropout_fusion` is the probability of zeroing an input element.
            settings: those of the part, if it has some.
            width: d of every view and of the result.
            num_views: M.
        """
        return cls(width, num_views, config.dropout_fusion, *settings)

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """Size of the operator that `of` makes from these arguments. Here: measured on a few nodes."""
        with torch.random.fork_rng(devices=[]):
            operator = cls.of(config, *settings, width=width, num_views=num_views)
        parameters = {parameter.data_ptr() for parameter in operator.parameters()}
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in parameters:
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            views = [torch.zeros(_MEASURED, width, requires_grad=True) for _ in range(num_views)]
            fused = operator(views, [torch.ones(_MEASURED, dtype=torch.bool)] * num_views)
        del fused
        number = sum(parameter.numel() for parameter in operator.parameters())
        return FusionSize(number, 2 * sum(kept.values()) // _MEASURED)  # twice: their gradients

    def know(self, given: GivenFacts) -> None:
        """Hear of the training facts, once, before any weights are loaded; of the entities' operator alone.

        An operator may keep what it is given and add parameters. Fused alone, as the contract does it, it does without. Here:
        nothing is kept.

        Args:
            given: the facts, and the vectors of entities and relations.
        """

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

    def fuse_stacked(self, views: Tensor, masks: Masks) -> Tensor:
        """As `fuse` in training mode, of views (M, N, d) in one tensor; an operator may do so in fewer operations."""
        return self.fuse(views.unbind(), masks)

    def joined(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """(N, M d): the views side by side after dropout, zeros for a view that a node lacks."""
        dropped = [self.drop(view) for view in views]
        return torch.cat([_zeroed(view, mask) for view, mask in zip(dropped, masks, strict=True)], dim=1)


def rows_at_a_time(device: torch.device, width: int) -> int:
    """Rows of `width` numbers that are multiplied at a time, so that they stay in a CPU's cache; at least 64."""
    return max(64, (_ROWS_TIMES_WIDTH if device.type == "cpu" else _ON_GPU) // width)


def presence(like: Tensor, masks: Masks) -> Tensor | None:
    """(N, M) bool, which views each node has; None if no mask says that one lacks any.

    Args:
        like: (N, ...), for length and device.
        masks: per view (N,) bool or None.
    """
    if all(mask is None for mask in masks):
        return None
    everyone = torch.ones(len(like), dtype=torch.bool, device=like.device)
    return torch.stack([everyone if mask is None else mask for mask in masks], dim=1)


def _zeroed(view: Tensor, mask: Tensor | None) -> Tensor:
    return view if mask is None else torch.where(mask[:, None], view, view.new_zeros(()))
