"""Decision fusion: the branches' predictions -> one prediction, with weights on the simplex (model section 5).

Shapes: `B` queries, `C` candidates (all N or a chunk), `M` branches.

Under `bce` the branches are combined as probabilities, `sum_m a_m sigmoid(s_m)`. Under `ce` they are combined as normalised
scores, `sum_m a_m log softmax(s_m)`: sigmoids of softmax scores saturate into ties.
A branch whose modality the head lacks has weight 0 for that query; one that the candidate lacks has weight 0 for that
candidate; the rest is renormalised.

Learned weights are trained on held-out triples (`train/calibrate.py`), not by the gradient of the training batches: on its
own training triples a branch that overfits, such as one of noise, looks as good as one that generalises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from imf_core.config import DecisionMode
from imf_core.errors import ConfigError

_LEAST = 3e-4


class Decision(nn.Module):
    """Weights of the branches.

    Args:
        mode: `uniform`, `fixed`, `learned` (softmax of trained logits) or `relation` (trained logits for each relation).
            Trained logits start at 0, the plain mean.
        branches: names of the M branches.
        num_relations: 2R, for `relation`.
        fixed: weight of each branch for `fixed`; missing names count 0; None means uniform. A weight of 0 becomes 0.0003 of
            the whole: who lacks the modalities of all other branches is then decided by this one.
    """

    def __init__(
        self, mode: DecisionMode, branches: Sequence[str], num_relations: int, fixed: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.mode, self.branches = mode, tuple(branches)
        weights = torch.full((len(self.branches),), 1.0 / len(self.branches))
        if mode == "fixed" and fixed is not None:
            unknown = set(fixed) - set(self.branches)
            if unknown:
                raise ConfigError(
                    f"decision_weights names {sorted(unknown)[0]!r}, which is no branch",
                    remedy=f"branches here: {', '.join(self.branches)}",
                )
            weights = torch.tensor([float(fixed.get(branch, 0.0)) for branch in self.branches])
            if weights.sum() <= 0:
                raise ConfigError("decision_weights are all zero", remedy="give at least one branch a positive weight")
            weights = (weights / weights.sum()).clamp_min(_LEAST)
            weights = weights / weights.sum()
        rows = {"learned": 1, "relation": num_relations}.get(mode, 0) if len(self.branches) > 1 else 0
        self.register_buffer("logits", torch.zeros(rows, len(self.branches)) if rows else None)
        self.register_buffer("constant", weights)
        self.logits: Tensor | None
        self.constant: Tensor

    def weights(self, relations: Tensor) -> Tensor:
        """(B,) relation ids -> (B, M) weights, each row on the simplex."""
        if self.logits is None:
            return self.constant.expand(len(relations), -1)
        logits = self.logits[relations] if self.mode == "relation" else self.logits.expand(len(relations), -1)
        return torch.softmax(logits, dim=1)


def alternatives(own: Decision) -> dict[str, Decision]:
    """Decisions beside a model's own, from the same branches: the plain mean, each branch alone, all but one branch.

    Example:
        {"uniform": ..., "structure alone": ..., "without structure": ..., ...}
    """
    branches = own.branches
    if len(branches) < 2:
        return {}
    weights: dict[str, dict[str, float] | None] = {"uniform": None}
    weights.update({f"{branch} alone": {branch: 1.0} for branch in branches})
    if len(branches) > 2:
        weights.update({f"without {branch}": {other: 1.0 for other in branches if other != branch} for branch in branches})
    return {name: Decision("fixed", branches, 0, fixed).to(own.constant.device) for name, fixed in weights.items()}


def combine(values: Sequence[Tensor], weights: Tensor, candidate_masks: Sequence[Tensor | None]) -> Tensor:
    """Weighted mean of the branches, renormalised where a candidate lacks a modality.

    Args:
        values: M tensors (B, C): log-probabilities (`ce`) or probabilities (`bce`).
        weights: (B, M) on the simplex, already 0 where the head lacks the modality.
        candidate_masks: per branch (C,) bool, or None where every candidate has the modality.

    Returns:
        (B, C).
    """
    total: Tensor | None = None
    for position, (value, mask) in enumerate(zip(values, candidate_masks, strict=True)):
        part = value * weights[:, position, None]
        if mask is not None:
            part = part * mask.to(part.dtype)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("nothing to combine")
    partial = [position for position, mask in enumerate(candidate_masks) if mask is not None]
    if partial:
        present = torch.stack([mask.to(total.dtype) for mask in candidate_masks if mask is not None])
        everywhere = [position for position, mask in enumerate(candidate_masks) if mask is None]
        # The kept weight as a sum: as one minus the rest it would lose its digits where little is kept.
        kept = torch.addmm(weights[:, everywhere].sum(dim=1, keepdim=True), weights[:, partial], present)
        total = total / kept.clamp_min(1e-6)
    return total


def present_weights(weights: Tensor, head_masks: Sequence[Tensor | None]) -> Tensor:
    """(B, M) weights with 0 where the head lacks the modality, each row renormalised to sum 1.

    Args:
        weights: (B, M).
        head_masks: per branch (B,) bool, or None where every head has it.
    """
    if all(mask is None for mask in head_masks):
        return weights
    keep = torch.stack(
        [
            torch.ones(len(weights), dtype=weights.dtype, device=weights.device) if mask is None else mask.to(weights.dtype)
            for mask in head_masks
        ],
        dim=1,
    )
    kept = weights * keep
    return kept / kept.sum(dim=1, keepdim=True).clamp_min(1e-6)
