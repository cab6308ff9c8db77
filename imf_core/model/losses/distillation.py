"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531, section 2) on a teacher's strongest answers.

Shapes: `B` queries, `S` answers of a query, `M` branches of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.model.decision import renormalised

Terms = Literal["every", "combined", "branches"]


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's strongest answers to each query.

    Args:
        answers: (B, S) int64 entity ids, distinct in each row.
        probabilities: (B, S) float, of the teacher among these answers; rows sum to 1.
        branches: (B, S, m) float, the same of the teacher's branches of the view of each branch in `taught`; None: not asked
            for.
        taught: positions 0..M-1 of the m branches of the student whose view the teacher scores too.
        terms: what is taught: `every`: each branch and the combination learn the teacher's decision; `combined`: the
            combination alone; `branches`: the combination learns the decision, and each branch the teacher's branches of its
            view, a term a modality as in MIND (arXiv 2502.01158), whose teachers read one modality each.
    """

    answers: Tensor
    probabilities: Tensor
    branches: Tensor | None = None
    taught: tuple[int, ...] = ()
    terms: Terms = "every"

    def rows(self, queries: Tensor) -> SoftTargets:
        """The targets of some queries (b,)."""
        return self.moved(lambda part: part[queries])

    def moved(self, move: Callable[[Tensor], Tensor]) -> SoftTargets:
        """A copy with `move` applied to all tensors."""
        branches = None if self.branches is None else move(self.branches)
        return replace(self, answers=move(self.answers), probabilities=move(self.probabilities), branches=branches)

    def softened(self, temperature: float) -> Tensor:
        """(B, S): probabilities to the power of 1 / temperature, normalised again."""
        return _softened(self.probabilities, temperature)


@dataclass(frozen=True)
class Teacher:
    """A teacher that answers while the student is trained, also queries that no training triple asks.

    Args:
        ask: (heads (B,), relations (B,)) -> (B, N) log-probabilities, without a gradient.
        heads, relations: (U,) int64, the queries that no training triple asks.
        cumulated: (U,) float64, ascending up to 1: how likely each is drawn, summed up.
        terms: as of `SoftTargets`, `every` or `combined`.
    """

    ask: Callable[[Tensor, Tensor], Tensor]
    heads: Tensor
    relations: Tensor
    cumulated: Tensor
    terms: Terms = "every"

    def unasked(self, count: int) -> tuple[Tensor, Tensor]:
        """(b,) heads and (b,) relations of `count` drawn queries; none where there are none."""
        count = count if len(self.heads) else 0
        drawn = torch.searchsorted(self.cumulated, torch.rand(count, dtype=self.cumulated.dtype, device=self.cumulated.device))
        drawn = drawn.clamp_max(len(self.heads) - 1)
        return self.heads[drawn], self.relations[drawn]

    def to(self, device: torch.device) -> Teacher:
        """The queries on another device; what `ask` returns is moved where it is used."""
        return replace(
            self, heads=self.heads.to(device), relations=self.relations.to(device), cumulated=self.cumulated.to(device)
        )


def distillation_loss(
    scores: Sequence[Tensor], soft: SoftTargets, weights: Tensor, usable: Sequence[Tensor | None], temperature: float,
    loss: str = "ce",
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's to the student's distribution over the teacher's answers.

    It is the mean over the branches and, where there are several, their combination, or over some of them
    (`SoftTargets.terms`). Only the teacher's answers enter: the loss on the known answers, which goes over all
    entities, pushes down all others.

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
    logs = [_logs(score, loss) for score in scores]
    students = [torch.log_softmax(log / temperature, dim=1) for log in logs]  # (B, S) each
    targets = [target] * len(logs)
    if len(logs) > 1:
        if soft.terms == "combined":
            students, targets = [], []
        elif soft.terms == "branches":
            assert soft.branches is not None
            students = [students[place] for place in soft.taught]
            targets = [_softened(part, temperature).to(target.dtype) for part in soft.branches.unbind(2)]
        students.append(torch.log_softmax(combined_logs(scores, weights, usable, loss) / temperature, dim=1))
        targets.append(target)
    divergences = [
        torch.special.xlogy(wanted, wanted).sum(dim=1) - (wanted * student).sum(dim=1)
        for wanted, student in zip(targets, students, strict=True)
    ]
    return temperature**2 * torch.stack(divergences).mean()


def combined_logs(scores: Sequence[Tensor], weights: Tensor, usable: Sequence[Tensor | None], loss: str = "ce") -> Tensor:
    """(B, S) logarithm of the branches' combined probabilities of some answers, up to a constant of each query.

    Args:
        scores, weights, usable, loss: as of `distillation_loss`.
    """
    logs = [_logs(score, loss) for score in scores]
    if len(logs) == 1:
        return logs[0]
    ones = torch.ones_like(scores[0], dtype=torch.bool)
    share = renormalised(weights, torch.stack([ones if mask is None else mask for mask in usable]))  # (M, B, S)
    if loss == "bce":
        return torch.logsumexp(torch.stack(logs) + share.log(), dim=0)
    return (share * torch.stack([torch.log_softmax(log, dim=1) for log in logs])).sum(dim=0)


def _logs(score: Tensor, loss: str) -> Tensor:
    return functional.logsigmoid(score) if loss == "bce" else score


def _softened(probabilities: Tensor, temperature: float) -> Tensor:
    if temperature == 1.0:
        return probabilities
    least = torch.finfo(probabilities.dtype).tiny
    return torch.softmax(probabilities.clamp_min(least).log() / temperature, dim=1)
