"""Products of queries with the matrices of their relations, grouped by relation.

A relation's matrix `W x_1 w_r` is built once for all its queries, and no `(B, d, d)` tensor exists. Forward and backward are
written out: autograd's bookkeeping of one small product for each relation costs more than the products, and under autocast each
core would be cast as a whole, twice a step.

Shapes: `B` queries, `U` distinct relations of the batch, `b` blocks of 32 queries, `d` entity width, `r` relation width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imf_core.model.dropout import Mask

_COLUMNS = 8192  # columns of a core that are cast at a time: they stay in a CPU's cache
_PADDED = 32  # queries of one relation in a batched product on a GPU


class Grouping:
    """The queries of a batch grouped by relation; computed once for all branches.

    Args:
        relations: (B,) int64 ids.
        kept: matrices of an earlier batch are used again; None: each batch builds its own. For evaluation mode.

    Attributes:
        distinct: (U,) int64 relation ids.
        order: (B,) int64 positions of the queries, those of a relation side by side.
        back: (B,) int64 position of each query in `order`.
        counts: U numbers of queries.
    """

    def __init__(self, relations: Tensor, kept: KeptMatrices | None = None) -> None:
        self.kept = kept
        self.distinct, position, counts = relations.unique(return_inverse=True, return_counts=True)
        self.order = torch.argsort(position, stable=True)
        self.back = torch.empty_like(self.order)
        self.back[self.order] = torch.arange(len(relations), device=relations.device)
        self.counts: list[int] = counts.tolist()

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """U pairs: first and last + 1 of the ordered queries of each relation."""
        stops = list(accumulate(self.counts))
        return [(stop - count, stop) for stop, count in zip(stops, self.counts, strict=True)]

    @cached_property
    def blocks(self) -> tuple[Tensor, Tensor]:
        """The ordered queries cut into b blocks of 32 of one relation each, the last of a relation padded.

        Returns:
            (b,) position of each block's relation in `distinct`, and (B,) position of each ordered query among all b * 32.
        """
        counts = torch.tensor(self.counts)
        needed = -(-counts // _PADDED)
        owner = torch.arange(len(counts)).repeat_interleave(needed)
        starts = (needed.cumsum(0) - needed) * _PADDED - (counts.cumsum(0) - counts)
        slots = torch.arange(len(self.order)) + starts.repeat_interleave(counts)
        device = self.order.device
        return owner.to(device, non_blocking=True), slots.to(device, non_blocking=True)


@dataclass(frozen=True)
class Groups:
    """How a branch computes its grouped products.

    Args:
        grouping: which queries share a relation.
        dropped: dropout mask of the (U, d * d) matrices; None in evaluation mode.
        kind: dtype of the products.
    """

    grouping: Grouping
    dropped: Mask | None
    kind: torch.dtype


class KeptMatrices:
    """The matrices of the relations that were asked for last: a question alone would have to read a whole core for one.

    The weights must not change while they are kept.

    Args:
        size: bytes that they may take.
    """

    def __init__(self, size: int) -> None:
        self.size, self._bytes = size, 0
        self._cores: dict[int, Tensor] = {}  # held, so that no other tensor gets their ids
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()  # (core, relation) -> (d, d), the last used last

    @property
    def matrices(self) -> list[Tensor]:
        """(d, d) each, the one that was used last comes last."""
        return list(self._kept.values())

    def hold(self, count: int, core: Tensor) -> bool:
        """Whether so many matrices of a core may be kept together."""
        return count * core[0].nbytes <= self.size

    def of(self, core: Tensor, table: Tensor, distinct: Tensor) -> list[Tensor]:
        """`W x_1 w` of some relations.

        Args:
            core: (r, d, d), W.
            table: (2R, r) relation vectors.
            distinct: (U,) int64 relation ids; no more than it can hold.

        Returns:
            U matrices (d, d).
        """
        self._cores[id(core)] = core
        keys = [(id(core), relation) for relation in distinct.tolist()]
        missing = [key for key in keys if key not in self._kept]
        built = (table[[relation for _, relation in missing]] @ core.flatten(1)).view(-1, *core.shape[1:])
        found = dict(zip(missing, built.unbind(0), strict=True))
        for key in keys:
            if key in found:
                self._kept[key] = matrix = found[key].clone()  # a view would keep all that were built with it
                self._bytes += matrix.nbytes
            found[key] = self._kept[key]
            self._kept.move_to_end(key)
        while self._bytes > self.size:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return [found[key] for key in keys]


def kept_products(heads: Tensor, table: Tensor, core: Tensor, groups: Groups) -> Tensor:
    """As `grouped_products` with the kept matrices, and the table (2R, r) of all relation vectors."""
    assert groups.grouping.kept is not None
    matrices = groups.grouping.kept.of(core, table, groups.grouping.distinct)
    return _products(heads, torch.stack(matrices) if _batched(heads) else matrices, groups)


def grouped_products(heads: Tensor, vectors: Tensor, core: Tensor, groups: Groups) -> Tensor:
    """`h (drop(W x_1 w))` of each query with its relation's vector w.

    Args:
        heads: (B, d), ordered as `grouping.order`.
        vectors: (U, r) of the distinct relations.
        core: (r, d, d), W.
        groups: which queries share a relation, and how to multiply.

    Returns:
        (B, d).
    """
    products: Tensor = _Grouped.apply(groups, heads, vectors, core)
    return products


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: Groups, heads: Tensor, vectors: Tensor, core: Tensor) -> Tensor:
        """(B, d), (U, r), (r, d, d) -> (B, d); the matrices are kept for the backward pass."""
        kind, flat = groups.kind, core.flatten(1)
        cast, weights = heads.to(kind), vectors.to(kind)
        matrices = torch.empty(len(vectors), flat.shape[1], dtype=kind, device=core.device)  # (U, d * d)
        for columns in _columns(flat, kind):
            torch.mm(weights, flat[:, columns].to(kind), out=matrices[:, columns])
        if groups.dropped is not None:
            groups.dropped.apply_(matrices)
        ctx.groups = groups
        ctx.save_for_backward(cast, vectors, core, matrices)
        return _products(cast, matrices.view(-1, *core.shape[1:]), groups).to(heads.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(B, d) -> gradients of heads (B, d), relation vectors (U, r) and core (r, d, d)."""
        groups, (heads, vectors, core, matrices) = ctx.groups, ctx.saved_tensors
        kind, flat = groups.kind, core.flatten(1)
        moved = grad.to(kind)
        square = matrices.view(-1, *core.shape[1:])  # (U, d, d)
        grad_heads = _products(moved, square.mT, groups).to(grad.dtype)
        slopes = torch.empty_like(matrices)  # (U, d * d)
        _outer_products(heads, moved, slopes.view_as(square), groups)
        if groups.dropped is not None:
            groups.dropped.apply_(slopes)
        weights = vectors.to(kind).T
        grad_vectors, grad_core = torch.zeros_like(vectors), torch.empty_like(core)
        for columns in _columns(flat, kind):
            part = slopes[:, columns]
            if kind == core.dtype:
                torch.mm(weights, part, out=grad_core.flatten(1)[:, columns])
            else:
                grad_core.flatten(1)[:, columns] = weights @ part
            grad_vectors += part @ flat[:, columns].to(kind).T
        return None, grad_heads, grad_vectors, grad_core


