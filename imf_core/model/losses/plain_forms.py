"""1-N losses from the positive indices alone (the dense 0/1 labels are never built), and the contrastive constraint.

Shapes: `B` queries, `N` entities, `P` positives of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Positives:
    """The true answers of a batch.

    Args:
        rows: (P,) int64, query of each answer, 0..B-1.
        tails: (P,) int64, entity ids.
        counts: (B,) float, answers of each query, at least 1.
    """

    rows: Tensor
    tails: Tensor
    counts: Tensor

    def mean(self, scores: Tensor) -> Tensor:
        """(B, N) -> (B,): mean score of each query's answers."""
        picked = scores[self.rows, self.tails]
        return torch.zeros_like(self.counts).index_add(0, self.rows, picked) / self.counts

    def expected(self, scores: Tensor, smoothing: float) -> Tensor:
        """(B, N) -> (B,): mean score under the smoothed target, `(1 - eps) / |answers|` on each answer plus `eps / N`."""
        expected = self.mean(scores)
        return (1 - smoothing) * expected + smoothing * scores.mean(dim=1) if smoothing else expected


def softmax_loss(
    scores: Tensor, positives: Positives, smoothing: float, log_norm: Tensor | None = None, per_triple: bool = False
) -> Tensor:
    """Cross entropy of the softmax over all entities; the target mass is spread evenly over the known answers.

    Target: `(1 - eps) / |answers|` on each answer plus `eps / N` everywhere.

    Args:
        scores: (B, N) logits.
        positives: the answers.
        smoothing: eps, 0 <= eps < 1.
        log_norm: (B,) logsumexp of the scores if already known.
        per_triple: weight a query by the number of its answers, so that every training triple counts the same.

    Returns:
        Scalar, (weighted) mean over the queries, in nats.
    """
    log_norm = torch.logsumexp(scores, dim=1) if log_norm is None else log_norm
    surprise = log_norm - positives.expected(scores, smoothing)
    return (surprise * positives.counts).sum() / positives.counts.sum() if per_triple else surprise.mean()


def binary_loss(scores: Tensor, positives: Positives, smoothing: float) -> Tensor:
    """Binary cross entropy with logits against all entities, labels smoothed as published: `y' = (1 - eps) y + 1 / N`.

    Returns:
        Scalar, mean over the B x N decisions, in nats.
    """
    num_entities = scores.shape[1]
    picked = (scores[positives.rows, positives.tails]).sum() * (1 - smoothing)
    total = functional.softplus(scores).sum() - picked
    if smoothing:
        total = total - scores.sum() / num_entities
    return total / scores.numel()


def binary_loss_of_probabilities(probabilities: Tensor, positives: Positives, smoothing: float) -> Tensor:
    """As `binary_loss`, on probabilities (the fused decision is a mixture of sigmoids and has no logit)."""
    num_entities = probabilities.shape[1]
    clipped = probabilities.clamp(1e-7, 1 - 1e-7)
    log_no = torch.log1p(-clipped)
    gap = (log_no - clipped.log())
    total = -log_no.sum() + (1 - smoothing) * gap[positives.rows, positives.tails].sum()
    if smoothing:
        total = total + gap.sum() / num_entities
    return total / probabilities.numel()


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE between two views of the same nodes (model section 4).

    Args:
        first, second: (B, d) vectors of the same B nodes in two modalities; row i of both is the positive pair.
        temperature: tau > 0.

    Returns:
        Scalar in nats: ln B for unrelated views, towards 0 for aligned ones.
    """
    similarity = functional.normalize(first.float(), dim=1) @ functional.normalize(second.float(), dim=1).T / temperature
    target = torch.arange(len(similarity), device=similarity.device)
    return (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2


def contrastive_over_pairs(
    views: Sequence[Tensor], masks: Sequence[Tensor | None], nodes: Tensor, temperature: float
) -> Tensor:
    """Mean `contrastive_loss` over the pairs of views, each over the nodes that have both; 0 without such nodes.

    Args:
        views: (n, d) each.
        masks: (n,) bool for each view, or None where every node has it.
        nodes: (B,) rows of the views.
        temperature: tau > 0.
    """
    losses = []
    for (first, first_mask), (second, second_mask) in combinations(zip(views, masks, strict=True), 2):
        both = nodes
        for mask in (first_mask, second_mask):
            if mask is not None:
                both = both[mask[both]]
        if len(both) > 1:
            losses.append(contrastive_loss(first[both], second[both], temperature))
    return torch.stack(losses).mean() if losses else views[0].new_zeros(())
