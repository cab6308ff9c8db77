"""Layers whose weights differ from node to node (MetaMMF, TOIS 2023, arXiv 2501.07110, section 3).

    s_i = W_2 relu(W_1 f_i)                   meta information of node i, from all its features
    W_i = W + sum_s s_is T_s                  a static weight plus a dynamic one from the meta learner T
    h   = leaky_relu(h W_i)                   one layer after the other; the last one is linear

No `W_i` is ever built: `h W_i = h W + sum_s s_is (h T_s)` takes S + 1 products for all nodes together. In the CP form
`T = sum_q a_q o c_q o b_q` not even `T` is: `h T_i = ((h A) * (s_i C)) B`.

Shapes: `N` nodes, `C` of them at a time, `I` and `O` widths into and out of a layer, `S` meta width, `Q` CP rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from imf_core.model.fusion.base import rows_at_a_time
from imf_core.model.grouped import compute_dtype


class WeightedLayer(nn.Module):
    """Base class, and by itself the static layer `h W`: MetaMMF without its meta learner.

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
            signal: (N, S) meta information; a static layer ignores it.

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
    """As `DynamicLayer`, with `T` as a CP decomposition of rank Q: `h W + ((h A) * (s_i C)) B`.

    Args:
        width_in, width_out: I and O.
        meta_dim: S.
        rank: Q.
    """

    def __init__(self, width_in: int, width_out: int, meta_dim: int, rank: int) -> None:
        super().__init__(width_in, width_out)
        self.into, self.out = nn.Parameter(torch.empty(width_in, rank)), nn.Parameter(torch.empty(rank, width_out))  # A, B
        self.mix = nn.Parameter(torch.empty(meta_dim, rank))  # C
        # Each number of T is a sum of Q products of three: the factors give it the initial variance of `DynamicLayer`.
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
        layer: makes a layer from I and O.
        meta_dim: S; 0: no meta information, for static layers.
        meta_hidden: width of the hidden layer that computes the meta information.
    """

    def __init__(
        self, widths: Sequence[int], layer: Callable[[int, int], WeightedLayer], meta_dim: int = 0, meta_hidden: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(*pair) for pair in pairwise(widths))
        self.meta: nn.Sequential | None = None
        if meta_dim:
            squeeze, signal = nn.Linear(widths[0], meta_hidden, bias=False), nn.Linear(meta_hidden, meta_dim, bias=False)
            for linear in (squeeze, signal):
                nn.init.xavier_normal_(linear.weight)
            self.meta = nn.Sequential(squeeze, nn.ReLU(), signal)

    def forward(self, features: Tensor) -> Tensor:
        """(N, widths[0]) -> (N, widths[-1])."""
        signal = self.meta(features) if self.meta is not None else None  # (N, S)
        first, *others = self.layers
        hidden: Tensor = first(features, signal)
        for layer in others:
            hidden = layer(functional.leaky_relu(hidden), signal)
        return hidden


class _DynamicProduct(torch.autograd.Function):
    """Some rows at a time. Autograd would keep the S products (N, O) for the gradient of the meta information; here it is
    computed from the gradient's products with `T_s`, which are needed anyway, so that only the inputs are kept.
    """

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, inputs: Tensor, signal: Tensor, static: Tensor, tensors: Tensor) -> Tensor:
        """dtype of the products, inputs (N, I), signal (N, S), static (I, O), tensors (S, I, O) -> (N, O)."""
        base, parts = static.to(kind), tensors.to(kind)
        product = static.new_empty(len(inputs), static.shape[1])
        with _no_autocast(static):
            for low, high in _blocks(inputs, static):
                rows, weights = inputs[low:high].to(kind), signal[low:high].to(static.dtype)  # (C, I), (C, S)
                total = (rows @ base).to(static.dtype)  # (C, O)
                for s, part in enumerate(parts):
                    total.addcmul_(weights[:, s, None], (rows @ part).to(static.dtype))
                product[low:high] = total
        ctx.kind = kind
        ctx.save_for_backward(inputs, signal, static, tensors)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(N, O) -> gradients of inputs, meta information, static weight and meta learner."""
        inputs, signal, static, tensors = ctx.saved_tensors
        kind, exact = ctx.kind, static.dtype
        base, parts = static.to(kind), tensors.to(kind)
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[1] else None  # frozen features need none
        grad_signal = torch.empty_like(signal)
        grad_static, grad_tensors = torch.zeros_like(static), torch.zeros_like(tensors)
        with _no_autocast(static):
            for low, high in _blocks(inputs, static):
                rows, weights, slope = inputs[low:high].to(exact), signal[low:high].to(exact), grad[low:high].to(kind)
                back = None if grad_inputs is None else (slope @ base.T).to(exact)  # (C, I)
                grad_static += rows.to(kind).T @ slope
                for s, part in enumerate(parts):
                    through = (slope @ part.T).to(exact)  # (C, I)
                    grad_signal[low:high, s] = (rows * through).sum(dim=1)
                    if back is not None:
                        back.addcmul_(weights[:, s, None], through)
                    grad_tensors[s] += (rows * weights[:, s, None]).to(kind).T @ slope
                if grad_inputs is not None and back is not None:
                    grad_inputs[low:high] = back
        return None, grad_inputs, grad_signal, grad_static, grad_tensors


