"""Precision, recall, hit ratio and NDCG at k of recommendations, averaged over users; and the reciprocal rank.

For a user with R relevant (held-out) items, of which h stand among the first k:

    precision_at_k = h / k        recall_at_k = h / R        hit_ratio_at_k = 1 if h else 0
    ndcg_at_k      = sum_{hits at place p} 1 / log2(p + 1)  /  sum_{p = 1..min(k, R)} 1 / log2(p + 1)
    mrr            = mean over the relevant items of 1 / rank among the candidates that are not relevant

The last is the filtered reciprocal rank of link prediction: it looks at the whole order, so it is what epochs and settings are
chosen by.

Candidates are the items that the user does not have in the known splits (train for validation; train and validation for test);
a relevant item that is known anyway is none. Users without relevant items are left out and counted.

Ties: each value is its expectation over all orders of the tied items, so that a constant score earns what chance earns; the
reciprocal rank takes the mean of the best and the worst place among the ties ("realistic").

Shapes: `B` users of a block, `I` items, `K` relevant pairs of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from imf_core.evaluate.ranking import check_finite
from imf_core.recommend.data.interactions import Owned
from imf_core.runtime import WHOLE, Shard

K = 10
_ROWS = 2**22  # numbers that are compared at a time


@dataclass(frozen=True)
class TopKMetrics:
    """Sums over users, so that shards add up exactly; the means are in `flat`.

    Args:
        count: users with relevant items.
        precision, recall, hit_ratio, ndcg, reciprocal: sums over them.
        k: places that count.
    """

    count: int = 0
    precision: float = 0.0
    recall: float = 0.0
    hit_ratio: float = 0.0
    ndcg: float = 0.0
    reciprocal: float = 0.0
    k: int = K

    def __add__(self, other: TopKMetrics) -> TopKMetrics:
        return self.with_vector(self.vector() + other.vector())

    @property
    def mrr(self) -> float:
        """Filtered mean reciprocal rank, 0..1 (0 where nothing was ranked)."""
        return self.reciprocal / self.count if self.count else 0.0

    def flat(self) -> dict[str, float]:
        """`mrr`, `precision_at_10`, `recall_at_10`, `hit_ratio_at_10`, `ndcg_at_10`; 0 where there are no users."""
        sums = {name: getattr(self, name) for name in ("precision", "recall", "hit_ratio", "ndcg")}
        count = max(1, self.count)
        return {"mrr": self.mrr, **{f"{name}_at_{self.k}": value / count for name, value in sums.items()}}

    def as_dict(self) -> dict[str, float]:
        """`flat()` with the number of users, for JSON."""
        return {"users": self.count, **self.flat()}

    @classmethod
    def from_dict(cls, values: Mapping[str, float], k: int = K) -> TopKMetrics:
        """The inverse of `as_dict`."""
        count = int(values["users"])
        sums = (values[f"{name}_at_{k}"] * count for name in ("precision", "recall", "hit_ratio", "ndcg"))
        precision, recall, hit_ratio, ndcg = sums
        return cls(count, precision, recall, hit_ratio, ndcg, values["mrr"] * count, k)

    def vector(self) -> np.ndarray:
        """All sums, float64, for an all-reduce."""
        return np.array(astuple(self)[:-1], dtype=np.float64)

    def describe(self) -> str:
        """`MRR 12.6, P@10 48.8, R@10 20.9, NDCG@10 48.8`, in percent."""
        flat = self.flat()
        short = {"P": "precision", "R": "recall", "NDCG": "ndcg"}
        parts = (f"{letter}@{self.k} {100 * flat[f'{name}_at_{self.k}']:.1f}" for letter, name in short.items())
        return f"MRR {100 * self.mrr:.1f}, {', '.join(parts)}"

    def pack(self) -> dict[str, Any]:
        """As plain values."""
        return {"k": self.k, "sums": self.vector().tolist()}

    @classmethod
    def unpack(cls, values: Mapping[str, Any]) -> TopKMetrics:
        """The inverse of `pack`."""
        return cls(k=int(values["k"])).with_vector(np.asarray(values["sums"]))

    def with_vector(self, vector: np.ndarray) -> TopKMetrics:
        """The metrics whose `vector()` this is."""
        count, precision, recall, hit_ratio, ndcg, reciprocal = vector.tolist()
        return TopKMetrics(round(count), precision, recall, hit_ratio, ndcg, reciprocal, self.k)


class Scorer(Protocol):
    """Scores all items for some users."""

    num_items: int

    def scores(self, users: Tensor) -> Tensor:
        """(B,) ids -> (B, I) scores, higher is better; the caller may overwrite them."""
        ...


class VectorScorer:
    """Dot products of the vectors of a model in evaluation mode, which are made once.

    Args:
        users, items: (U, d), (I, d).
    """

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items, self.num_items = users, items, len(items)

    def scores(self, users: Tensor) -> Tensor:
        """See `Scorer`."""
        return self.users[users.to(self.users.device)] @ self.items.T


class Popularity:
    """The baseline without training: an item's score is how many users have it in train, for all users the same.

    Args:
        train: (P, 2).
        num_items: I.
    """

    def __init__(self, train: np.ndarray, num_items: int) -> None:
        self.num_items = num_items
        self.counts = torch.from_numpy(np.bincount(train[:, 1], minlength=num_items)).float()

    def scores(self, users: Tensor) -> Tensor:
        """See `Scorer`."""
        return self.counts.repeat(len(users), 1)


@torch.no_grad()
def evaluate_top_k(
    scorer: Scorer, relevant: Owned, known: Owned, *, k: int = K, budget: int = 2**28, shard: Shard = WHOLE
) -> TopKMetrics:
    """Metrics of all users that have relevant items.

    Args:
        scorer: what recommends.
        relevant: held-out items of each user.
        known: items that are not recommended.
        k: places that count, at least 1.
        budget: bytes that the scores of a block may take.
        shard: every so many users are this process's.

    Raises:
        DivergedError: a score is not finite.
    """
    total = TopKMetrics(k=k)
    discounts = _discounts(k)
    for users, rows, items, hidden in _blocks(relevant, known, scorer.num_items, budget, shard):
        table = scorer.scores(torch.from_numpy(users))
        check_finite(table, "users")
        device = table.device
        table[torch.from_numpy(hidden[0]).to(device), torch.from_numpy(hidden[1]).to(device)] = -torch.inf
        placed = _placed(table, torch.from_numpy(rows), torch.from_numpy(items))
        own, better, equal = (part.cpu().numpy() for part in placed)
        total = total + _of_places(rows, own, better, equal, len(users), k, discounts)
    return total


def _blocks(
    relevant: Owned, known: Owned, num_items: int, budget: int, shard: Shard
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Users of a block, their relevant pairs that are not known (row, item), and what is hidden (rows, items)."""
    asked = np.flatnonzero(np.diff(relevant.offsets))[shard.rank :: shard.world]
    size = max(1, budget // (8 * max(1, num_items)))
    for low in range(0, len(asked), size):
        users = asked[low : low + size]
        rows, items = relevant.of(users)
        hidden = known.of(users)
        keep = ~np.isin(rows * np.int64(num_items) + items, hidden[0] * np.int64(num_items) + hidden[1])
        left = np.unique(rows[keep])  # a user whose relevant items are all known has none
        inside = np.isin(hidden[0], left)
        place = np.full(len(users), -1, dtype=np.int64)
        place[left] = np.arange(len(left))
        if len(left):
            yield users[left], place[rows[keep]], items[keep], (place[hidden[0][inside]], hidden[1][inside])


def _placed(table: Tensor, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of K pairs its score, how many candidates score better, and how many the same (itself included)."""
    rows, items = rows.to(table.device), items.to(table.device)
    own = table[rows, items]
    better, equal = torch.empty_like(rows), torch.empty_like(rows)
    step = max(1, _ROWS // table.shape[1])
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        lines, target = table[rows[part]], own[part, None]
        better[part], equal[part] = (lines > target).sum(dim=1), (lines == target).sum(dim=1)
    return own, better, equal


def _of_places(
    rows: np.ndarray, own: np.ndarray, better: np.ndarray, equal: np.ndarray, num_users: int, k: int, discounts: np.ndarray
) -> TopKMetrics:
    """Expected values from the places better + 1 .. better + equal of each relevant item."""
    first, last = np.minimum(better, k), np.minimum(better + equal, k)
    chance = (last - first) / equal
    hits = np.bincount(rows, chance, num_users)
    gains = np.bincount(rows, (discounts[last] - discounts[first]) / equal, num_users)
    counts = np.bincount(rows, minlength=num_users)
    rival, twin = _among_relevant(rows, own)
    reciprocal = np.bincount(rows, 1 / (better - rival + (equal - twin + 1) / 2), num_users)
    return TopKMetrics(
        num_users, float((hits / k).sum()), float((hits / counts).sum()),
        float(_any_hit(rows, better, equal, num_users, k).sum()),
        float((gains / discounts[np.minimum(counts, k)]).sum()), float((reciprocal / counts).sum()), k,
    )


def _among_relevant(rows: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each relevant item how many others of its user score better, and how many others the same."""
    order = np.lexsort((-own, rows))
    user, score = rows[order], own[order]
    fresh = np.concatenate(([True], user[1:] != user[:-1]))
    group = np.flatnonzero(fresh | np.concatenate(([True], score[1:] != score[:-1])))
    sizes = np.diff(np.append(group, len(order)))
    begins = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]  # where the user of each begins
    better, same = np.empty_like(rows), np.empty_like(rows)
    better[order], same[order] = np.repeat(group, sizes) - begins, np.repeat(sizes, sizes) - 1
    return better, same


def _any_hit(rows: np.ndarray, better: np.ndarray, equal: np.ndarray, num_users: int, k: int) -> np.ndarray:
    """(num_users,) probability that a relevant item stands among the first k."""
    sure = np.zeros(num_users, dtype=bool)
    sure[rows[better + equal <= k]] = True
    found = sure.astype(np.float64)
    # Only one group of ties of a user can lie across place k: of its e items, h relevant, so many get the places left.
    edge = (better < k) & (better + equal > k)
    tied = np.bincount(rows[edge], minlength=num_users)
    for user in np.flatnonzero((tied > 0) & ~sure):
        at = np.flatnonzero(edge & (rows == user))[0]
        size, places = int(equal[at]), k - int(better[at])
        found[user] = 1 - math.comb(size - int(tied[user]), places) / math.comb(size, places)
    return found


def _discounts(k: int) -> np.ndarray:
    """(k + 1,) sums of 1 / log2(p + 1) over the first 0 .. k places."""
    return np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))))
