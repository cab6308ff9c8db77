"""Fusion operators: several views of a node -> one vector. `build_fusion` knows them all; the low-rank bilinear one is here.

Shapes: `N` nodes (entities or relations), `M` views, `d` width, `k` fusion rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imf_core.config import ModelConfig
from imf_core.model.dropout import Mask
from imf_core.model.fusion.base import Fusion, Masks
from imf_core.model.fusion.joined import GatedFusion, StackedFusion
from imf_core.model.grouped import compute_dtype

_ROWS_TIMES_WIDTH = 2**19  # numbers of a factor computed at a time on a CPU: they stay in its cache
_ON_GPU = 2**28


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
    """What an operator takes.

    Args:
        parameters: trained numbers.
        per_node: numbers that a training step holds for each node, beside the views and the result with their gradients.
    """

    parameters: int
    per_node: int


def fusion_size(config: ModelConfig, width: int, num_views: int) -> FusionSize:
    """Size of what `build_fusion` makes of the same arguments; the biases are not counted."""
    side_by_side = num_views * width
    if config.fusion == "tucker":
        return FusionSize(config.fusion_rank * num_views * width**2, config.fusion_rank * num_views * width)
    if config.fusion == "gated":  # the joined views, values and gates before and after their functions, gradients of three
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


class TuckerFusion(Fusion):
    """Low-rank bilinear (Tucker) pooling, the core factorised to rank k as in MUTAN (IMF, section 2.2).

        e = sum_{i=1..k}  prod_m  relu(W_i^m drop(e_m) + b_i^m)

    Args:
        width: d of every view and of the result.
        num_views: M.
        rank: k, at least 1.
        dropout: probability of zeroing an input element.
    """

    def __init__(self, width: int, num_views: int, rank: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.rank = rank
        # One layer a view computes the factors of all ranks at once: one (N, d) x (d, k d) product instead of k.
        self.factors = nn.ModuleList(nn.Linear(width, rank * width) for _ in range(num_views))
        for layer in self.factors:
            nn.init.xavier_normal_(layer.weight.view(rank, width, width))  # type: ignore[operator]
            nn.init.constant_(layer.bias, 0.1)  # type: ignore[arg-type]

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """See `Fusion.fuse`; the factor of a view that a node lacks is the neutral 1."""
        how = _How(
            self.rank, tuple(masks), tuple(self.drop.draw(view) for view in views),
            compute_dtype(self.factors[0].weight), torch.is_grad_enabled(),  # type: ignore[arg-type]
        )
        weights, biases = [layer.weight for layer in self.factors], [layer.bias for layer in self.factors]
        fused: Tensor = _Fuse.apply(how, *views, *weights, *biases)
        return fused


@dataclass(frozen=True)
class _How:
    """What rules a fusion: rank, who has which view, what is dropped, the type of the products, whether a gradient follows."""

    rank: int
    masks: tuple[Tensor | None, ...]
    dropped: tuple[Mask | None, ...]
    kind: torch.dtype
    training: bool

    def input(self, position: int, view: Tensor, low: int, high: int) -> Tensor:
        """(C, d) rows of a view as its layer sees them."""
        rows, mask = view[low:high], self.dropped[position]
        return (rows if mask is None else mask.rows(low, high).apply(rows)).to(self.kind)

    def lacking(self, position: int, low: int, high: int) -> Tensor | None:
        """(C,) bool: the nodes without the view; None where all have it."""
        mask = self.masks[position]
        return None if mask is None else ~mask[low:high]


class _Fuse(torch.autograd.Function):
    """Some rows at a time: the factors stay in the cache while they are multiplied, and of all that autograd would keep only
    the factors themselves are kept.
    """

    @staticmethod
    def forward(ctx: Any, how: _How, *tensors: Tensor) -> Tensor:
        """Views, weights, biases -> (N, d)."""
        count = len(tensors) // 3
        views, layers, biases = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        cast, shifts = [layer.to(how.kind) for layer in layers], [bias.to(how.kind) for bias in biases]
        nodes, width = views[0].shape
        fused = layers[0].new_empty(nodes, width)
        step = _step(layers[0])
        kept = [layers[0].new_empty(nodes if how.training else min(step, nodes), len(layers[0]), dtype=how.kind) for _ in views]
        for low in range(0, nodes, step):
            high = min(low + step, nodes)
            place = slice(low, high) if how.training else slice(0, high - low)
            product = fused.new_ones(high - low, len(layers[0]))
            for position, view in enumerate(views):
                factor = kept[position][place]
                torch.addmm(shifts[position], how.input(position, view, low, high), cast[position].T, out=factor).relu_()
                lacking = how.lacking(position, low, high)
                if lacking is not None:
                    factor[lacking] = 1
                product *= factor
            torch.sum(product.view(high - low, how.rank, width), dim=1, out=fused[low:high])
        ctx.how, ctx.count = how, count
        if how.training:
            ctx.save_for_backward(*views, *layers, *kept)
        return fused

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of views, weights and biases."""
        how, count = ctx.how, ctx.count
        saved = ctx.saved_tensors
        views, layers, kept = saved[:count], saved[count : 2 * count], saved[2 * count :]
        cast = [layer.to(how.kind) for layer in layers]
        grads_view = [torch.empty_like(view) for view in views]
        grads_layer = [torch.zeros_like(layer) for layer in layers]
        grads_bias = [layer.new_zeros(len(layer)) for layer in layers]
        step = _step(layers[0])
        for low in range(0, len(grad), step):
            high = min(low + step, len(grad))
            factors = [factor[low:high].to(grad.dtype) for factor in kept]
            slopes = _slopes(grad[low:high].repeat(1, how.rank), factors)
            for position, (view, slope) in enumerate(zip(views, slopes, strict=True)):
                slope.mul_((factors[position] > 0).to(slope.dtype))
                lacking = how.lacking(position, low, high)
                if lacking is not None:
                    slope[lacking] = 0
                grads_bias[position] += slope.sum(dim=0)
                moved = slope.to(how.kind)
                grads_layer[position] += moved.T @ how.input(position, view, low, high)
                back = moved @ cast[position]
                dropped = how.dropped[position]
                grads_view[position][low:high] = back if dropped is None else dropped.rows(low, high).apply(back)
        return (None, *grads_view, *grads_layer, *grads_bias)


def _slopes(slope: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a product of M factors: for each the given gradient (C, k d) times all others, without a division."""
    after = [slope]
    for factor in reversed(factors[1:]):
        after.append(after[-1] * factor)
    before: Tensor | None = None
    slopes = []
    for position, factor in enumerate(factors):
        rest = after[-1 - position]
        slopes.append(rest.clone() if before is None else rest * before)
        before = factor if before is None else before * factor
    return slopes


def _step(layer: Tensor) -> int:
    """Rows at a time."""
    return max(64, (_ROWS_TIMES_WIDTH if layer.device.type == "cpu" else _ON_GPU) // len(layer))
