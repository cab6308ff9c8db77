"""The fusion operator that a configuration names: `build_fusion` makes it, `fusion_size` estimates its size.

Shapes: `M` views, `d` width.
"""

from __future__ import annotations

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion, FusionSize
from imf_core.parts.registry import named


def build_fusion(config: ModelConfig, width: int, num_views: int) -> Fusion:
    """The operator named by `config.fusion`, for entities or for relations.

    Args:
        config: operator and its settings.
        width: d of every view and of the result.
        num_views: M.
    """
    part = named("fusion", config.fusion)
    operator: Fusion = part.target.of(*config.arguments(part), width=width, num_views=num_views)
    return operator


def fusion_size(config: ModelConfig, width: int, num_views: int) -> FusionSize:
    """Size of the operator that `build_fusion` makes from these arguments; biases need not be counted."""
    part = named("fusion", config.fusion)
    size: FusionSize = part.target.size_of(*config.arguments(part), width=width, num_views=num_views)
    return size
