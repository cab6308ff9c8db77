"""Metrics of ranks that add up exactly over shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HITS = (1, 3, 10)


@dataclass(frozen=True)
class RankingMetrics:
    """Sums over ranks, so that shards add up exactly; the means are properties.

    Args:
        count: ranks counted.
        reciprocal: sum of 1 / rank.
        total: sum of ranks.
        hits: number of ranks at most 1, 3, 10.
        slices: the same for named parts (`head`, `tail`, `1-1`, ..., `cold`, `warm`).
    """

    count: int = 0
    reciprocal: float = 0.0
    total: float = 0.0
    hits: tuple[int, ...] = (0,) * len(HITS)
    slices: dict[str, RankingMetrics] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: np.ndarray, parts: dict[str, np.ndarray] | None = None) -> RankingMetrics:
        """Metrics of (T,) ranks; `parts` maps a slice's name to its (T,) bool mask."""
        return cls(
            len(ranks), float((1.0 / ranks).sum()), float(ranks.sum()), tuple(int((ranks <= k).sum()) for k in HITS),
            {name: cls.of(ranks[mask]) for name, mask in (parts or {}).items()},
        )

    def __add__(self, other: RankingMetrics) -> RankingMetrics:
        empty = RankingMetrics()
        names = list(dict.fromkeys([*self.slices, *other.slices]))
        return RankingMetrics(
            self.count + other.count, self.reciprocal + other.reciprocal, self.total + other.total,
            tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
            {name: self.slices.get(name, empty) + other.slices.get(name, empty) for name in names},
        )

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, 0..1 (0 where nothing was ranked)."""
        return self.reciprocal / self.count if self.count else 0.0

    @property
    def mean_rank(self) -> float:
        """Mean rank, 1 is best (0 where nothing was ranked)."""
        return self.total / self.count if self.count else 0.0

    def hits_at(self, k: int) -> float:
        """Share of ranks at most k, for k in 1, 3, 10."""
        return self.hits[HITS.index(k)] / self.count if self.count else 0.0

    def flat(self) -> dict[str, float]:
        """`mrr`, `mean_rank`, `hits_at_1`, `hits_at_3`, `hits_at_10`."""
        return {"mrr": self.mrr, "mean_rank": self.mean_rank, **{f"hits_at_{k}": self.hits_at(k) for k in HITS}}

    def as_dict(self) -> dict[str, object]:
        """`flat()` with counts and slices, for JSON."""
        return {
            "count": self.count,
            **self.flat(),
            "slices": {name: {"count": part.count, **part.flat()} for name, part in self.slices.items()},
        }

    def pack(self) -> dict[str, Any]:
        """As plain values, exactly."""
        return {"slices": sorted(self.slices), "sums": self.vector().tolist()}

    @classmethod
    def unpack(cls, values: Mapping[str, Any]) -> RankingMetrics:
        """The inverse of `pack`."""
        return cls(slices={name: cls() for name in values["slices"]}).with_vector(np.asarray(values["sums"]))

    def vector(self) -> np.ndarray:
        """All sums as one float64 vector (slices in name order), for an all-reduce."""
        own = [float(self.count), self.reciprocal, self.total, *map(float, self.hits)]
        return np.concatenate([own, *(self.slices[name].vector() for name in sorted(self.slices))])

    def with_vector(self, vector: np.ndarray) -> RankingMetrics:
        """The metrics whose `vector()` this is, with the same slices."""
        width = 3 + len(HITS)
        parts = {name: vector[(1 + i) * width : (2 + i) * width] for i, name in enumerate(sorted(self.slices))}
        own = vector[:width]
        return RankingMetrics(
            round(own[0]), float(own[1]), float(own[2]), tuple(round(number) for number in own[3:]),
            {name: RankingMetrics().with_vector(part) for name, part in parts.items()},
        )
