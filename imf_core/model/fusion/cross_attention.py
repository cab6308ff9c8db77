"""Fusion by attention between the views, across layers.

Shapes: `C` nodes of a block, `M` views, `d` width, `L` layers, `w` width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.blocked import BlockedFusion, attend


class CrossAttentionFusion(BlockedFusion):
    """Each view attends to all earlier layers of the others (MCMulT, arXiv 2206.07981).

        h_m^0 = norm(e_m) + n_m                                           n_m tells the views apart
        h_m^l = h_m^{l-1} + O attention(Q h_m^{l-1};  K h_k^j, V h_k^j    for all k != m, j < l)
        e     = W [h_1^L; ...; h_M^L]

    Carried over: the multi-scale (all earlier layers) and cooperative (every pair of views, layer by layer) attention; left:
    sequences in time, since a view has one vector, transformers of each pair's own (a layer's weights are shared by the
    views), and feed-forward layers.

    Args:
        width: d of every view and of the result.
        num_views: M.
        layers: L, at least 1.
        heads: of each attention.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.norm = nn.LayerNorm(width)
        self.names = nn.Parameter(torch.empty(num_views, width))
        nn.init.normal_(self.names, std=0.1)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.out = nn.Linear(num_views * width, width)
        unit_rows(self.out)
        self.inside = num_views * width * (1 + 4 * layers)

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`."""
        return cls(width, num_views, config.attention_layers, config.attention_heads, config.dropout_fusion)

    def fuse_rows(self, views: Tensor, has: Tensor | None, *beside: Tensor | None) -> Tensor:
        """See `BlockedFusion.fuse_rows`; the bias for a node without any view."""
        count = self.num_views
        present = None if has is None else has[:, :, None]
        hidden = self.norm(views) + self.names  # (C, M, d)
        others = ~torch.eye(count, dtype=torch.bool, device=views.device)[None]  # (1, M, M): no view looks at itself
        allowed = others if has is None else others & has[:, None, :]  # (1 or C, M, M)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for number, layer in enumerate(self.layers, start=1):
            hidden = hidden if present is None else hidden * present
            query, key, value = layer(hidden)
            keys.append(key)
            values.append(value)
            heard = attend(query, torch.cat(keys, dim=1), torch.cat(values, dim=1), allowed.repeat(1, 1, number))
            hidden = hidden + layer.out(heard)  # type: ignore[operator]
        hidden = hidden if present is None else hidden * present
        fused: Tensor = self.out(hidden.flatten(1))
        return fused


class _Layer(nn.Module):
    """The projections of one layer, for all views. A bias of the keys would move all logits alike, which no softmax sees."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * -(-width // heads)
        self.query, self.key = nn.Linear(width, inner), nn.Linear(width, inner, bias=False)
        self.value, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(C, M, d) -> queries, keys, values, (C, M, heads, w) each."""
        query, key, value = (
            layer(hidden).unflatten(2, (self.heads, -1)) for layer in (self.query, self.key, self.value)
        )
        return query, key, value


def unit_rows(layer: nn.Linear) -> None:
    """Initialise a layer whose inputs have variance 1 so that its results are rows of about unit length: first scores of order
    1.
    """
    nn.init.normal_(layer.weight, std=(layer.in_features * layer.out_features) ** -0.5)
    nn.init.zeros_(layer.bias)
