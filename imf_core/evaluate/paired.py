"""Is the difference between two models real? Paired statistics of their ranks of the same triples.

The unit is the triple: its two queries, (h, r, ?) and (?, r, t), share entities and relation, so they are not independent.
They are flipped and resampled together.

Shapes: `T` triples, `Q` = 2T queries (tails first, then heads, as in `imf_core.evaluate.ranking.slices`).

Sources: sign-flip test, Smucker, Allan and Carterette, CIKM 2007, section 3.3; p values of drawn permutations, Phipson and
Smyth 2010, section 3; percentile interval, Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from imf_core.errors import DataError, ImfError

LEVEL = 0.05  # a difference with a smaller p value is called real
DRAWS = 9_999  # permutations, and resamples; with the observed order they make a round number
_NUMBERS = 2**21  # numbers of a block: 16 MiB in float64
_EQUAL = 1e-12  # relative rounding error between two sums of the same numbers in another order


@dataclass(frozen=True)
class Part:
    """Two models side by side on some queries.

    Args:
        count: number of queries.
        first, second: MRR of each model, 0..1 (0 without queries).
        better, equal, worse: number of queries that the first model ranks higher than the second, the same, lower.
    """

    count: int
    first: float
    second: float
    better: int
    equal: int
    worse: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Part:
        """From two arrays (Q,) of ranks of the same queries."""
        count = len(first)
        mrr = [float((1.0 / ranks).mean()) if count else 0.0 for ranks in (first, second)]
        better, worse = int((first < second).sum()), int((first > second).sum())
        return cls(count, mrr[0], mrr[1], better, count - better - worse, worse)

    @property
    def difference(self) -> float:
        """MRR of the first minus that of the second."""
        return self.first - self.second


@dataclass(frozen=True)
class Comparison:
    """Comparison of two models by their ranks of the same triples.

    Args:
        all: over all queries.
        slices: by direction, relation category, cold and warm entities.
        p: two-sided p value of the sign-flip test, 0..1.
        exact: all sign assignments were counted; otherwise `draws` were drawn.
        least: the smallest p value that the number of differing triples allows.
        interval: 95 % confidence interval of the difference in MRR, triples resampled.
        draws: permutations (if not exact) and resamples.
    """

    all: Part
    slices: Mapping[str, Part]
    p: float
    exact: bool
    least: float
    interval: tuple[float, float]
    draws: int = DRAWS

    @property
    def real(self) -> bool:
        """Whether p is below `LEVEL`."""
        return self.p < LEVEL


def compare_ranks(
    first: np.ndarray, second: np.ndarray, parts: Mapping[str, np.ndarray] | None = None, *, seed: int = 0, draws: int = DRAWS
) -> Comparison:
    """Compare two models by their ranks of the same queries.

    Args:
        first, second: (Q,) ranks, the T tail queries before the T head queries, 1 is best.
        parts: (Q,) bool mask of each slice, by its name.
        seed: of the draws; the same ranks give the same figures, and swapped models the same with opposite sign.
        draws: permutations and resamples.

    Raises:
        ImfError: the ranks are of different queries.
        DataError: there is no triple.
    """
    if first.shape != second.shape or len(first) % 2:
        remedy = "rank the same triples with both, in both directions"
        raise ImfError(f"{len(first)} ranks cannot be paired with {len(second)}", remedy=remedy)
    if not len(first):
        raise DataError("there is no triple to compare on", remedy="choose a split that has triples")
    change = 1.0 / first - 1.0 / second  # (Q,)
    triples = change.reshape(2, -1).mean(axis=0)  # (T,): their mean is the difference in MRR
    p, exact, least = sign_flip(triples, seed=seed, draws=draws)
    return Comparison(
        Part.of(first, second), {name: Part.of(first[mask], second[mask]) for name, mask in (parts or {}).items()},
        p, exact, least, bootstrap_interval(triples, seed=seed, draws=draws), draws,
    )


def sign_flip(changes: np.ndarray, *, seed: int = 0, draws: int = DRAWS) -> tuple[float, bool, float]:
    """Two-sided permutation test of paired differences: if the models are equally good, each sign is random.

    Args:
        changes: (T,) differences. Zeros do not depend on the sign and are left out.
        seed: of the drawn signs.
        draws: number of sign assignments to draw; if there are no more than this, all are counted.

    Returns:
        p; whether it is exact; the smallest p possible. A drawn p counts the observed signs as one of the draws, so that it is
        never 0 and errs on the safe side.
    """
    moved = changes[changes != 0]
    count = len(moved)
    exact = count <= draws.bit_length() and 2**count <= draws + 1
    blocks = _all_signs(count) if exact else _drawn_signs(count, draws, np.random.default_rng(seed))
    total = float(moved.sum())
    bound = abs(total) - _EQUAL * float(np.abs(moved).sum())
    extreme = sum(int((np.abs(2.0 * (plus @ moved) - total) >= bound).sum()) for plus in blocks)
    if exact:
        return extreme / 2**count, True, min(1.0, 2.0 / 2**count)
    return (extreme + 1) / (draws + 1), False, 1.0 / (draws + 1)


def bootstrap_interval(changes: np.ndarray, *, seed: int = 0, draws: int = DRAWS, share: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of differences.

    Args:
        changes: (T,) differences.
        seed: of the draws.
        draws: number of resamples.
        share: confidence level, 0..1.

    Returns:
        Lower and upper bound.
    """
    generator, count = np.random.default_rng(seed), len(changes)
    means = [changes[generator.integers(0, count, (rows, count))].mean(axis=1) for rows in _blocks(draws, count)]
    low, high = np.quantile(np.concatenate(means), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _blocks(total: int, width: int) -> Iterator[int]:
    """Numbers of rows of `width` numbers that fit the memory; they add up to `total`."""
    step = max(1, _NUMBERS // max(1, width))
    yield from (min(step, total - done) for done in range(0, total, step))


def _all_signs(count: int) -> Iterator[np.ndarray]:
    """All (2^count, count) assignments, block by block: 1 where the sign is kept, 0 where it is flipped."""
    done = 0
    for rows in _blocks(2**count, count):
        numbers = np.arange(done, done + rows, dtype=np.int64)
        yield (numbers[:, None] >> np.arange(count) & 1).astype(np.float64)
        done += rows


def _drawn_signs(count: int, draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """(draws, count) random assignments as of `_all_signs`; one random bit for each sign."""
    width = -(-count // 8)
    for rows in _blocks(draws, count):
        packed = generator.integers(0, 256, (rows, width), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=count).astype(np.float64)
