"""1-N losses estimated from sampled entities, for graphs where the scores of all entities are more than a step can pay.

One uniform sample without replacement serves all queries of a batch. A query's known answers `A` are always scored, so only
the sum over the other entities is estimated, from those sampled entities `K` that are no answers of it:

    sum over all N of f  ~  sum over A of f  +  (N - |A|) / |K minus A| * sum over (K minus A) of f

The estimate is unbiased for any sum, hence for the partition function of a softmax and for the whole binary loss; the softmax
loss, a logarithm of it, comes out slightly low. With all N sampled both are the full losses. The tables hold only
the entities that the batch touches.

Shapes: `B` queries, `N` entities of the graph, `n` touched ones (rows of the tables), `k` sampled, `P` positives of the batch,
`M` branches, `d` width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from imf_core.model.decision import combine, present_weights
from imf_core.model.losses.plain_forms import Positives
from imf_core.model.losses.sample import Sample
from imf_core.model.losses.target import JointTarget

ScoreRows = Callable[[int, Tensor, Tensor], Tensor]  # (branch, contexts, rows of its table) -> scores

_AT_A_TIME = 2**18  # scores of a branch that a CPU works on at a time
_ON_GPU = 2**26
_LEAST = 1e-7  # as in `binary_loss_of_probabilities`


def sampled_losses(
    contexts: Sequence[Tensor],
    tables: Sequence[Tensor],
    target: JointTarget,
    loss: Literal["ce", "bce"],
    negatives: Tensor,
    num_entities: int,
    score_block: ScoreRows,
    score_pairs: ScoreRows,
    parameters: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Sum of the branches' losses and of the decision's, estimated; the full forms are `joint_softmax_loss` and
    `joint_binary_loss`.

    The gradients are autograd's. `precision` and `budget` of the target are not looked at: in what type the products are
    computed is up to the two functions, their scores are turned into the type of `target.weights`.

    Args:
        contexts: M tensors (B, d).
        tables: M tensors (n, d), the touched entities only.
        target: answers and weights. `positives.tails` are rows of the tables, `masks` are (n,); the positives are *all* known
            answers of each query, each once.
        loss: `ce`: softmax; `bce`: binary.
        negatives: (k,) int64, rows of the entities drawn uniformly from all N, each once; answers may be among them.
        num_entities: N.
        score_block: (branch, context (B, d), rows (k, d)) -> (B, k), as `Scorer.score`.
        score_pairs: (branch, context (P, d), rows (P, d)) -> (P,), the same for row i of both.
        parameters: trained numbers that the two functions use.

    Returns:
        The differentiable total, and its parts, for display: M branches, then the decision if it counts.
    """
    exact = target.weights.dtype
    whole = target.positives
    order = torch.argsort(whole.rows, stable=True)
    positives = Positives(whole.rows[order], whole.tails[order], whole.counts.to(exact))
    made = _Losses(
        replace(target, positives=positives, weights=target.weights.detach()), loss, negatives, len(tables[0]), num_entities,
        score_block, score_pairs,
    )
    drawn = [table.index_select(0, negatives) for table in tables]
    answers = [table.index_select(0, positives.tails) for table in tables]
    total, parts = _Blockwise.apply(made, len(tables), *contexts, *drawn, *answers, *parameters)
    return total, parts


