"""1-N losses of a dense `(B, N)` score matrix. Only the indices of the answers are read: the 0/1 labels are never built.

They are the reference that the one-pass forms in `softmax.py` and `binary.py` are tested against, and what `autograd.py` uses.

Shapes: `B` queries, `N` entities, `P` known answers of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.losses.target import Positives

LEAST_PROBABILITY = 1e-7  # probabilities are kept this far from 0 and 1, where the logarithm has no finite gradient


def softmax_loss(
    scores: Tensor, positives: Positives, smoothing: float, log_norm: Tensor | None = None, per_triple: bool = False
) -> Tensor:
    """Cross entropy of the softmax over all entities; the target mass is spread evenly over the known answers.

    Target: `(1 - eps) / |answers|` on each answer plus `eps / N` everywhere.

    Args:
        scores: (B, N) logits.
        positives: the P known answers.
        smoothing: eps, 0 <= eps < 1.
        log_norm: (B,) logsumexp of the scores if already known.
        per_triple: weight a query by the number of its answers, so that every training triple counts the same.

    Returns:
        Scalar, (weighted) mean over the queries, in nats.
    """
    log_norm = torch.logsumexp(scores, dim=1) if log_norm is None else log_norm  # (B,)
    surprise = log_norm - positives.expected(scores, smoothing)  # (B,)
    return (surprise * positives.counts).sum() / positives.counts.sum() if per_triple else surprise.mean()


def binary_loss(scores: Tensor, positives: Positives, smoothing: float) -> Tensor:
    """Binary cross entropy with logits against all entities, labels smoothed as in the published code:
    `y' = (1 - eps) y + 1 / N`.

    Args:
        scores: (B, N) logits.
        positives: the P known answers.
        smoothing: eps, 0 <= eps < 1; 0 also leaves out the `1 / N`.

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
    """As `binary_loss`, of probabilities (B, N): the fused prediction is a mixture of sigmoids and has no logit."""
    num_entities = probabilities.shape[1]
    clipped = probabilities.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    log_no = torch.log1p(-clipped)  # (B, N) log(1 - p)
    gap = (log_no - clipped.log())
    total = -log_no.sum() + (1 - smoothing) * gap[positives.rows, positives.tails].sum()
    if smoothing:
        total = total + gap.sum() / num_entities
    return total / probabilities.numel()
