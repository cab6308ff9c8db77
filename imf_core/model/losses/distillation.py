"""What a teacher holds likely, as a target: knowledge distillation (Hinton et al. 2015, section 2) on its strongest answers.

Shapes: `B` queries, `S` answers of a query, `M` branches, `n` rows of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.losses.target import renormalised


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's strongest answers to each query.

    Args:
        answers: (B, S) int64 entity ids, distinct in each row.
        probabilities: (B, S) float, of the teacher among these answers; rows sum to 1.
    """

    answers: Tensor
    probabilities: Tensor

    def rows(self, chosen: Tensor) -> SoftTargets:
        """The targets of some queries."""
        return SoftTargets(self.answers[chosen], self.probabilities[chosen])

    def moved(self, move: Callable[[Tensor], Tensor]) -> SoftTargets:
        """The same with both tensors moved."""
        return SoftTargets(move(self.answers), move(self.probabilities))

    def softened(self, temperature: float) -> Tensor:
        """(B, S): probabilities to the power of 1 / temperature, normalised again."""
        if temperature == 1.0:
            return self.probabilities
        least = torch.finfo(self.probabilities.dtype).tiny
        return torch.softmax(self.probabilities.clamp_min(least).log() / temperature, dim=1)


def soft_loss(
    scores: Sequence[Tensor], soft: SoftTargets, weights: Tensor, usable: Sequence[Tensor | None], temperature: float,
    loss: str = "ce",
) -> Tensor:
    """How far the student's order among the teacher's answers is from the teacher's: Kullback-Leibler divergence, nats.

    Each branch is compared, and, where there are several, the decision; the mean of these counts. Only the teacher's answers
    enter: all others are pushed down by the loss on the known answers, which goes over all entities.

    Args:
        scores: M tensors (B, S), raw scores of the answers in each branch.
        soft: the teacher's answers.
        weights: (B, M) decision weights, constant here.
        usable: per branch (B, S) bool, which answers have its modality; None where all have.
        loss: `ce` or `bce`: the branches give probabilities by softmax or by sigmoid (model section 5).
        temperature: T > 0; both sides are softened by it, and the loss multiplied by T^2, which keeps its gradients' size.

    Returns:
        Scalar >= 0, mean over the queries.
    """
    target = soft.softened(temperature).to(scores[0].dtype)
    logs = [functional.logsigmoid(score) if loss == "bce" else score for score in scores]
    students = [torch.log_softmax(log / temperature, dim=1) for log in logs]
    if len(logs) > 1:
        ones = torch.ones_like(soft.answers, dtype=torch.bool)
        share = renormalised(weights, torch.stack([ones if mask is None else mask for mask in usable]))
        if loss == "bce":
            decided = torch.logsumexp(torch.stack(logs) + share.log(), dim=0)
        else:
            decided = (share * torch.stack([torch.log_softmax(log, dim=1) for log in logs])).sum(dim=0)
        students.append(torch.log_softmax(decided / temperature, dim=1))
    entropy = torch.special.entr(target).sum(dim=1)
    apart = [-(target * student).sum(dim=1) - entropy for student in students]
    return temperature**2 * torch.stack(apart).mean()
