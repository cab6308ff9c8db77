"""Fusion by light adapters and one gate, to which a modality can be added later.

Shapes: `C` nodes of a block, `M` views, `d` width, `a` width of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.blocked import BlockedFusion


class ModularFusion(BlockedFusion):
    """A light adapter for each view and gated self-fusion of the supporting views into the first (CREMA, arXiv 2402.05889).

        a_m = e_m + B_m tanh(A_m e_m)                      adapter of width a
        s   = mean_{m > 1} a_m                             over the supporting views that the node has
        e   = W a_1 + sigmoid(G a_1 + H s) * V s           the gate sees what it lets through

    No weight but the adapters' depends on the number of views: a model of more views keeps all weights of one of fewer.
    Carried over: adapters, self-gated fusion and modality-sequential training (`train.modality_order`); left: Q-Former and
    language model, and the stop by the size of gradients, for which validation stands in.

    Args:
        width: d of every view and of the result.
        num_views: M.
        adapter: a, at least 1.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, adapter: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.main, self.support, self.gate_main, self.gate_support = (nn.Linear(width, width, bias=last) for last in (
            False, False, True, False
        ))
        self.into = nn.ModuleList(nn.Linear(width, adapter, bias=False) for _ in range(num_views))
        self.out = nn.ModuleList(nn.Linear(adapter, width, bias=False) for _ in range(num_views))
        if num_views == 1:  # nothing supports the only view
            del self.support, self.gate_main, self.gate_support
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
        if num_views > 1:
            nn.init.zeros_(self.gate_main.bias)
        self.inside = (num_views + 4) * width + num_views * adapter

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`."""
        return cls(width, num_views, config.adapter_width, config.dropout_fusion)

    def fuse_rows(self, views: Tensor, has: Tensor | None, *beside: Tensor | None) -> Tensor:
        """See `BlockedFusion.fuse_rows`; zeros for a node without any view."""
        adapted = [
            view + out(into(view).tanh()) for view, into, out in zip(views.unbind(1), self.into, self.out, strict=True)
        ]  # M x (C, d), zeros stay zeros
        fused: Tensor = self.main(adapted[0])
        if len(adapted) == 1:
            return fused
        support = torch.stack(adapted[1:]).sum(dim=0)
        if has is None:
            support = support / (len(adapted) - 1)
        else:
            support = support / has[:, 1:].sum(dim=1, keepdim=True).clamp_min(1)
        gate = torch.sigmoid(self.gate_main(adapted[0]) + self.gate_support(support))
        return fused + gate * self.support(support)