@dataclass(frozen=True)
class _Losses:
    """The losses of a block of queries; what it is made of is described at `sampled_losses`."""

    target: JointTarget
    loss: Literal["ce", "bce"]
    negatives: Tensor
    num_rows: int
    num_entities: int
    score_block: ScoreRows
    score_pairs: ScoreRows

    def blocks(self) -> list[tuple[slice, slice]]:
        """Queries, and their answers, of which the scores of one branch stay in the cache."""
        queries, rows = len(self.target.weights), self.target.positives.rows
        step = max(1, (_AT_A_TIME if rows.device.type == "cpu" else _ON_GPU) // len(self.negatives))
        lows = [*range(0, queries, step), queries]
        cuts = torch.searchsorted(rows, torch.tensor(lows, device=rows.device)).tolist()
        return [(slice(*both), slice(*cut)) for both, cut in zip(pairwise(lows), pairwise(cuts), strict=True)]

    def of(self, queries: slice, contexts: Sequence[Tensor], drawn: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
        """Share of a block in each of the losses.

        Args:
            queries: which.
            contexts: M tensors (b, d). drawn: M tensors (k, d). answers: M tensors (p, d), of the block's positives.
        """
        block = self.target.block(queries.start, queries.stop)
        exact, positives = block.weights.dtype, block.positives
        sample = Sample.of(self.negatives, positives, self.num_rows, self.num_entities)
        pairs, blocks = [], []
        for branch, (context, rows, own) in enumerate(zip(contexts, drawn, answers, strict=True)):
            pairs.append(self.score_pairs(branch, context.index_select(0, positives.rows), own).to(exact))
            blocks.append(self.score_block(branch, context, rows).to(exact))
        joint = len(contexts) > 1 and block.joint_weight > 0
        decision = _Decision(sample, block.weights, block.masks, self.negatives) if joint else None
        losses = (_softmax_losses if self.loss == "ce" else _binary_losses)(sample, pairs, blocks, block, decision)
        even = len(block.weights) / len(self.target.weights)
        return torch.stack(losses) * (self.target.row_weights()[queries].sum() if self.loss == "ce" else even)


class _Blockwise(torch.autograd.Function):
    """Autograd, one block of queries after the other: what it keeps and passes over is that of one block."""

    @staticmethod
    def forward(ctx: Any, losses: _Losses, count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts, sampled rows, rows of the answers, parameters -> total and parts; the gradients are formed here."""
        contexts, drawn, answers = (tensors[place * count : (place + 1) * count] for place in range(3))
        parameters = tensors[3 * count :]
        grads = [torch.zeros_like(tensor) for tensor in tensors]
        parts: Tensor | None = None
        fixed = [_leaf(rows) for rows in drawn]
        for queries, pairs in losses.blocks():
            own = [_leaf(context[queries]) for context in contexts], [_leaf(rows[pairs]) for rows in answers]
            with torch.enable_grad():
                found = losses.of(queries, own[0], fixed, own[1])
                total = found[:count].sum() + losses.target.joint_weight * found[count:].sum()
            leaves = [*own[0], *fixed, *own[1], *parameters]
            places = [*(grad[queries] for grad in grads[:count]), *grads[count : 2 * count],
                      *(grad[pairs] for grad in grads[2 * count : 3 * count]), *grads[3 * count :]]
            for place, grad in zip(places, torch.autograd.grad(total, leaves, allow_unused=True), strict=True):
                if grad is not None:
                    place += grad
            parts = found.detach() if parts is None else parts + found.detach()
        assert parts is not None
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(parts)
        return parts[:count].sum() + losses.target.joint_weight * parts[count:].sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(grad * grad_total for grad in ctx.saved_tensors))


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


class _Decision:
    """Combines the branches' values for the answers and for the sampled entities.

    Args:
        sample: who they are.
        weights: (B, M).
        masks: per branch (n,) bool or None.
        negatives: (k,) rows of the tables.
    """

    def __init__(self, sample: Sample, weights: Tensor, masks: Sequence[Tensor | None], negatives: Tensor) -> None:
        rows, tails = sample.positives.rows, sample.positives.tails
        # A pair has its own candidate, so what the candidate lacks is taken out of its weights.
        self.shares = present_weights(weights[rows], [None if mask is None else mask[tails] for mask in masks])
        self.weights, self.masks = weights, [None if mask is None else mask[negatives] for mask in masks]

    def __call__(self, pairs: Sequence[Tensor], blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """M tensors (P,), M tensors (B, k) -> (P,), (B, k)."""
        return (torch.stack(list(pairs), dim=1) * self.shares).sum(dim=1), combine(blocks, self.weights, self.masks)


def _softmax_losses(
    sample: Sample, pairs: Sequence[Tensor], blocks: Sequence[Tensor], target: JointTarget, decision: _Decision | None
) -> list[Tensor]:
    norms = [sample.log_norm(*both) for both in zip(pairs, blocks, strict=True)]
    losses = [_softmax_loss(sample, *each, target) for each in zip(pairs, blocks, norms, strict=True)]
    if decision is not None:
        rows = sample.positives.rows
        decided = decision(
            [scores - norm[rows] for scores, norm in zip(pairs, norms, strict=True)],
            [scores - norm[:, None] for scores, norm in zip(blocks, norms, strict=True)],
        )
        losses.append(_softmax_loss(sample, *decided, sample.log_norm(*decided), target))
    return losses


def _softmax_loss(sample: Sample, pairs: Tensor, block: Tensor, log_norm: Tensor, target: JointTarget) -> Tensor:
    """`softmax_loss` of scores (P,) and (B, k) with normaliser (B,)."""
    smoothing = target.smoothing
    expected = sample.over_answers(pairs) / sample.positives.counts
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * sample.over_all(pairs, block) / sample.num_entities
    return (log_norm - expected) @ target.row_weights().to(expected.dtype)


def _binary_losses(
    sample: Sample, pairs: Sequence[Tensor], blocks: Sequence[Tensor], target: JointTarget, decision: _Decision | None
) -> list[Tensor]:
    losses = [_binary_loss(sample, *both, target.smoothing) for both in zip(pairs, blocks, strict=True)]
    if decision is not None:
        decided = decision([scores.sigmoid() for scores in pairs], [scores.sigmoid() for scores in blocks])
        losses.append(_binary_loss_of_probabilities(sample, *decided, target.smoothing))
    return losses


def _binary_loss(sample: Sample, pairs: Tensor, block: Tensor, smoothing: float) -> Tensor:
    """`binary_loss` of scores (P,) and (B, k)."""
    total = sample.over_all(functional.softplus(pairs), functional.softplus(block)).sum() - (1 - smoothing) * pairs.sum()
    if smoothing:
        total = total - sample.over_all(pairs, block).sum() / sample.num_entities
    return total / (len(block) * sample.num_entities)


def _binary_loss_of_probabilities(sample: Sample, pairs: Tensor, block: Tensor, smoothing: float) -> Tensor:
    """`binary_loss_of_probabilities` of probabilities (P,) and (B, k)."""
    pairs, block = (probabilities.clamp(_LEAST, 1 - _LEAST) for probabilities in (pairs, block))
    no_pairs, no_block = torch.log1p(-pairs), torch.log1p(-block)
    gap = no_pairs - pairs.log()
    total = (1 - smoothing) * gap.sum() - sample.over_all(no_pairs, no_block).sum()
    if smoothing:
        total = total + sample.over_all(gap, no_block - block.log()).sum() / sample.num_entities
    return total / (len(block) * sample.num_entities)
