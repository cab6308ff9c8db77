"""1-N losses estimated from sampled entities, for graphs where the scores of all entities are more than a step can pay.

One uniform sample without replacement serves all queries of a batch. A query's known answers `A` are always scored, so only
the sum over the other entities is estimated, from those sampled entities `K` that are no answers of it:

    sum over all N of f  ~  sum over A of f  +  (N - |A|) / |K minus A| * sum over (K minus A) of f

The estimate is unbiased for any sum, hence for the partition function of a softmax and for the whole binary loss; the softmax
loss, a logarithm of it, comes out slightly low. With all N sampled both are the full losses. The tables hold only
the entities that the batch touches.

Shapes: `B` queries, `b` of a block, `N` entities of the graph, `n` entities that the batch touches (rows of the tables), `k`
sampled ones, `P` known answers of the batch, `p` of a block, `M` branches, `d` width.
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
from imf_core.model.losses.dense import LEAST_PROBABILITY
from imf_core.model.losses.negatives import NegativeSample
from imf_core.model.losses.target import JointTarget, Positives

ScoreRows = Callable[[int, Tensor, Tensor], Tensor]  # (branch, contexts, rows of its table) -> scores

_AT_A_TIME = 2**18  # scores of a branch that a CPU works on at a time
_ON_GPU = 2**26


def joint_sampled_loss(
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
    """Estimate of `joint_softmax_loss` or `joint_binary_loss`.

    The gradients are autograd's. `precision` and `budget` of the target are ignored: the two functions choose the type of the
    products, and their scores are converted to the type of `target.weights`.

    Args:
        contexts: M tensors (B, d).
        tables: M tensors (n, d), of the touched entities only.
        target: answers and weights. `positives.tails` are rows of the tables, `masks` are (n,); the positives are *all* known
            answers of each query, each once (under `ce` a part of them will do: the others are candidates then).
        loss: `ce` (softmax) or `bce` (binary).
        negatives: (k,) int64, rows of the entities that stand for all N, each once; answers may be among them.
        num_entities: N.
        score_block: (branch, context (B, d), rows (k, d)) -> (B, k), as `Scorer.score`.
        score_pairs: (branch, context (P, d), rows (P, d)) -> (P,), the same for row i of both.
        parameters: trained tensors that the two functions use.

    Returns:
        As `joint_softmax_loss`.
    """
    exact = target.weights.dtype
    given = target.positives
    order = torch.argsort(given.rows, stable=True)
    positives = Positives(given.rows[order], given.tails[order], given.counts.to(exact))
    losses = _Losses(
        replace(target, positives=positives, weights=target.weights.detach()), loss, negatives, len(tables[0]), num_entities,
        score_block, score_pairs,
    )
    drawn = [table.index_select(0, negatives) for table in tables]  # M x (k, d)
    answers = [table.index_select(0, positives.tails) for table in tables]  # M x (P, d)
    total, parts = _Blockwise.apply(losses, len(tables), *contexts, *drawn, *answers, *parameters)
    return total, parts


@dataclass(frozen=True)
class _Losses:
    """The losses of a block of queries; the fields are the arguments of `joint_sampled_loss`."""

    target: JointTarget
    loss: Literal["ce", "bce"]
    negatives: Tensor
    num_rows: int
    num_entities: int
    score_block: ScoreRows
    score_pairs: ScoreRows

    def blocks(self) -> list[tuple[slice, slice]]:
        """Slices of the B queries, and of their P answers, so that the scores of one branch stay in the cache."""
        queries, rows = len(self.target.weights), self.target.positives.rows
        step = max(1, (_AT_A_TIME if rows.device.type == "cpu" else _ON_GPU) // len(self.negatives))
        lows = [*range(0, queries, step), queries]
        cuts = torch.searchsorted(rows, torch.tensor(lows, device=rows.device)).tolist()
        return [(slice(*both), slice(*cut)) for both, cut in zip(pairwise(lows), pairwise(cuts), strict=True)]

    def of(self, queries: slice, contexts: Sequence[Tensor], drawn: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
        """Contribution of a block to each of the losses.

        Args:
            queries: which of the B.
            contexts: M tensors (b, d).
            drawn: M tensors (k, d), rows of the sampled entities.
            answers: M tensors (p, d), rows of the block's known answers.

        Returns:
            (M,) or (M + 1,).
        """
        block = self.target.block(queries.start, queries.stop)
        exact, positives = block.weights.dtype, block.positives
        sample = NegativeSample.of(self.negatives, positives, self.num_rows, self.num_entities)
        pairs, blocks = [], []
        for branch, (context, rows, answer) in enumerate(zip(contexts, drawn, answers, strict=True)):
            pairs.append(self.score_pairs(branch, context.index_select(0, positives.rows), answer).to(exact))  # (p,)
            blocks.append(self.score_block(branch, context, rows).to(exact))  # (b, k)
        joint = len(contexts) > 1 and block.joint_weight > 0
        combine_branches = _Combination(sample, block.weights, block.masks, self.negatives) if joint else None
        losses = (_softmax_losses if self.loss == "ce" else _binary_losses)(sample, pairs, blocks, block, combine_branches)
        even = len(block.weights) / len(self.target.weights)
        return torch.stack(losses) * (self.target.row_weights()[queries].sum() if self.loss == "ce" else even)


class _Blockwise(torch.autograd.Function):
    """Autograd over one block of queries after the other, so that it keeps the scores of one block only."""

    @staticmethod
    def forward(ctx: Any, losses: _Losses, count: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """M contexts, sampled rows and rows of the answers, parameters -> total and parts; the gradients are formed here."""
        contexts, drawn, answers = (tensors[kind * count : (kind + 1) * count] for kind in range(3))
        parameters = tensors[3 * count :]
        needed = ctx.needs_input_grad[2:]  # the rows of a frozen table need none
        grads = [torch.zeros_like(tensor) if need else None for tensor, need in zip(tensors, needed, strict=True)]
        parts: Tensor | None = None
        sampled = _leaves(drawn, needed[count : 2 * count])
        for queries, pairs in losses.blocks():
            asked = _leaves([context[queries] for context in contexts], needed[:count])
            answered = _leaves([rows[pairs] for rows in answers], needed[2 * count : 3 * count])
            with torch.enable_grad():
                part = losses.of(queries, asked, sampled, answered)
                total = part[:count].sum() + losses.target.joint_weight * part[count:].sum()
            leaves = [*asked, *sampled, *answered, *parameters]
            rows_of = [queries] * count + [...] * count + [pairs] * count + [...] * len(parameters)
            sums = [None if grad is None else grad[rows] for grad, rows in zip(grads, rows_of, strict=True)]  # views
            wanted = [leaf for leaf, grad in zip(leaves, sums, strict=True) if grad is not None]
            found = iter(torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ())
            for own in sums:
                if own is not None and (more := next(found)) is not None:
                    own += more
            parts = part.detach() if parts is None else parts + part.detach()
        assert parts is not None
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(parts)
        return parts[:count].sum() + losses.target.joint_weight * parts[count:].sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(None if grad is None else grad * grad_total for grad in ctx.saved_tensors))


def _leaves(values: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    return [value.detach().requires_grad_(need) for value, need in zip(values, needed, strict=True)]


class _Combination:
    """Combines the branches' values for the answers and for the sampled entities.

    Args:
        sample: which entities they are.
        weights: (B, M).
        masks: per branch (n,) bool or None.
        negatives: (k,) rows of the tables.
    """

    def __init__(self, sample: NegativeSample, weights: Tensor, masks: Sequence[Tensor | None], negatives: Tensor) -> None:
        rows, tails = sample.positives.rows, sample.positives.tails
        # Each pair has one candidate, so the modalities that it lacks can be taken out of the pair's weights (P, M).
        self.shares = present_weights(weights[rows], [None if mask is None else mask[tails] for mask in masks])
        self.weights, self.masks = weights, [None if mask is None else mask[negatives] for mask in masks]

    def __call__(self, pairs: Sequence[Tensor], blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """M tensors (P,), M tensors (B, k) -> (P,), (B, k)."""
        return (torch.stack(list(pairs), dim=1) * self.shares).sum(dim=1), combine(blocks, self.weights, self.masks)


def _softmax_losses(
    sample: NegativeSample, pairs: Sequence[Tensor], blocks: Sequence[Tensor], target: JointTarget,
    combine_branches: _Combination | None,
) -> list[Tensor]:
    """M or M + 1 scalars from M tensors (P,) and M tensors (B, k) of scores; the same for `_binary_losses`."""
    norms = [sample.log_norm(*both) for both in zip(pairs, blocks, strict=True)]  # M x (B,)
    losses = [_softmax_loss(sample, *each, target) for each in zip(pairs, blocks, norms, strict=True)]
    if combine_branches is not None:
        rows = sample.positives.rows
        combined = combine_branches(
            [scores - norm[rows] for scores, norm in zip(pairs, norms, strict=True)],
            [scores - norm[:, None] for scores, norm in zip(blocks, norms, strict=True)],
        )
        losses.append(_softmax_loss(sample, *combined, sample.log_norm(*combined), target))
    return losses


def _softmax_loss(sample: NegativeSample, pairs: Tensor, block: Tensor, log_norm: Tensor, target: JointTarget) -> Tensor:
    """`softmax_loss` of scores (P,) and (B, k) with normaliser (B,)."""
    smoothing = target.smoothing
    expected = sample.over_answers(pairs) / sample.positives.counts  # (B,)
    if smoothing:
        expected = (1 - smoothing) * expected + smoothing * sample.over_all(pairs, block) / sample.num_entities
    return (log_norm - expected) @ target.row_weights().to(expected.dtype)


def _binary_losses(
    sample: NegativeSample, pairs: Sequence[Tensor], blocks: Sequence[Tensor], target: JointTarget,
    combine_branches: _Combination | None,
) -> list[Tensor]:
    losses = [_binary_loss(sample, *both, target.smoothing) for both in zip(pairs, blocks, strict=True)]
    if combine_branches is not None:
        combined = combine_branches([scores.sigmoid() for scores in pairs], [scores.sigmoid() for scores in blocks])
        losses.append(_binary_loss_of_probabilities(sample, *combined, target.smoothing))
    return losses


def _binary_loss(sample: NegativeSample, pairs: Tensor, block: Tensor, smoothing: float) -> Tensor:
    """`binary_loss` of scores (P,) and (B, k)."""
    total = sample.over_all(functional.softplus(pairs), functional.softplus(block)).sum() - (1 - smoothing) * pairs.sum()
    if smoothing:
        total = total - sample.over_all(pairs, block).sum() / sample.num_entities
    return total / (len(block) * sample.num_entities)


def _binary_loss_of_probabilities(sample: NegativeSample, pairs: Tensor, block: Tensor, smoothing: float) -> Tensor:
    """`binary_loss_of_probabilities` of probabilities (P,) and (B, k)."""
    pairs, block = (probabilities.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY) for probabilities in (pairs, block))
    no_pairs, no_block = torch.log1p(-pairs), torch.log1p(-block)
    gap = no_pairs - pairs.log()
    total = (1 - smoothing) * gap.sum() - sample.over_all(no_pairs, no_block).sum()
    if smoothing:
        total = total + sample.over_all(gap, no_block - block.log()).sum() / sample.num_entities
    return total / (len(block) * sample.num_entities)
