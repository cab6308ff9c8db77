"""Decision fusion: the branches' predictions -> one prediction, with weights on the simplex (model section 5).

Under `bce` the branches are combined as probabilities, `sum_m a_m sigmoid(s_m)`. Under `ce` they are combined as normalised
scores, `sum_m a_m log softmax(s_m)`: sigmoids of softmax scores saturate into ties.
A branch whose modality the head lacks has weight 0 for that query; one that the candidate lacks has weight 0 for that
candidate; the remaining weights are renormalised.

Learned weights are fitted to held-out triples (`evaluate/calibrate.py`), not by the gradient of the training batches: on its
own training triples a branch that overfits, such as one of noise, looks as good as one that generalises.

Shapes: `B` queries, `C` candidates (all N or a part), `M` branches, `R` relations (2R with inverses).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from imf_core.config import DecisionMode
from imf_core.errors import ConfigError

LEAST_WEIGHT = 3e-4  # of a branch: it alone decides on a candidate that lacks the modalities of all other branches
_LEAST_SUM = 1e-6  # keeps the renormalised weights finite for a candidate that no weighted branch knows


class Decision(nn.Module):
    """Weights of the branches.

    Args:
        mode: `uniform`, `fixed`, `learned` (softmax of fitted logits) or `relation` (fitted logits for each relation).
            Fitted logits start at 0, the plain mean.
        branches: names of the M branches.
        num_relations: 2R, for `relation`.
        fixed: weight >= 0 of each branch for `fixed`; missing names count 0; None means uniform. They are normalised to sum 1
            and kept above `LEAST_WEIGHT`.

    Raises:
        ConfigError: `fixed` names something else than a branch, or all its weights are 0.
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
            weights = (weights / weights.sum()).clamp_min(LEAST_WEIGHT)
            weights = weights / weights.sum()
        rows = {"learned": 1, "relation": num_relations}.get(mode, 0) if len(self.branches) > 1 else 0
        self.register_buffer("logits", torch.zeros(rows, len(self.branches)) if rows else None)
        self.register_buffer("constant", weights)
        self.logits: Tensor | None
        self.constant: Tensor

    def with_logits(self, logits: Tensor) -> Decision:
        """A copy with other logits (1, M) or (2R, M); itself where it has none."""
        if self.logits is None:
            return self
        copied = Decision(self.mode, self.branches, len(self.logits)).to(self.constant.device)
        assert copied.logits is not None
        copied.logits.copy_(logits)
        return copied

    def weights(self, relations: Tensor) -> Tensor:
        """(B,) int64 relation ids below 2R -> (B, M) weights, each row on the simplex."""
        if self.logits is None:
            return self.constant.expand(len(relations), -1)
        if self.mode == "relation":
            return torch.softmax(self.logits.index_select(0, relations), dim=1)
        return torch.softmax(self.logits, dim=1).expand(len(relations), -1)


def alternatives(trained: Decision) -> dict[str, Decision]:
    """Decisions to compare a model's own with, over the same branches: the plain mean, each branch alone, all but one branch.

    Returns:
        `{"uniform": ..., "structure alone": ..., "without structure": ..., ...}`; empty for a single branch.
    """
    branches = trained.branches
    if len(branches) < 2:
        return {}
    weights: dict[str, dict[str, float] | None] = {"uniform": None}
    weights.update({f"{branch} alone": {branch: 1.0} for branch in branches})
    if len(branches) > 2:
        weights.update({f"without {branch}": {other: 1.0 for other in branches if other != branch} for branch in branches})
    return {name: Decision("fixed", branches, 0, fixed).to(trained.constant.device) for name, fixed in weights.items()}


def combine(values: Sequence[Tensor], weights: Tensor, candidate_masks: Sequence[Tensor | None]) -> Tensor:
    """Weighted mean of the branches, renormalised where a candidate lacks a modality.

    Args:
        values: M tensors (B, C): log-probabilities (`ce`) or probabilities (`bce`).
        weights: (B, M) on the simplex, already 0 where the head lacks the modality.
        candidate_masks: per branch (C,) bool, or None where every candidate has the modality.

    Returns:
        (B, C).
    """
    total: Tensor | None = None  # (B, C)
    for position, (value, mask) in enumerate(zip(values, candidate_masks, strict=True)):
        part = value * weights[:, position, None]
        if mask is not None:
            part = part * mask.to(part.dtype)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("nothing to combine")
    partial = [position for position, mask in enumerate(candidate_masks) if mask is not None]
    if partial:
        present = torch.stack([mask.to(total.dtype) for mask in candidate_masks if mask is not None])  # (partial, C)
        everywhere = [position for position, mask in enumerate(candidate_masks) if mask is None]
        # The kept weight (B, C) as a sum: as one minus the rest it would lose its digits where little is kept.
        kept = torch.addmm(weights[:, everywhere].sum(dim=1, keepdim=True), weights[:, partial], present)
        total = total / kept.clamp_min(_LEAST_SUM)
    return total


def present_weights(weights: Tensor, head_masks: Sequence[Tensor | None]) -> Tensor:
    """Set weights to 0 where the head lacks the modality and renormalise each row to sum 1.

    Args:
        weights: (B, M).
        head_masks: per branch (B,) bool, or None where every head has it.

    Returns:
        (B, M).
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
    return kept_weights(weights, keep)


def kept_weights(weights: Tensor, keep: Tensor) -> Tensor:
    """(B, M) weights, and (B, M) 1 for those that are kept, else 0 -> (B, M), each row with sum 1."""
    kept = weights * keep
    return kept / kept.sum(dim=1, keepdim=True).clamp_min(_LEAST_SUM)


def renormalised(weights: Tensor, usable: Tensor) -> Tensor:
    """Share of each branch in the combined score of each candidate.

    Args:
        weights: (B, M).
        usable: (M, C), or (M, B, C) if each query has candidates of its own: bool, which candidates the branch knows.

    Returns:
        (M, B, C), sum 1 over the branches that know the candidate.
    """
    share = weights.T[:, :, None] * (usable if usable.dim() == 3 else usable[:, None, :])
    return share / share.sum(dim=0).clamp_min(_LEAST_SUM)


def partial_columns(masks: Sequence[Tensor | None], low: int, high: int) -> Tensor | None:
    """Positions of the candidates low..high that lack a modality, (c,) int64; None if none does.

    Args:
        masks: per branch (N,) bool, or None where every entity has the modality.
        low, high: candidates.
    """
    incomplete = [mask[low:high] for mask in masks if mask is not None]
    if not incomplete:
        return None
    columns = torch.nonzero(~torch.stack(incomplete).all(dim=0))[:, 0]
    return columns if len(columns) else None
