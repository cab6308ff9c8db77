"""1-N losses of all branches and of their combination in one tensor of scores, forward and backward written out.

They equal `joint_softmax_loss` and `joint_binary_loss`, which work on tiles that stay in a CPU's cache. Here every operation
covers all branches: on a GPU the number of launches counts.

Shapes: `B` queries, `N` entities, `M` branches in groups of `G` with one width `d` each, `K` = M or 1 losses, `P` known answers
(padded), `c` candidates that lack a modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.decision import renormalised
from imf_core.model.losses.dense import LEAST_PROBABILITY
from imf_core.model.static.plan import Plan


@dataclass(frozen=True)
class StackedTarget:
    """Answers, and how the losses are weighted.

    Args:
        plan: of the batch.
        smoothing: eps of the label smoothing, 0 <= eps < 1.
        joint_weight: factor of the loss on the combined scores.
        weights: (B, M) decision weights, constant here; None: no loss on the combined scores.
        columns: (c,) int64, candidates that lack a modality; None where none does.
        usable: (M, c) bool, which branches know them; None where `columns` is.
        kind: dtype of the products; sums, softmax and sigmoid stay in that of the contexts.
    """

    plan: Plan
    smoothing: float
    joint_weight: float
    weights: Tensor | None
    columns: Tensor | None
    usable: Tensor | None
    kind: torch.dtype


def stacked_loss(
    loss: str, contexts: Sequence[Tensor], tables: Sequence[Tensor], target: StackedTarget
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of the branches and of their combination.

    Args:
        loss: `ce` or `bce`.
        contexts: per group (G, B, d).
        tables: per group (G, N, d).
        target: answers and weights.

    Returns:
        The differentiable total in nats, and its parts (M,) or (M + 1,), for display: branches, then the combination if it
        counts.
    """
    function = _Softmax if loss == "ce" else _Binary
    total, parts = function.apply(target, *contexts, *tables)
    return total, parts


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: StackedTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts, then tables -> total and parts; the gradients are formed here, `backward` scales them."""
        contexts, tables = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        joint, weights, columns = target.joint_weight, target.weights, target.columns
        logs = torch.log_softmax(_scores(contexts, tables, target.kind), dim=2)  # (M, B, N)
        parts = _cross_entropies(logs, target)  # (M,)
        if weights is None:
            total = parts.sum()
            gradient = _less_target(logs.exp_(), target)
        else:
            mixed, differing = _combined(logs, weights, target)
            combined = torch.log_softmax(mixed, dim=1)[None]  # (1, B, N)
            parts = torch.cat([parts, _cross_entropies(combined, target)])
            total = torch.add(parts[:-1].sum(), parts[-1], alpha=joint)
            slope = _less_target(combined.exp_(), target)  # (1, B, N)
            gradient = logs.exp_()
            if columns is not None and differing is not None:
                # The normaliser of a branch shifts all its scores alike. No softmax sees that, unless the branch has another
                # share in some candidates: then their gradient reaches all its scores, through the normaliser.
                extra = joint * differing * slope.index_select(2, columns)  # (M, B, c)
                gradient *= 1 - extra.sum(dim=2, keepdim=True)
                gradient.index_add_(2, columns, extra)
            _less_target(gradient, target)
            gradient.addcmul_(slope, weights.T[:, :, None], value=joint)
        ctx.save_for_backward(*_gradients(gradient, contexts, tables, target.kind, target.plan.row_weights))
        ctx.mark_non_differentiable(parts)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *torch._foreach_mul(ctx.saved_tensors, grad_total))


class _Binary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: StackedTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """As of `_Softmax`."""
        contexts, tables = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        scores = _scores(contexts, tables, target.kind)  # (M, B, N)
        _, queries, entities = scores.shape
        answers, weights, columns = target.plan.answers, target.weights, target.columns
        labels = (target.smoothing - 1) * target.plan.answer_shares.to(scores.dtype)  # (P,) negative, without what follows
        each = 1.0 / entities if target.smoothing else 0.0  # the label of every entity besides
        parts = functional.softplus(scores).sum(dim=(1, 2)) + scores.flatten(1).index_select(1, answers) @ labels  # (M,)
        if each:
            parts = parts - scores.sum(dim=(1, 2)) * each
        gradient = scores.sigmoid_()
        total = parts.sum()
        if weights is not None:
            mixed, differing = _combined(gradient, weights, target)  # (B, N)
            loss, slope = _mixture_loss(mixed, answers, labels, each)
            parts, total = torch.cat([parts, loss[None]]), torch.add(total, loss, alpha=target.joint_weight)
            through = slope * weights.T[:, :, None]  # (M, B, N)
            if columns is not None and differing is not None:
                through.index_add_(2, columns, differing * slope.index_select(1, columns))
            gradient = torch.addcmul(gradient, through, gradient * (1 - gradient), value=target.joint_weight)
        if each:
            gradient -= each
        gradient.flatten(1).index_add_(1, answers, labels.expand(len(gradient), -1))
        ctx.scale = 1.0 / (queries * entities)
        ctx.save_for_backward(*_gradients(gradient, contexts, tables, target.kind))
        parts = parts * ctx.scale
        ctx.mark_non_differentiable(parts)
        return total * ctx.scale, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *torch._foreach_mul(ctx.saved_tensors, grad_total * ctx.scale))


def _scores(contexts: Sequence[Tensor], tables: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """(M, B, N) in the dtype of the contexts."""
    parts = [
        torch.bmm(context.to(kind), table.to(kind).mT).to(context.dtype)
        for context, table in zip(contexts, tables, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gradients(
    scores: Tensor, contexts: Sequence[Tensor], tables: Sequence[Tensor], kind: torch.dtype, row_weights: Tensor | None = None
) -> list[Tensor]:
    """The gradients of contexts and tables from that of the scores (M, B, N), whose queries are weighted here."""
    groups = scores.split([len(context) for context in contexts])
    of_contexts, of_tables = [], []
    for slope, context, table in zip(groups, contexts, tables, strict=True):
        moved, exact = slope.to(kind), context.dtype
        towards = torch.bmm(moved, table.to(kind)).to(exact)  # (G, B, d)
        if row_weights is not None:
            rows = row_weights[:, None].to(exact)
            towards, context = towards * rows, context * rows
        of_contexts.append(towards)
        of_tables.append(torch.bmm(moved.mT, context.to(kind)).to(exact))  # (G, N, d)
    return [*of_contexts, *of_tables]


def _cross_entropies(logs: Tensor, target: StackedTarget) -> Tensor:
    """(K, B, N) log-probabilities -> (K,) weighted means over the queries."""
    plan, smoothing, exact = target.plan, target.smoothing, logs.dtype
    known = logs.flatten(1).index_select(1, plan.answers) @ plan.answer_weights.to(exact)
    if not smoothing:
        return -known
    return (smoothing - 1) * known - logs.sum(dim=2) @ plan.row_weights.to(exact) * (smoothing / logs.shape[2])


def _less_target(probabilities: Tensor, target: StackedTarget) -> Tensor:
    """In place: probabilities (K, B, N) less the smoothed target distribution."""
    if target.smoothing:
        probabilities -= target.smoothing / probabilities.shape[2]
    shares = (target.smoothing - 1) * target.plan.answer_shares.to(probabilities.dtype)
    probabilities.flatten(1).index_add_(1, target.plan.answers, shares.expand(len(probabilities), -1))
    return probabilities


def _combined(values: Tensor, weights: Tensor, target: StackedTarget) -> tuple[Tensor, Tensor | None]:
    """The weighted mean of the branches, renormalised for the candidates that lack a modality.

    Args:
        values: (M, B, N), log-probabilities or probabilities.
        weights: (B, M).
        target: names those candidates.

    Returns:
        (B, N), and (M, B, c) by how much the share of a branch in those candidates differs from its weight.
    """
    mixed = torch.bmm(weights[:, None], values.transpose(0, 1))[:, 0]  # (B, N)
    if target.columns is None or target.usable is None:
        return mixed, None
    shares = renormalised(weights, target.usable)  # (M, B, c)
    mixed.index_copy_(1, target.columns, (shares * values.index_select(2, target.columns)).sum(dim=0))
    return mixed, shares - weights.T[:, :, None]


def _mixture_loss(mixed: Tensor, answers: Tensor, labels: Tensor, each: float) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of a mixture of probabilities.

    Args:
        mixed: (B, N) probabilities.
        answers: (P,) positions in the flat (B * N) matrix.
        labels: (P,) negative labels of the answers, without `each`.
        each: what the label of every entity is besides.

    Returns:
        The loss summed over the decisions, and its gradient (B, N).
    """
    clipped = mixed.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    log_no = torch.log1p(-clipped)
    gap = log_no - clipped.log()
    loss = -(gap.flatten().index_select(0, answers) @ labels) - log_no.sum()
    slope = clipped - each
    if each:
        loss = loss + gap.sum() * each
    slope.flatten().index_add_(0, answers, labels)
    return loss, slope / (clipped * (1 - clipped)) * (mixed == clipped)  # 0 where it was clipped
