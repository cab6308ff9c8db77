"""What the branches are trained towards, and its parts: the 1-N losses go over the scores in tiles.

A `(B, C)` tile stays in the processor's cache while it is scored, turned into its gradient and multiplied on, so that only
the matrix products cost. The `(B, N)` scores and the dense 0/1 labels never exist as a whole.

Shapes: `B` queries, `N` entities, `M` branches, `C` candidates of a tile, `P` positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from imf_core.model.losses.plain_forms import Positives

_TILE = 2**20  # numbers of a tile on a CPU: 4 MiB in fp32 stay in its cache
_TILE_GPU = 2**28  # on a GPU large launches count more
_NARROWEST = 256  # a narrower tile wastes the matrix product


@dataclass(frozen=True)
class JointTarget:
    """What the branches are trained towards.

    Args:
        positives: known answers of the B queries.
        smoothing: eps of the label smoothing.
        per_triple: `ce`: weight a query by its number of answers.
        joint_weight: factor of the loss on the decision; 0 leaves it out.
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
        """The same for the queries low..high only."""
        if low == 0 and high >= len(self.weights):
            return self
        whole = self.positives
        inside = (whole.rows >= low) & (whole.rows < high)
        positives = Positives(whole.rows[inside] - low, whole.tails[inside], whole.counts[low:high])
        return replace(self, positives=positives, weights=self.weights[low:high])

    def kind(self, exact: torch.dtype) -> torch.dtype:
        """What the products are computed in."""
        return torch.bfloat16 if self.precision == "bf16" else exact


@dataclass(frozen=True)
class Tile:
    """Candidates low..high and the answers among them.

    Args:
        low, high: entity ids, high excluded.
        rows, columns: (p,) query of each answer and its position in the tile.
    """

    low: int
    high: int
    rows: Tensor
    columns: Tensor


def tile_width(num_queries: int, num_entities: int, device: torch.device) -> int:
    """C: as wide as the cache allows, a multiple of 64 unless it is all N."""
    most = (_TILE if device.type == "cpu" else _TILE_GPU) // max(1, num_queries)
    return min(num_entities, max(_NARROWEST, most // 64 * 64))


def tiles(positives: Positives, num_entities: int, width: int) -> list[Tile]:
    """Cut the candidates into tiles of equal width (the last may be narrower); every answer is in exactly one."""
    lows = list(range(0, num_entities, width))
    if len(lows) == 1:
        return [Tile(0, num_entities, positives.rows, positives.tails)]
    tails, order = positives.tails.sort()
    rows = positives.rows[order]
    cuts = [*torch.searchsorted(tails, torch.tensor(lows, device=tails.device)).tolist(), len(tails)]
    return [
        Tile(low, min(low + width, num_entities), rows[start:stop], tails[start:stop] - low)
        for low, (start, stop) in zip(lows, pairwise(cuts), strict=True)
    ]


def shares(target: JointTarget, low: int, high: int, columns: Tensor | None = None) -> Tensor:
    """(M, B, C) share of each branch in the decision of each candidate: its weight, renormalised over the branches that the
    candidate has.

    Args:
        target: weights and masks.
        low, high: candidates.
        columns: of these, only the ones at the given positions.
    """
    ones = target.weights.new_ones(high - low if columns is None else len(columns), dtype=torch.bool)
    usable = [ones if mask is None else _chosen(mask[low:high], columns) for mask in target.masks]
    return renormalised(target.weights, torch.stack(usable))


def renormalised(weights: Tensor, usable: Tensor) -> Tensor:
    """(B, M) weights and (M, C) or (M, B, C) bool who has which branch -> (M, B, C), their sum 1 over the usable."""
    share = weights.T[:, :, None] * (usable if usable.dim() == 3 else usable[:, None, :])
    return share / share.sum(dim=0).clamp_min(1e-6)


def partial_columns(masks: Sequence[Tensor | None], low: int, high: int) -> Tensor | None:
    """Positions of the candidates low..high that lack a modality; None where none does."""
    incomplete = [mask[low:high] for mask in masks if mask is not None]
    if not incomplete:
        return None
    columns = torch.nonzero(~torch.stack(incomplete).all(dim=0))[:, 0]
    return columns if len(columns) else None


def _chosen(mask: Tensor, columns: Tensor | None) -> Tensor:
    return mask if columns is None else mask[columns]
