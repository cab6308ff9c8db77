"""A weighted sum of the views. Shapes: `N` nodes, `M` views, `d` width."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import imf_core
from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion, Masks


class WeightedSettings(imf_core.Section):
    """Settings of the weighted sum."""

    squash: Annotated[Literal["tanh", "none"], imf_core.Tunable(choices=("tanh", "none"))] = Field(
        "tanh", description="what the views pass through first"
    )


@imf_core.fusion("weighted", settings=WeightedSettings)
class WeightedSum(Fusion):
    """A layer for each view, and the sum of what it makes of the views that a node has."""

    def __init__(self, width: int, num_views: int, dropout: float, settings: WeightedSettings) -> None:
        super().__init__(width, num_views, dropout)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(num_views))
        self.squash = settings.squash

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        parts = []
        for layer, view, mask in zip(self.layers, views, masks, strict=True):
            made = layer(self.drop(view if mask is None else torch.where(mask[:, None], view, view.new_zeros(()))))
            parts.append(made.tanh() if self.squash == "tanh" else made)
        return torch.stack(parts).sum(dim=0).to(self.layers[0].weight.dtype)

    @classmethod
    def of(cls, config: ModelConfig, *settings: WeightedSettings, width: int, num_views: int) -> "WeightedSum":
        return cls(width, num_views, config.dropout_fusion, *settings)