def _columns(flat: Tensor, kind: torch.dtype) -> list[slice]:
    """Slices of the d * d columns of a core: all at once, or as many at a time as stay in the cache when they are cast."""
    width = flat.shape[1]
    step = width if kind == flat.dtype or flat.device.type != "cpu" else _COLUMNS
    return [slice(low, min(low + step, width)) for low in range(0, width, step)]


def _products(rows: Tensor, matrices: Tensor | Sequence[Tensor], groups: Groups) -> Tensor:
    """(B, d) rows times the (U, d, d) matrix of each row's group."""
    if isinstance(matrices, Tensor) and _batched(rows):
        owner, slots = groups.grouping.blocks
        return (_padded(rows, owner, slots) @ matrices[owner]).flatten(0, 1)[slots]
    products = torch.empty_like(rows)
    for (low, high), matrix in zip(groups.grouping.bounds, matrices, strict=True):
        torch.mm(rows[low:high], matrix, out=products[low:high])
    return products


def _outer_products(left: Tensor, right: Tensor, out: Tensor, groups: Groups) -> None:
    """Write `left_g^T right_g` of each group g, from (B, d) and (B, d), into `out` (U, d, d)."""
    if _batched(left):
        owner, slots = groups.grouping.blocks
        out.zero_().index_add_(0, owner, _padded(left, owner, slots).mT @ _padded(right, owner, slots))
        return
    for (low, high), matrix in zip(groups.grouping.bounds, out.unbind(0), strict=True):
        torch.mm(left[low:high].T, right[low:high], out=matrix)


def _batched(rows: Tensor) -> bool:
    """Whether a few large padded products beat many small ones: on a GPU each product costs a kernel launch."""
    return rows.device.type != "cpu"


def _padded(rows: Tensor, owner: Tensor, slots: Tensor) -> Tensor:
    """(B, d) -> (b, 32, d), zeros in the unused slots."""
    padded = rows.new_zeros(len(owner) * _PADDED, rows.shape[1])
    padded[slots] = rows
    return padded.view(len(owner), _PADDED, -1)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the running autocast, else that of the weight."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
