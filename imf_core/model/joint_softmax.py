"""Softmax losses of all branches and of their decision, forward and backward in one pass.

Autograd through `logsumexp`, the weighting and a second `logsumexp` reads and writes the `(B, N)` scores about forty times
a branch, which costs more than the matrix products. Here each branch's scores are touched five times: the gradient of a
softmax loss is known once its probabilities are, so it is formed in place of them and multiplied on at once.

Shapes: `B` queries, `N` entities, `M` branches, `d` width, `P` positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imf_core.model.losses import Positives


@dataclass(frozen=True)
class JointTarget:
    """What the branches are trained towards.

    Args:
        positives: known answers of the B queries.
        smoothing: eps of the label smoothing.
        per_triple: weight a query by its number of answers.
        joint_weight: factor of the loss on the decision; 0 leaves it out.
        weights: (B, M) decision weights, constant here; 0 where the head lacks the modality.
        masks: per branch (N,) bool, or None where every entity has the modality.
        precision: `fp32`, or `bf16` for the products with the (N, d) tables; sums and softmax stay in fp32.
    """

    positives: Positives
    smoothing: float
    per_triple: bool
    joint_weight: float
    weights: Tensor
    masks: Sequence[Tensor | None]
    precision: str = "fp32"

    def row_weights(self) -> Tensor:
        """(B,) weight of each query in the mean; they sum to 1."""
        counts = self.positives.counts
        return counts / counts.sum() if self.per_triple else torch.full_like(counts, 1.0 / len(counts))


def joint_softmax_loss(contexts: Sequence[Tensor], tables: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
    """Sum of the branches' softmax losses and of the decision's.

    Equals `softmax_loss` of each `c_m @ E_m^T`, plus `joint_weight` times that of `decide` over them.

    Args:
        contexts: M tensors (B, d).
        tables: M tensors (N, d).
        target: answers and weights.

    Returns:
        The differentiable total, and the M + 1 parts (branches, then the decision), for display.
    """
    total, parts = _JointSoftmax.apply(target, *contexts, *tables)
    return total, parts


class _JointSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: JointTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts, then tables -> total and parts; the gradients are formed here and only scaled in `backward`."""
        count = len(tensors) // 2
        kind = torch.bfloat16 if target.precision == "bf16" else tensors[0].dtype
        contexts, tables = ([tensor.to(kind) for tensor in part] for part in (tensors[:count], tensors[count:]))
        rows = target.row_weights()
        decision = _Decision(target, tables[0].shape[0]) if target.joint_weight > 0 and count > 1 else None
        probabilities, parts = [], []
        for position, (context, table) in enumerate(zip(contexts, tables, strict=True)):
            scores = (context @ table.T).to(rows.dtype)
            probability = torch.softmax(scores, dim=1)
            norm = _log_norm(scores, probability)
            parts.append(_loss(scores, norm, rows, target))
            if decision is not None:
                decision.add(position, scores, norm)
            probabilities.append(probability)
        total = torch.stack(parts).sum()
        if decision is not None:
            parts.append(decision.finish(rows))
            total = total + target.joint_weight * parts[-1]
        grads_context, grads_table = [], []
        for position, (context, table) in enumerate(zip(contexts, tables, strict=True)):
            gradient = probabilities[position]  # becomes the gradient of the branch's scores, in place
            _subtract_target(gradient, rows, target, rows if decision is None else rows - decision.leak(position))
            if decision is not None:
                decision.add_gradient(position, gradient)
            gradient = gradient.to(kind)
            grads_context.append((gradient @ table).to(rows.dtype))
            grads_table.append((gradient.T @ context).to(rows.dtype))
        ctx.save_for_backward(*grads_context, *grads_table)
        values = torch.stack(parts)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(grad * grad_total for grad in ctx.saved_tensors))


class _Decision:
    """The decided scores `sum_m share_m (s_m - logsumexp(s_m))` and their gradient.

    The share of a branch is its weight a_m, except in the few *partial* columns, candidates that lack a modality: there the
    weights of the others are renormalised. Only these columns are computed by candidate.
    """

    def __init__(self, target: JointTarget, num_entities: int) -> None:
        self.target, weights = target, target.weights
        self.scores = weights.new_zeros(len(weights), num_entities)
        incomplete = [mask for mask in target.masks if mask is not None]
        self.partial = torch.nonzero(~torch.stack(incomplete).all(dim=0))[:, 0] if incomplete else None
        if self.partial is not None:
            columns = self.partial
            usable = torch.stack([
                weights.new_ones(len(columns)) if mask is None else mask[columns].to(weights.dtype) for mask in target.masks
            ])
            shares = weights.T[:, :, None] * usable[:, None, :]  # (M, B, K)
            self.shares = shares / shares.sum(dim=0).clamp_min(1e-6)
            self.at_partial = weights.new_zeros(len(weights), len(columns))

    def add(self, position: int, scores: Tensor, norm: Tensor) -> None:
        """Take in the raw scores (B, N) of a branch and their logsumexp (B,)."""
        weight = self.target.weights[:, position]
        self.scores.addcmul_(scores, weight[:, None])
        if self.partial is not None:
            # Elsewhere the logsumexp shifts whole rows, which no softmax sees; here its share differs by candidate.
            self.scores.sub_((weight * norm)[:, None])
            self.at_partial += self.shares[position] * (scores[:, self.partial] - norm[:, None])

    def finish(self, rows: Tensor) -> Tensor:
        """Loss of the decision; its gradient is kept."""
        if self.partial is not None:
            self.scores[:, self.partial] = self.at_partial
        self.gradient = torch.softmax(self.scores, dim=1)
        loss = _loss(self.scores, _log_norm(self.scores, self.gradient), rows, self.target)
        factor = rows * self.target.joint_weight
        _subtract_target(self.gradient, factor, self.target, factor)
        if self.partial is not None:
            self.at_partial = self.gradient[:, self.partial]
        del self.scores
        return loss

    def leak(self, position: int) -> Tensor:
        """(B,) what flows back through the branch's logsumexp: zero but for the partial columns."""
        if self.partial is None:
            return torch.zeros_like(self.target.weights[:, 0])
        return (self.at_partial * (self.shares[position] - self.target.weights[:, position, None])).sum(dim=1)

    def add_gradient(self, position: int, gradient: Tensor) -> None:
        """Add the decision's part to the gradient of a branch's scores."""
        weight = self.target.weights[:, position, None]
        gradient.addcmul_(self.gradient, weight)
        if self.partial is not None:
            gradient[:, self.partial] += self.at_partial * (self.shares[position] - weight)


def _log_norm(scores: Tensor, probability: Tensor) -> Tensor:
    """(B,) logsumexp of the scores, from their softmax: no second pass of exponentials."""
    return scores.amax(dim=1) - probability.amax(dim=1).log()


def _loss(scores: Tensor, norm: Tensor, rows: Tensor, target: JointTarget) -> Tensor:
    return ((norm - target.positives.expected(scores, target.smoothing)) * rows).sum()


def _subtract_target(probability: Tensor, rows: Tensor, target: JointTarget, factor: Tensor) -> None:
    """In place: `factor * probability - rows * target distribution`."""
    probability.mul_(factor[:, None])
    if target.smoothing:
        probability.sub_((rows * (target.smoothing / probability.shape[1]))[:, None])
    positives = target.positives
    share = (rows * (target.smoothing - 1) / positives.counts)[positives.rows]
    probability.index_put_((positives.rows, positives.tails), share, accumulate=True)
