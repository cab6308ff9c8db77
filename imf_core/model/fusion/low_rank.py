"""Low-rank bilinear fusion, with forward and backward written out.

Shapes: `N` nodes (entities or relations), `C` of them at a time, `M` views, `d` width, `k` fusion rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imf_core.config import ModelConfig
from imf_core.model.dropout import Mask
from imf_core.model.fusion.base import Fusion, FusionSize, Masks, presence, rows_at_a_time
from imf_core.model.grouped import compute_dtype


class TuckerFusion(Fusion):
    """Low-rank bilinear (Tucker) pooling, the core factorised to rank k as in MUTAN (IMF, section 2.2; arXiv 1705.06676).

        e = sum_{i=1..k}  prod_m  relu(W_i^m drop(e_m) + b_i^m)

    Args:
        width: d of every view and of the result.
        num_views: M.
        rank: k, at least 1.
        dropout: probability of zeroing an input element, 0 <= p < 1.
    """

    def __init__(self, width: int, num_views: int, rank: int, dropout: float) -> None:
        super().__init__(width, num_views, dropout)
        self.rank = rank
        # One layer for each view computes the factors of all ranks at once: one (N, d) x (d, k d) product instead of k.
        self.factors = nn.ModuleList(nn.Linear(width, rank * width) for _ in range(num_views))
        for layer in self.factors:
            nn.init.xavier_normal_(layer.weight.view(rank, width, width))  # type: ignore[operator]
            nn.init.constant_(layer.bias, 0.1)  # type: ignore[arg-type]

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> Fusion:
        """See `Fusion.of`."""
        return cls(width, num_views, config.fusion_rank, config.dropout_fusion)

    @classmethod
    def size_of(cls, config: ModelConfig, *settings: Any, width: int, num_views: int) -> FusionSize:
        """See `Fusion.size_of`; biases are not counted."""
        return FusionSize(config.fusion_rank * num_views * width**2, config.fusion_rank * num_views * width)

    def fuse(self, views: Sequence[Tensor], masks: Masks) -> Tensor:
        """See `Fusion.fuse`; the factor of a view that a node lacks is the neutral 1."""
        options = _Options(
            self.rank, tuple(masks), tuple(self.drop.draw(view) for view in views),
            compute_dtype(self.factors[0].weight), torch.is_grad_enabled(),  # type: ignore[arg-type]
        )
        weights, biases = [layer.weight for layer in self.factors], [layer.bias for layer in self.factors]
        fused: Tensor = _Fuse.apply(options, *views, *weights, *biases)
        return fused

    def fuse_stacked(self, views: Tensor, masks: Masks) -> Tensor:
        """See `Fusion.fuse_stacked`: one product for all views, by autograd."""
        kept = torch.native_dropout(views, self.drop.p, True)[0] if self.drop.p else views
        weights = torch.stack([layer.weight for layer in self.factors])  # type: ignore[misc]  # (M, k d, d)
        biases = torch.stack([layer.bias for layer in self.factors])  # type: ignore[misc]
        factors = _Linear.apply(compute_dtype(weights), kept, weights, biases).relu()  # (M, N, k d)
        if (has := presence(views[0], masks)) is not None:  # (N, M)
            factors = torch.where(has.T[:, :, None], factors, 1.0)
        product = reduce(torch.mul, factors.unbind())  # (N, k d)
        return product.unflatten(1, (self.rank, self.width)).sum(dim=1)


class _Linear(torch.autograd.Function):
    """M linear layers at once. Autograd would give the weights transposed gradients, which are copied for each view."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, rows: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
        """dtype of the products, rows (M, N, d), weights (M, k d, d), biases (M, k d) -> (M, N, k d)."""
        cast, layers = rows.to(kind), weights.to(kind)
        ctx.save_for_backward(cast, layers)
        return torch.baddbmm(biases.to(kind)[:, None], cast, layers.mT).to(weights.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(M, N, k d) -> gradients of rows, weights and biases."""
        rows, weights = ctx.saved_tensors
        moved = grad.to(rows.dtype)
        return (
            None, torch.bmm(moved, weights).to(grad.dtype), torch.bmm(moved.mT, rows).to(grad.dtype), grad.sum(dim=1)
        )


@dataclass(frozen=True)
class _Options:
    """Arguments of `_Fuse` that are no tensors to differentiate.

    Args:
        rank: k.
        masks: per view (N,) bool or None, see `Fusion.forward`.
        dropped: per view its dropout mask, or None.
        kind: dtype of the products.
        training: whether a backward pass follows.
    """

    rank: int
    masks: tuple[Tensor | None, ...]
    dropped: tuple[Mask | None, ...]
    kind: torch.dtype
    training: bool

    def input(self, position: int, view: Tensor, low: int, high: int) -> Tensor:
        """(C, d): rows low..high of a view after dropout, as input of its layer."""
        rows, mask = view[low:high], self.dropped[position]
        return (rows if mask is None else mask.rows(low, high).apply(rows)).to(self.kind)

    def lacking(self, position: int, low: int, high: int) -> Tensor | None:
        """(C,) bool: the nodes low..high without the view; None if all have it."""
        mask = self.masks[position]
        return None if mask is None else ~mask[low:high]


class _Fuse(torch.autograd.Function):
    """Some rows at a time, so that the factors stay in the cache while they are multiplied. Only the factors are kept for the
    backward pass; autograd would keep the partial products too.
    """

    @staticmethod
    def forward(ctx: Any, options: _Options, *tensors: Tensor) -> Tensor:
        """M views (N, d), M weights (k d, d), M biases (k d,) -> (N, d)."""
        count = len(tensors) // 3
        views, layers, biases = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        cast, shifts = [layer.to(options.kind) for layer in layers], [bias.to(options.kind) for bias in biases]
        nodes, width = views[0].shape
        fused = layers[0].new_empty(nodes, width)
        step = rows_at_a_time(layers[0].device, len(layers[0]))
        num_kept = nodes if options.training else min(step, nodes)
        kept = [layers[0].new_empty(num_kept, len(layers[0]), dtype=options.kind) for _ in views]
        for low in range(0, nodes, step):
            high = min(low + step, nodes)
            rows = slice(low, high) if options.training else slice(0, high - low)
            product = fused.new_ones(high - low, len(layers[0]))  # (C, k d)
            for position, view in enumerate(views):
                factor = kept[position][rows]  # (C, k d)
                torch.addmm(shifts[position], options.input(position, view, low, high), cast[position].T, out=factor).relu_()
                lacking = options.lacking(position, low, high)
                if lacking is not None:
                    factor[lacking] = 1
                product *= factor
            torch.sum(product.view(high - low, options.rank, width), dim=1, out=fused[low:high])
        ctx.options, ctx.count = options, count
        if options.training:
            ctx.save_for_backward(*views, *layers, *kept)
        return fused

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(N, d) -> gradients of views, weights and biases."""
        options, count = ctx.options, ctx.count
        saved = ctx.saved_tensors
        views, layers, kept = saved[:count], saved[count : 2 * count], saved[2 * count :]
        cast = [layer.to(options.kind) for layer in layers]
        grads_view = [torch.empty_like(view) for view in views]
        grads_layer = [torch.zeros_like(layer) for layer in layers]
        grads_bias = [layer.new_zeros(len(layer)) for layer in layers]
        step = rows_at_a_time(layers[0].device, len(layers[0]))
        for low in range(0, len(grad), step):
            high = min(low + step, len(grad))
            factors = [factor[low:high].to(grad.dtype) for factor in kept]  # M x (C, k d)
            slopes = _slopes(grad[low:high].repeat(1, options.rank), factors)
            for position, (view, slope) in enumerate(zip(views, slopes, strict=True)):
                slope.mul_((factors[position] > 0).to(slope.dtype))
                lacking = options.lacking(position, low, high)
                if lacking is not None:
                    slope[lacking] = 0
                grads_bias[position] += slope.sum(dim=0)
                moved = slope.to(options.kind)
                grads_layer[position] += moved.T @ options.input(position, view, low, high)
                back = moved @ cast[position]  # (C, d)
                dropped = options.dropped[position]
                grads_view[position][low:high] = back if dropped is None else dropped.rows(low, high).apply(back)
        return (None, *grads_view, *grads_layer, *grads_bias)


def _slopes(slope: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a product of M factors (C, k d): for each factor the given gradient (C, k d) times all others, from running
    products instead of a division.
    """
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

