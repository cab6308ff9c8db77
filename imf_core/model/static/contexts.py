"""Context vectors of several branches at once: those that have one relation model and one shape, with a leading dimension.

Shapes: `B` queries, `R` relations (2R with inverses), `G` branches of a group, `d` entity width, `r` relation width, `U`
relations of a batch and `b` blocks of 32 queries, both padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imf_core.model.scoring import BlockTerm, ComplEx, Contextual, DistMult, Scorer, Similarity
from imf_core.model.static.plan import BLOCK, Plan

STACKED = (Contextual, DistMult, ComplEx, BlockTerm, Similarity)  # relation models of which several can be computed at once


def shape_of(scorer: Scorer) -> tuple[Any, ...]:
    """What branches must have in common to be computed together."""
    norm = getattr(scorer, "norm_head", None)
    drops = [part.p for name in ("drop_head", "drop_relation", "drop_context") if (part := getattr(scorer, name, None))]
    sizes = [getattr(scorer, name, 0) for name in ("width", "relation_width", "block", "parts")]
    return type(scorer), isinstance(norm, nn.BatchNorm1d), *sizes, *drops


def stacked_contexts(scorers: Sequence[Scorer], heads: Tensor, vectors: Tensor, relations: Tensor, plan: Plan) -> Tensor:
    """As `Scorer.context` of each branch, in training mode.

    Args:
        scorers: G, of one `shape_of`.
        heads: (G, B, d) head vectors.
        vectors: (G, 2R, r) all relation vectors.
        relations: (B,) int64 ids below 2R.
        plan: of the batch.

    Returns:
        (G, B, d).
    """
    first = scorers[0]
    assert isinstance(first, Contextual | DistMult)
    before, after = ([getattr(scorer, name) for scorer in scorers] for name in ("norm_head", "norm_context"))
    heads = dropped(normalised(heads, before), first.drop_head.p)
    if isinstance(first, Contextual):
        made = _through_matrices(scorers, heads, vectors, plan)
    else:
        asked = vectors.index_select(1, relations)  # (G, B, r)
        if isinstance(first, BlockTerm):
            made = _block_terms(scorers, heads, dropped(asked, first.drop_relation.p))
        else:
            made = first.combine(heads, asked)
    return dropped(normalised(made, after), first.drop_context.p)


def _through_matrices(scorers: Sequence[Any], heads: Tensor, vectors: Tensor, plan: Plan) -> Tensor:
    """`h (drop(W x_1 w))`: (G, B, d), (G, 2R, r) -> (G, B, d); a relation's matrix is built once, as in `grouped_products`."""
    count, _, width = heads.shape
    cores = torch.stack([scorer.core.flatten(1) for scorer in scorers])  # (G, r, d * d)
    matrices = dropped(torch.bmm(vectors.index_select(1, plan.distinct), cores), scorers[0].drop_relation.p)  # (G, U, d * d)
    of_blocks = matrices.index_select(1, plan.owners).view(-1, width, width)  # (G * b, d, d)
    rows = into_blocks(heads, plan).view(-1, BLOCK, width)  # (G * b, 32, d)
    return out_of_blocks(torch.bmm(rows, of_blocks).view(count, -1, width).to(heads.dtype), plan)


def _block_terms(scorers: Sequence[Any], heads: Tensor, relations: Tensor) -> Tensor:
    """As `BlockTerm.combine`: (G, B, d), (G, B, d) -> (G, B, d)."""
    block = scorers[0].block
    parts = heads.unflatten(2, (-1, block)), relations.unflatten(2, (-1, block))  # (G, B, d / P, P) each
    outer = parts[1][..., None] * parts[0][..., None, :]
    cores = torch.stack([scorer.core for scorer in scorers])  # (G, P * P, P)
    return torch.bmm(outer.flatten(3).flatten(1, 2), cores).view_as(heads)


def into_blocks(rows: Tensor, plan: Plan) -> Tensor:
    """(G, B, d) -> (G, b * 32, d): the queries of a relation side by side, zeros in the padding."""
    blocks: Tensor = _IntoBlocks.apply(rows, plan.slots, plan.filled.to(rows.dtype), plan.places)
    return blocks


def out_of_blocks(blocks: Tensor, plan: Plan) -> Tensor:
    """The inverse of `into_blocks`: (G, b * 32, d) -> (G, B, d)."""
    rows: Tensor = _OutOfBlocks.apply(blocks, plan.places, plan.slots)
    return rows


class _IntoBlocks(torch.autograd.Function):
    """Both directions only read: autograd would add the gradients of the padding to those of the rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slots: Tensor, filled: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return rows.index_select(1, slots).mul_(filled[:, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(1, places), None, None, None


class _OutOfBlocks(torch.autograd.Function):
    """The gradient of the padding is that of some row. It goes nowhere: the other factor of its products is 0, see
    `_IntoBlocks`.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, places: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return blocks.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grad.index_select(1, slots), None, None


def normalised(rows: Tensor, norms: Sequence[nn.Module]) -> Tensor:
    """(G, B, d) -> (G, B, d): each branch by its own BatchNorm, all in one call; unchanged where the norms are none."""
    batch_norms = [norm for norm in norms if isinstance(norm, nn.BatchNorm1d)]
    if not batch_norms:
        return rows
    first, (count, queries, width) = batch_norms[0], rows.shape
    statistics = [getattr(norm, name) for name in ("running_mean", "running_var") for norm in batch_norms]
    mean, variance = torch.cat(statistics).chunk(2)  # (G * d,) each
    scale, shift = torch.cat([*(norm.weight for norm in batch_norms), *(norm.bias for norm in batch_norms)]).chunk(2)
    assert first.momentum is not None
    flat = torch.batch_norm(
        rows.transpose(0, 1).reshape(queries, count * width), scale, shift, mean, variance, True, first.momentum, first.eps,
        torch.backends.cudnn.enabled,
    )
    with torch.no_grad():
        torch._foreach_copy_(statistics, [*mean.split(width), *variance.split(width)])
        torch._foreach_add_([norm.num_batches_tracked for norm in batch_norms], 1)  # type: ignore[misc]
    return flat.view(queries, count, width).transpose(0, 1)


def dropped(values: Tensor, p: float) -> Tensor:
    """Dropout in one operation on every device, mask and product together."""
    return torch.native_dropout(values, p, True)[0] if p else values
