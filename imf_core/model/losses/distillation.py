"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531, section 2) on a teacher's strongest answers.

Shapes: `B` queries, `S` answers of a query, `M` branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.decision import renormalised


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's strongest answers to each query.

    Args:
        answers: (B, S) int64 entity ids, distinct in each row.
        probabilities: (B, S) float, of the teacher among these answers; rows sum to 1.
    """

    answers: Tensor
    probabilities: Tensor

    def rows(self, queries: Tensor) -> SoftTargets:
        """The targets of some queries (b,)."""
        return SoftTargets(self.answers[queries], self.probabilities[queries])

    def moved(self, move: Callable[[Tensor], Tensor]) -> SoftTargets:
        """A copy with `move` applied to both tensors."""
        return SoftTargets(move(self.answers), move(self.probabilities))

    def softened(self, temperature: float) -> Tensor:
        """(B, S): probabilities to the power of 1 / temperature, normalised again."""
        if temperature == 1.0:
            return self.probabilities
        least = torch.finfo(self.probabilities.dtype).tiny
        return torch.softmax(self.probabilities.clamp_min(least).log() / temperature, dim=1)


def distillation_loss(
    scores: Sequence[Tensor], soft: SoftTargets, weights: Tensor, usable: Sequence[Tensor | None], temperature: float,
    loss: str = "ce",
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's to the student's distribution over the teacher's answers.

    It is the mean over the branches and, where there are several, their combination. Only the teacher's answers enter: the loss
    on the known answers, which goes over all entities, pushes down all others.

    Args:
        scores: M tensors (B, S), raw scores of the answers in each branch.
        soft: the teacher's answers.
        weights: (B, M) decision weights, constant here.
        usable: per branch (B, S) bool, which answers have its modality; None where all have.
        temperature: T > 0; both sides are softened by it, and the loss multiplied by T^2, which keeps its gradients' size.
        loss: `ce` or `bce`: the branches give probabilities by softmax or by sigmoid (model section 5).

    Returns:
        Scalar >= 0, mean over the queries, in nats.
    """
    target = soft.softened(temperature).to(scores[0].dtype)
    logs = [functional.logsigmoid(score) if loss == "bce" else score for score in scores]
    students = [torch.log_softmax(log / temperature, dim=1) for log in logs]  # (B, S) each
    if len(logs) > 1:
        ones = torch.ones_like(soft.answers, dtype=torch.bool)
        share = renormalised(weights, torch.stack([ones if mask is None else mask for mask in usable]))  # (M, B, S)
        if loss == "bce":
            combined = torch.logsumexp(torch.stack(logs) + share.log(), dim=0)
        else:
            combined = (share * torch.stack([torch.log_softmax(log, dim=1) for log in logs])).sum(dim=0)
        students.append(torch.log_softmax(combined / temperature, dim=1))
    entropy = torch.special.entr(target).sum(dim=1)  # (B,)
    divergences = [-(target * student).sum(dim=1) - entropy for student in students]
    return temperature**2 * torch.stack(divergences).mean()
