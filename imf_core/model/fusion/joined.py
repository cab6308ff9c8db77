"""Fusion operators on the concatenated views of a node.

Shapes: `N` nodes (entities or relations), `M` views, `d` width, `S` meta width, `Q` CP rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion, FusionSize, Masks, presence
from imf_core.model.fusion.meta_layers import CpLayer, DynamicLayer, MetaStack, WeightedLayer


class StackedFusion(Fusion):
    """The concatenated views through layers `M d -> hidden -> ... -> d`, leaky ReLU between them and no bias, so that a view of
    zeros adds nothing.

    Without meta information all nodes share the layers (`concat`); with it each node has its own (`meta`, `meta_cp`: MetaMMF's
    dynamic fusion, see `meta_layers`).

    Args:
        width: d of every view and of the result.
        num_views: M.
        hidden: widths of the hidden layers; may be empty.
        dropout: probability of zeroing an input element, 0 <= p < 1.
        meta_dim: S; 0 is `concat`.
        meta_hidden: width of the hidden layer that computes the meta information.
        cp_rank: Q of a factored meta learner; None: a full one.
    """

    def __init__(
        self, width: int, num_views: int, hidden: Sequence[int], dropout: float, meta_dim: int = 0, meta_hidden: int = 0,
        cp_rank: int | None = None,
    ) -> None:
        super().__init__(width, num_views, dropout)
        layer: Callable[[int, int], WeightedLayer] = WeightedLayer
        if meta_dim and cp_rank is not None:
            layer = partial(CpLayer, meta_dim=meta_dim, rank=cp_rank)
        elif meta_dim:
            layer = partial(DynamicLayer, meta_dim=meta_dim)
        self.stack = MetaStack((num_views * width, *hidden, width), layer, meta_dim, meta_hidden)

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`: `concat`, `meta` or `meta_cp`."""
        dynamic = config.meta_dim if config.fusion in ("meta", "meta_cp") else 0
        rank = config.cp_rank if config.fusion == "meta_cp" else None
        return cls(width, num_views, config.fusion_widths, config.dropout_fusion, dynamic, config.meta_hidden, rank)

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """See `Fusion.size_of`; biases are not counted."""
        side_by_side = num_views * width
        widths = (side_by_side, *config.fusion_widths, width)
        parameters = static = sum(into * out for into, out in pairwise(widths))
        held = side_by_side + 2 * sum(config.fusion_widths)  # the joined views, the hidden layers before and after the ReLU
        if config.fusion != "concat":
            parameters += side_by_side * config.meta_hidden + config.meta_hidden * config.meta_dim
            held += 2 * (config.meta_hidden + config.meta_dim)
        if config.fusion == "meta":
            parameters += config.meta_dim * static
        if config.fusion == "meta_cp":
            parameters += config.cp_rank * sum(into + config.meta_dim + out for into, out in pairwise(widths))
        return FusionSize(parameters, held)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """See `Fusion.fuse`."""
        fused: Tensor = self.stack(self.joined(views, masks))
        return fused.to(self.stack.layers[0].static.dtype)  # type: ignore[arg-type]


class GatedFusion(Fusion):
    """Gated multimodal unit for any number of views (Arevalo et al., ICLR workshop 2017, arXiv 1702.01992, section 3.1); the
    gates of a node sum to 1 over the views that it has.

        e = sum_m  z_m * tanh(W_m e_m + b_m),   z = softmax_m(U [e_1; ...; e_M] + c)

    Args:
        width: d of every view and of the result.
        num_views: M.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in range(num_views))
        self.gates = nn.Linear(num_views * width, num_views * width)
        for layer in (*self.values, self.gates):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """See `Fusion.size_of`; biases are not counted."""
        side_by_side = num_views * width
        # The joined views, values and gates before and after their activations, three gradients.
        return FusionSize(num_views * width**2 + side_by_side**2, 8 * side_by_side)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """See `Fusion.fuse`; zeros for a node without any view."""
        joined = self.joined(views, masks)  # (N, M d)
        parts = [layer(part) for layer, part in zip(self.values, joined.split(self.width, dim=1), strict=True)]
        values = torch.stack(parts, dim=1).tanh()  # (N, M, d)
        logits: Tensor = self.gates(joined).view(-1, self.num_views, self.width)
        if (has := presence(joined, masks)) is not None:  # (N, M)
            # The lowest finite number: with minus infinity the softmax of a node that lacks all views would be NaN.
            logits = logits.masked_fill(~has[:, :, None], torch.finfo(logits.dtype).min)
            values = values * has[:, :, None]
        return (logits.softmax(dim=1) * values).sum(dim=1).to(self.gates.weight.dtype)
