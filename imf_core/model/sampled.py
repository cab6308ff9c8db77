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
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.decision import combine, present_weights
from imf_core.model.losses import Positives
from imf_core.model.target import JointTarget

ScoreRows = Callable[[int, Tensor, Tensor], Tensor]  # (branch, contexts, rows of its table) -> scores

_LEAST = 1e-7  # as in `binary_loss_of_probabilities`


@dataclass(frozen=True)
class Sample:
    """The sampled entities as each query sees them. Values of the answers are (P,), of the sampled entities (B, k).

    Args:
        positives: known answers of the B queries, each once; `tails` are rows of the tables.
        num_entities: N.
        hidden: (B, k) bool, the sampled entity is an answer of the query. All False where the sample holds nothing else: that
            row's factor is 0, and older versions of PyTorch make NaN of the gradient of a row that is masked throughout.
        factors: (B,) number of entities that each sampled one stands for; 0 where all of them are answers.
    """

    positives: Positives
    num_entities: int
    hidden: Tensor
    factors: Tensor

    @classmethod
    def of(cls, negatives: Tensor, positives: Positives, num_rows: int, num_entities: int) -> Sample:
        """Find the answers among the sampled entities.

        Args:
            negatives: (k,) int64, rows of the sampled entities in the tables, each once.
            positives: all known answers; the dtype of `counts` becomes that of `factors`.
            num_rows: n.
            num_entities: N.
        """
        counts = positives.counts
        columns = negatives.new_full((num_rows,), -1)
        columns[negatives] = torch.arange(len(negatives), device=negatives.device)
        found = columns[positives.tails]
        inside = found >= 0
        hidden = torch.zeros(len(counts), len(negatives), dtype=torch.bool, device=counts.device)
        hidden[positives.rows[inside], found[inside]] = True
        kept = len(negatives) - torch.zeros_like(counts).index_add(0, positives.rows, inside.to(counts.dtype))
        some = kept > 0
        hidden &= some[:, None]
        factors = torch.where(some, (num_entities - counts) / kept.clamp_min(1), 0.0)
        return cls(positives, num_entities, hidden, factors)

    def over_answers(self, pairs: Tensor) -> Tensor:
        """(P,) -> (B,): sum over each query's answers."""
        return torch.zeros_like(self.factors).index_add(0, self.positives.rows, pairs)

    def over_all(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): estimated sum over all N entities."""
        return self.over_answers(pairs) + self.factors * block.masked_fill(self.hidden, 0.0).sum(dim=1)

    def log_norm(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): logarithm of the estimated sum of `exp` over all N entities."""
        rows = self.positives.rows
        top = torch.full_like(self.factors, -torch.inf).scatter_reduce(0, rows, pairs.detach(), "amax")
        answers = top + self.over_answers((pairs - top[rows]).exp()).log()
        others = torch.logsumexp(block.masked_fill(self.hidden, -torch.inf), dim=1)
        return torch.logaddexp(answers, others + self.factors.log())


def sampled_losses(
    contexts: Sequence[Tensor],
    tables: Sequence[Tensor],
    target: JointTarget,
    loss: Literal["ce", "bce"],
    negatives: Tensor,
    num_entities: int,
    score_block: ScoreRows,
    score_pairs: ScoreRows,
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

    Returns:
        The differentiable total, and its parts, for display: M branches, then the decision if it counts.
    """
    weights = target.weights.detach()
    exact = weights.dtype
    positives = Positives(target.positives.rows, target.positives.tails, target.positives.counts.to(exact))
    sample = Sample.of(negatives, positives, len(tables[0]), num_entities)
    pairs, blocks = [], []
    for branch, (context, table) in enumerate(zip(contexts, tables, strict=True)):
        answering = context.index_select(0, positives.rows), table.index_select(0, positives.tails)
        pairs.append(score_pairs(branch, *answering).to(exact))
        blocks.append(score_block(branch, context, table.index_select(0, negatives)).to(exact))
    decision = _Decision(sample, weights, target.masks, negatives) if len(tables) > 1 and target.joint_weight > 0 else None
    losses = (_softmax_losses if loss == "ce" else _binary_losses)(sample, pairs, blocks, target, decision)
    parts = torch.stack(losses)
    total = parts[: len(tables)].sum() + target.joint_weight * parts[len(tables) :].sum()
    return total, parts.detach()


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


def draw_distinct(num_entities: int, count: int, device: torch.device) -> Tensor:
    """(count,) distinct entity ids, every set of them equally likely."""
    if 4 * count >= num_entities:
        return torch.randperm(num_entities, device=device)[:count]
    found = torch.empty(0, dtype=torch.long, device=device)
    while len(found) < count:  # a random part of distinct draws is as good as any other
        found = torch.randint(num_entities, (count + count // 2 + 16,), device=device).unique()
    return found[torch.randperm(len(found), device=device)[:count]]
