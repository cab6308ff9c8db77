"""Cutting the `(B, N)` scores into tiles of candidates.

A `(B, C)` tile stays in the processor's cache while it is scored, turned into its gradient and multiplied with the tables, so
that only the matrix products cost. The `(B, N)` scores never exist as a whole.

Shapes: `B` queries, `N` entities, `C` candidates of a tile, `P` known answers of the batch, `p` of them in a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from imf_core.model.losses.target import Positives

_TILE = 2**20  # numbers of a tile on a CPU: 4 MiB in fp32 stay in its cache
_TILE_GPU = 2**28  # on a GPU large launches count more
_NARROWEST = 256  # a narrower tile wastes the matrix product


@dataclass(frozen=True)
class Tile:
    """Candidates low..high and the known answers among them.

    Args:
        low, high: entity ids, high excluded; C = high - low.
        rows, columns: (p,) int64, query of each answer and its position in the tile.
    """

    low: int
    high: int
    rows: Tensor
    columns: Tensor


def tile_width(num_queries: int, num_entities: int, device: torch.device) -> int:
    """C: as wide as the cache of the device allows, a multiple of 64 unless it is all N."""
    most = (_TILE if device.type == "cpu" else _TILE_GPU) // max(1, num_queries)
    return min(num_entities, max(_NARROWEST, most // 64 * 64))


def tiles(positives: Positives, num_entities: int, width: int) -> list[Tile]:
    """Cut the candidates into tiles of equal width (the last may be narrower); every answer is in exactly one.

    Args:
        positives: the P known answers.
        num_entities: N.
        width: C, at least 1.
    """
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


def table_gradients(tables: Sequence[Tensor], needed: Sequence[bool], kind: torch.dtype) -> list[Tensor | None]:
    """A place for the gradient (N, d) of each table, to be filled tile by tile; None for a frozen table, which gets none."""
    return [torch.empty_like(table, dtype=kind) if need else None for table, need in zip(tables, needed, strict=True)]
