"""Layers whose weights differ from node to node (MetaMMF, TOIS 2023, arXiv 2501.07110, section 3).

    s_i = W_2 relu(W_1 f_i)                   meta information of node i, from all its features
    W_i = W + sum_s s_is T_s                  a static weight, and a dynamic one from the meta learner T
    h   = leaky_relu(h W_i)                   one layer after the other; the last one is linear

`W_i` is never built: `h W_i = h W + sum_s s_is (h T_s)` needs S + 1 products for all nodes together. In the CP form
`T = sum_q a_q o c_q o b_q` even `T` is not: `h T_i = ((h A) * (s_i C)) B`.

Shapes: `N` nodes, `I` and `O` widths into and out of a layer, `S` meta width, `Q` CP rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from imf_core.model.grouped import compute_dtype

_ROWS_TIMES_WIDTH = 2**19  # numbers of a product at a time on a CPU: they stay in its cache
_ON_GPU = 2**28


class WeightedLayer(nn.Module):
    """Base, and by itself the static layer `h W`: what remains of MetaMMF without its meta learner.

    Args:
        width_in, width_out: I and O.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.static = nn.Parameter(nn.init.xavier_normal_(torch.empty(width_in, width_out)))

    def forward(self, inputs: Tensor, signal: Tensor | None) -> Tensor:
        """Multiply each node's row with its own weight.

        Args:
            inputs: (N, I).
            signal: (N, S) meta information; not looked at by a static layer.

        Returns:
            (N, O).
        """
        return inputs @ self.static


class DynamicLayer(WeightedLayer):
    """`h (W + sum_s s_is T_s)`.

    Args:
        width_in, width_out: I and O.
        meta_dim: S.
    """

    def __init__(self, width_in: int, width_out: int, meta_dim: int) -> None:
        super().__init__(width_in, width_out)
        self.tensors = nn.Parameter(torch.empty(meta_dim, width_in, width_out))
        nn.init.normal_(self.tensors, std=(2 / (width_in + width_out)) ** 0.5)

    def forward(self, inputs: Tensor, signal: Tensor | None) -> Tensor:
        """See `WeightedLayer.forward`."""
        product: Tensor = _DynamicProduct.apply(compute_dtype(self.static), inputs, signal, self.static, self.tensors)
        return product


class CpLayer(WeightedLayer):
    """The same with `T` as a true CP of rank Q: `h W + ((h A) * (s_i C)) B`.

    Args:
        width_in, width_out: I and O.
        meta_dim: S.
        rank: Q.
    """

    def __init__(self, width_in: int, width_out: int, meta_dim: int, rank: int) -> None:
        super().__init__(width_in, width_out)
        self.into, self.out = nn.Parameter(torch.empty(width_in, rank)), nn.Parameter(torch.empty(rank, width_out))  # A, B
        self.mix = nn.Parameter(torch.empty(meta_dim, rank))  # C
        # Each number of T is a sum of Q products of three: it starts with the variance that it has in `DynamicLayer`.
        nn.init.normal_(self.mix)
        for factor in (self.into, self.out):
            nn.init.normal_(factor, std=(2 / (width_in + width_out) / rank) ** 0.25)

    def forward(self, inputs: Tensor, signal: Tensor | None) -> Tensor:
        """See `WeightedLayer.forward`."""
        kind = compute_dtype(self.static)
        product: Tensor = _CpProduct.apply(kind, inputs, signal, self.static, self.into, self.mix, self.out)
        return product


class MetaStack(nn.Module):
    """Layers of node-specific weights with leaky ReLU between them.

    Args:
        widths: of the features, of each hidden layer, of the result; at least two.
        layer: (I, O) -> a layer.
        meta_dim: S; 0: no meta information, for static layers.
        meta_hidden: width of the hidden layer that makes the meta information.
    """

    def __init__(
        self, widths: Sequence[int], layer: Callable[[int, int], WeightedLayer], meta_dim: int = 0, meta_hidden: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(*pair) for pair in pairwise(widths))
        self.meta: nn.Sequential | None = None
        if meta_dim:
            squeeze, signal = nn.Linear(widths[0], meta_hidden, bias=False), nn.Linear(meta_hidden, meta_dim, bias=False)
            for made in (squeeze, signal):
                nn.init.xavier_normal_(made.weight)
            self.meta = nn.Sequential(squeeze, nn.ReLU(), signal)

    def forward(self, features: Tensor) -> Tensor:
        """(N, widths[0]) -> (N, widths[-1])."""
        signal = self.meta(features) if self.meta is not None else None
        first, *others = self.layers
        made: Tensor = first(features, signal)
        for layer in others:
            made = layer(functional.leaky_relu(made), signal)
        return made


