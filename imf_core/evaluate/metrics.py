"""Metrics that add up exactly over shards: what every kind of metrics can do, and those of ranks.

Shapes: `T` ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from imf_core.data.graph.graph import ALL_LINES

HITS = (1, 3, 10)


class Metrics(Protocol):
    """The result of an evaluation, as sums: `RankingMetrics` of a link predictor, `TopKMetrics` of a recommender."""

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, 0..1; the best epoch and trial are chosen by it."""

    def flat(self) -> dict[str, float]:
        """The means by their metric names, `mrr` first."""

    def as_dict(self) -> dict[str, Any]:
        """`flat()` with counts (and slices), for JSON."""

    def pack(self) -> dict[str, Any]:
        """The sums as plain values, without loss."""

    def vector(self) -> np.ndarray:
        """The sums as one float64 vector, for an all-reduce."""

    def with_vector(self, vector: np.ndarray) -> Self:
        """The metrics whose `vector()` this is, of the same slices."""


@dataclass(frozen=True)
class RankingMetrics:
    """Sums over ranks, so that shards add up exactly; the means are properties.

    Args:
        count: number of ranks.
        reciprocal: sum of 1 / rank.
        total: sum of ranks.
        hits: number of ranks at most 1, 3, 10.
        slices: the metrics of named parts of the ranks (`head`, `tail`, `1-1`, ..., `cold`, `warm`, `all lines`).
    """

    count: int = 0
    reciprocal: float = 0.0
    total: float = 0.0
    hits: tuple[int, ...] = (0,) * len(HITS)
    slices: dict[str, RankingMetrics] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: np.ndarray, parts: dict[str, np.ndarray] | None = None) -> RankingMetrics:
        """Metrics of ranks.

        Args:
            ranks: (T,) float, 1 is best.
            parts: (T,) bool mask of each slice, by its name.
        """
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
        """Share of ranks at most k, 0..1, for k in 1, 3, 10."""
        return self.hits[HITS.index(k)] / self.count if self.count else 0.0

    def flat(self) -> dict[str, float]:
        """`mrr`, `mean_rank`, `hits_at_1`, `hits_at_3`, `hits_at_10`; `mrr_all_lines` where it is of other triples."""
        whole = {"mrr_all_lines": self.slices[ALL_LINES].mrr} if ALL_LINES in self.slices else {}
        return {"mrr": self.mrr, "mean_rank": self.mean_rank, **{f"hits_at_{k}": self.hits_at(k) for k in HITS}, **whole}

    def as_dict(self) -> dict[str, object]:
        """See `Metrics.as_dict`."""
        return {
            "count": self.count,
            **self.flat(),
            "slices": {name: {"count": part.count, **part.flat()} for name, part in self.slices.items()},
        }

    def pack(self) -> dict[str, Any]:
        """See `Metrics.pack`."""
        return {"slices": sorted(self.slices), "sums": self.vector().tolist()}

    @classmethod
    def unpack(cls, values: Mapping[str, Any]) -> RankingMetrics:
        """The inverse of `pack`."""
        return cls(slices={name: cls() for name in values["slices"]}).with_vector(np.asarray(values["sums"]))

    def vector(self) -> np.ndarray:
        """See `Metrics.vector`: six sums, then those of the slices in the order of their names."""
        sums = [float(self.count), self.reciprocal, self.total, *map(float, self.hits)]
        return np.concatenate([sums, *(self.slices[name].vector() for name in sorted(self.slices))])

    def with_vector(self, vector: np.ndarray) -> RankingMetrics:
        """See `Metrics.with_vector`."""
        width = 3 + len(HITS)
        parts = {name: vector[(1 + i) * width : (2 + i) * width] for i, name in enumerate(sorted(self.slices))}
        sums = vector[:width]
        return RankingMetrics(
            round(sums[0]), float(sums[1]), float(sums[2]), tuple(round(number) for number in sums[3:]),
            {name: RankingMetrics().with_vector(part) for name, part in parts.items()},
        )
