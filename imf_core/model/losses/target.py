"""What the branches and their combination are trained towards.

Shapes: `B` queries, `N` entities, `M` branches, `C` candidates low..high, `P` known answers of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imf_core.model.decision import renormalised


@dataclass(frozen=True)
class Positives:
    """The known answers of a batch.

    Args:
        rows: (P,) int64, query of each answer, 0..B-1.
        tails: (P,) int64, entity ids.
        counts: (B,) float, answers of each query, at least 1.
        real: (P,) float, 0 for the padding of a static step; None without padding. Only `shares` heeds it.
    """

    rows: Tensor
    tails: Tensor
    counts: Tensor
    real: Tensor | None = None

    def mean(self, scores: Tensor) -> Tensor:
        """(B, N) -> (B,): mean score of each query's answers."""
        picked = scores[self.rows, self.tails]  # (P,)
        return torch.zeros_like(self.counts).index_add(0, self.rows, picked) / self.counts

    def shares(self, weights: Tensor) -> Tensor:
        """(B,) weights of the queries -> (P,): the answers of a query share its weight equally."""
        shares = (weights / self.counts)[self.rows]
        return shares if self.real is None else shares * self.real

    def expected(self, scores: Tensor, smoothing: float) -> Tensor:
        """(B, N) -> (B,): mean score under the smoothed target, `(1 - eps) / |answers|` on each answer plus `eps / N`."""
        expected = self.mean(scores)
        return (1 - smoothing) * expected + smoothing * scores.mean(dim=1) if smoothing else expected


@dataclass(frozen=True)
class JointTarget:
    """Answers, and how the losses of the M branches and of their combination are weighted.

    Args:
        positives: known answers of the B queries.
        smoothing: eps of the label smoothing, 0 <= eps < 1.
        per_triple: `ce`: weight a query by its number of answers.
        joint_weight: factor of the loss on the combined scores, >= 0; 0 leaves it out.
        weights: (B, M) decision weights, constant here; 0 where the head lacks the modality.
        masks: per branch (N,) bool, or None where every entity has the modality.
        precision: `fp32`, or `bf16` for the products with the (N, d) tables; sums, softmax and sigmoid stay in fp32.
        budget: bytes that scores may take at a time.
    """

    positives: Positives
    smoothing: float
    per_triple: bool
    joint_weight: float
    weights: Tensor
    masks: Sequence[Tensor | None]
    precision: str = "fp32"
    budget: int = 2**29

    def row_weights(self) -> Tensor:
        """(B,) weight of each query in the mean; they sum to 1."""
        counts = self.positives.counts
        return counts / counts.sum() if self.per_triple else torch.full_like(counts, 1.0 / len(counts))

    def block(self, low: int, high: int) -> JointTarget:
        """The target of the queries low..high only."""
        if low == 0 and high >= len(self.weights):
            return self
        positives = self.positives
        inside = (positives.rows >= low) & (positives.rows < high)
        part = Positives(positives.rows[inside] - low, positives.tails[inside], positives.counts[low:high])
        return replace(self, positives=part, weights=self.weights[low:high])

    def product_dtype(self, exact: torch.dtype) -> torch.dtype:
        """What the products with the tables are computed in; `exact` unless `precision` is `bf16`."""
        return torch.bfloat16 if self.precision == "bf16" else exact

    def shares(self, low: int, high: int, columns: Tensor | None = None) -> Tensor:
        """Share of each branch in the combined score of each candidate: its weight, renormalised over the branches that the
        candidate has.

        Args:
            low, high: candidates.
            columns: (c,) int64, positions in low..high; None: all C of them.

        Returns:
            (M, B, C) or (M, B, c).
        """
        ones = self.weights.new_ones(high - low if columns is None else len(columns), dtype=torch.bool)
        usable = [ones if mask is None else _rows(mask[low:high], columns) for mask in self.masks]
        return renormalised(self.weights, torch.stack(usable))


def _rows(mask: Tensor, columns: Tensor | None) -> Tensor:
    return mask if columns is None else mask[columns]