class _DynamicProduct(torch.autograd.Function):
    """Some rows at a time. Autograd would keep the S products (N, O) for the gradient of the meta information; from the
    gradient's products with `T_s`, which are needed anyway, it comes without them: nothing beside the inputs is kept.
    """

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, inputs: Tensor, signal: Tensor, static: Tensor, tensors: Tensor) -> Tensor:
        """Type of the products, (N, I), (N, S), (I, O), (S, I, O) -> (N, O)."""
        base, parts = static.to(kind), tensors.to(kind)
        product = static.new_empty(len(inputs), static.shape[1])
        with _exactly(static):
            for low, high in _tiles(inputs, static):
                rows, weights = inputs[low:high].to(kind), signal[low:high].to(static.dtype)
                made = (rows @ base).to(static.dtype)
                for place, part in enumerate(parts):
                    made.addcmul_(weights[:, place, None], (rows @ part).to(static.dtype))
                product[low:high] = made
        ctx.kind = kind
        ctx.save_for_backward(inputs, signal, static, tensors)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, meta information, static weight and meta learner."""
        inputs, signal, static, tensors = ctx.saved_tensors
        kind, exact = ctx.kind, static.dtype
        base, parts = static.to(kind), tensors.to(kind)
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[1] else None  # frozen features get none
        grad_signal = torch.empty_like(signal)
        grad_static, grad_tensors = torch.zeros_like(static), torch.zeros_like(tensors)
        with _exactly(static):
            for low, high in _tiles(inputs, static):
                rows, weights, towards = inputs[low:high].to(exact), signal[low:high].to(exact), grad[low:high].to(kind)
                back = None if grad_inputs is None else (towards @ base.T).to(exact)
                grad_static += rows.to(kind).T @ towards
                for place, part in enumerate(parts):
                    passed = (towards @ part.T).to(exact)
                    grad_signal[low:high, place] = (rows * passed).sum(dim=1)
                    if back is not None:
                        back.addcmul_(weights[:, place, None], passed)
                    grad_tensors[place] += (rows * weights[:, place, None]).to(kind).T @ towards
                if grad_inputs is not None and back is not None:
                    grad_inputs[low:high] = back
        return None, grad_inputs, grad_signal, grad_static, grad_tensors


class _CpProduct(torch.autograd.Function):
    """As `_DynamicProduct`: the (N, Q) factors are made once more in the backward pass, some rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, kind: torch.dtype, inputs: Tensor, signal: Tensor, static: Tensor, into: Tensor, mix: Tensor, out: Tensor
    ) -> Tensor:
        """Type of the products, (N, I), (N, S), (I, O), (I, Q), (S, Q), (Q, O) -> (N, O)."""
        base, first, second, last = (part.to(kind) for part in (static, into, mix, out))
        product = static.new_empty(len(inputs), static.shape[1])
        with _exactly(static):
            for low, high in _tiles(inputs, static):
                rows, weights = inputs[low:high].to(kind), signal[low:high].to(kind)
                mixed = (rows @ first) * (weights @ second)
                product[low:high] = (rows @ base).to(static.dtype).add_(mixed @ last)
        ctx.kind = kind
        ctx.save_for_backward(inputs, signal, static, into, mix, out)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs, meta information, static weight and the three factors."""
        inputs, signal, *parameters = ctx.saved_tensors
        kind, static = ctx.kind, parameters[0]
        base, first, second, last = (part.to(kind) for part in parameters)
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[1] else None
        grad_signal = torch.empty_like(signal)
        grad_static, grad_into, grad_mix, grad_out = grads = [torch.zeros_like(part) for part in parameters]
        with _exactly(static):
            for low, high in _tiles(inputs, static):
                rows, weights, towards = (part[low:high].to(kind) for part in (inputs, signal, grad))
                left, right, passed = rows @ first, weights @ second, towards @ last.T
                to_left, to_right = passed * right, passed * left
                grad_static += rows.T @ towards
                grad_into += rows.T @ to_left
                grad_mix += weights.T @ to_right
                grad_out += (left * right).T @ towards
                grad_signal[low:high] = to_right @ second.T
                if grad_inputs is not None:
                    grad_inputs[low:high] = (towards @ base.T).add_(to_left @ first.T)
        return None, grad_inputs, grad_signal, *grads


def _exactly(weight: Tensor) -> torch.autocast:
    """The types are chosen here: autocast would change them once more."""
    return torch.autocast(weight.device.type, enabled=False)


def _tiles(inputs: Tensor, static: Tensor) -> list[tuple[int, int]]:
    """Rows at a time."""
    step = max(64, (_ROWS_TIMES_WIDTH if static.device.type == "cpu" else _ON_GPU) // max(static.shape))
    return [(low, min(low + step, len(inputs))) for low in range(0, len(inputs), step)]
