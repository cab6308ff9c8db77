"""Choosing the fusion operator: `build_fusion` makes it, `fusion_size` estimates its size.

Shapes: `N` nodes (entities or relations), `M` views, `d` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from imf_core.config import ModelConfig
from imf_core.model.fusion.base import Fusion
from imf_core.model.fusion.joined import GatedFusion, StackedFusion
from imf_core.model.fusion.low_rank import TuckerFusion


def build_fusion(config: ModelConfig, width: int, num_views: int) -> Fusion:
    """The operator named by `config.fusion`, for entities or for relations.

    Args:
        config: operator and its settings.
        width: d of every view and of the result.
        num_views: M.
    """
    if config.fusion == "tucker":
        return TuckerFusion(width, num_views, config.fusion_rank, config.dropout_fusion)
    if config.fusion == "gated":
        return GatedFusion(width, num_views, config.dropout_fusion)
    dynamic = config.meta_dim if config.fusion in ("meta", "meta_cp") else 0
    rank = config.cp_rank if config.fusion == "meta_cp" else None
    return StackedFusion(width, num_views, config.fusion_widths, config.dropout_fusion, dynamic, config.meta_hidden, rank)


@dataclass(frozen=True)
class FusionSize:
    """Size of an operator.

    Args:
        parameters: number of trained parameters.
        per_node: numbers that a training step keeps for each node, besides the views, the result and their gradients.
    """

    parameters: int
    per_node: int


def fusion_size(config: ModelConfig, width: int, num_views: int) -> FusionSize:
    """Size of the operator that `build_fusion` makes from these arguments; biases are not counted."""
    side_by_side = num_views * width
    if config.fusion == "tucker":
        return FusionSize(config.fusion_rank * num_views * width**2, config.fusion_rank * num_views * width)
    if config.fusion == "gated":  # the joined views, values and gates before and after their activations, three gradients
        return FusionSize(num_views * width**2 + side_by_side**2, 8 * side_by_side)
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