class _CpProduct(torch.autograd.Function):
    """As `_DynamicProduct`: the (N, Q) factors are computed again in the backward pass, some rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, kind: torch.dtype, inputs: Tensor, signal: Tensor, static: Tensor, into: Tensor, mix: Tensor, out: Tensor
    ) -> Tensor:
        """dtype of the products, inputs (N, I), signal (N, S), static (I, O), into (I, Q), mix (S, Q), out (Q, O) -> (N, O)."""
        base, first, second, last = (part.to(kind) for part in (static, into, mix, out))
        product = static.new_empty(len(inputs), static.shape[1])
        with _no_autocast(static):
            for low, high in _blocks(inputs, static):
                rows, weights = inputs[low:high].to(kind), signal[low:high].to(kind)
                mixed = (rows @ first) * (weights @ second)  # (C, Q)
                product[low:high] = (rows @ base).to(static.dtype).add_(mixed @ last)
        ctx.kind = kind
        ctx.save_for_backward(inputs, signal, static, into, mix, out)
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(N, O) -> gradients of inputs, meta information, static weight and the three factors."""
        inputs, signal, *parameters = ctx.saved_tensors
        kind, static = ctx.kind, parameters[0]
        base, first, second, last = (part.to(kind) for part in parameters)
        grad_inputs = torch.empty_like(inputs) if ctx.needs_input_grad[1] else None
        grad_signal = torch.empty_like(signal)
        grad_static, grad_into, grad_mix, grad_out = grads = [torch.zeros_like(part) for part in parameters]
        with _no_autocast(static):
            for low, high in _blocks(inputs, static):
                rows, weights, slope = (part[low:high].to(kind) for part in (inputs, signal, grad))
                left, right, through = rows @ first, weights @ second, slope @ last.T  # (C, Q) each
                to_left, to_right = through * right, through * left
                grad_static += rows.T @ slope
                grad_into += rows.T @ to_left
                grad_mix += weights.T @ to_right
                grad_out += (left * right).T @ slope
                grad_signal[low:high] = to_right @ second.T
                if grad_inputs is not None:
                    grad_inputs[low:high] = (slope @ base.T).add_(to_left @ first.T)
        return None, grad_inputs, grad_signal, *grads


def _no_autocast(weight: Tensor) -> torch.autocast:
    """The dtypes are chosen here; autocast would override them."""
    return torch.autocast(weight.device.type, enabled=False)


def _blocks(inputs: Tensor, static: Tensor) -> list[tuple[int, int]]:
    """First and last + 1 row of each block of C rows, see `rows_at_a_time`."""
    step = rows_at_a_time(static.device, max(static.shape))
    return [(low, min(low + step, len(inputs))) for low in range(0, len(inputs), step)]
