"""Precision, recall, hit ratio and NDCG at k of recommendations, averaged over users; and the reciprocal rank.

For a user with R relevant (held-out) items, h of them among the first k:

    precision_at_k = h / k        recall_at_k = h / R        hit_ratio_at_k = 1 if h else 0
    ndcg_at_k      = sum_{hits at place p} 1 / log2(p + 1)  /  sum_{p = 1..min(k, R)} 1 / log2(p + 1)
    mrr            = mean over the relevant items of 1 / rank among the candidates that are not relevant

The last is the filtered reciprocal rank of link prediction. Epochs and settings are chosen by it, since it depends on the whole
order.

Candidates are the items that the user does not have in the known splits (train for validation; train and validation for test).
A relevant item that is known does not count. Users without relevant items are left out.

Ties: each value is its expectation over all orders of the tied items, so that constant scores get the value of a random order;
the reciprocal rank takes the mean of the best and the worst place among the ties ("realistic").

Shapes: `U` users, `B` users of a block, `I` items, `P` interactions, `K` relevant pairs of a block, `d` vector width.
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
        k: length of the list.
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
        """See `Metrics.as_dict`; with the number of users."""
        return {"users": self.count, **self.flat()}

    @classmethod
    def from_dict(cls, values: Mapping[str, float], k: int = K) -> TopKMetrics:
        """The inverse of `as_dict`."""
        count = int(values["users"])
        sums = (values[f"{name}_at_{k}"] * count for name in ("precision", "recall", "hit_ratio", "ndcg"))
        precision, recall, hit_ratio, ndcg = sums
        return cls(count, precision, recall, hit_ratio, ndcg, values["mrr"] * count, k)

    def vector(self) -> np.ndarray:
        """See `Metrics.vector`."""
        return np.array(astuple(self)[:-1], dtype=np.float64)

    def describe(self) -> str:
        """`MRR 12.6, P@10 48.8, R@10 20.9, NDCG@10 48.8`, in percent."""
        flat = self.flat()
        short = {"P": "precision", "R": "recall", "NDCG": "ndcg"}
        parts = (f"{letter}@{self.k} {100 * flat[f'{name}_at_{self.k}']:.1f}" for letter, name in short.items())
        return f"MRR {100 * self.mrr:.1f}, {', '.join(parts)}"

    def pack(self) -> dict[str, Any]:
        """See `Metrics.pack`."""
        return {"k": self.k, "sums": self.vector().tolist()}

    @classmethod
    def unpack(cls, values: Mapping[str, Any]) -> TopKMetrics:
        """The inverse of `pack`."""
        return cls(k=int(values["k"])).with_vector(np.asarray(values["sums"]))

    def with_vector(self, vector: np.ndarray) -> TopKMetrics:
        """See `Metrics.with_vector`."""
        count, precision, recall, hit_ratio, ndcg, reciprocal = vector.tolist()
        return TopKMetrics(round(count), precision, recall, hit_ratio, ndcg, reciprocal, self.k)


class Scorer(Protocol):
    """A model or baseline that scores all items for some users."""

    num_items: int

    def scores(self, users: Tensor) -> Tensor:
        """(B,) int64 ids -> (B, I) scores, higher is better; the caller may overwrite them."""
        ...


class VectorScorer:
    """Dot products of the vectors of a model in evaluation mode.

    Args:
        users, items: (U, d), (I, d).
    """

    def __init__(self, users: Tensor, items: Tensor) -> None:
        self.users, self.items, self.num_items = users, items, len(items)

    def scores(self, users: Tensor) -> Tensor:
        """See `Scorer`."""
        return self.users[users.to(self.users.device)] @ self.items.T


class Popularity:
    """The baseline without training: an item's score is the number of its training interactions, the same for all users.

    Args:
        train: (P, 2) int64 user and item ids.
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
    """Metrics over all users with relevant items.

    Args:
        scorer: of the model or baseline.
        relevant: held-out items of each user.
        known: items of each user that are not recommended.
        k: length of the list, at least 1.
        budget: bytes that the scores of a block may take.
        shard: this process; it evaluates every `world`-th user.

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
        places = _places(table, torch.from_numpy(rows), torch.from_numpy(items))
        score, better, equal = (part.cpu().numpy() for part in places)
        total = total + _metrics_of_places(rows, score, better, equal, len(users), k, discounts)
    return total


def _blocks(
    relevant: Owned, known: Owned, num_items: int, budget: int, shard: Shard
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Blocks of users (B,), with rows (K,) and items (K,) of their relevant pairs, and rows and items of their known ones."""
    asked = np.flatnonzero(np.diff(relevant.offsets))[shard.rank :: shard.world]
    size = max(1, budget // (8 * max(1, num_items)))
    for low in range(0, len(asked), size):
        users = asked[low : low + size]
        rows, items = relevant.of(users)
        hidden = known.of(users)
        keep = ~np.isin(rows * np.int64(num_items) + items, hidden[0] * np.int64(num_items) + hidden[1])
        left = np.unique(rows[keep])  # users with a relevant item that is not known
        inside = np.isin(hidden[0], left)
        renumbered = np.full(len(users), -1, dtype=np.int64)
        renumbered[left] = np.arange(len(left))
        if len(left):
            yield users[left], renumbered[rows[keep]], items[keep], (renumbered[hidden[0][inside]], hidden[1][inside])


def _places(table: Tensor, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each relevant pair, given by its row (K,) and item (K,) in a table (B, I): its score, and how many candidates score
    better and how many the same (itself included), (K,) each.
    """
    rows, items = rows.to(table.device), items.to(table.device)
    scores = table[rows, items]
    better, equal = torch.empty_like(rows), torch.empty_like(rows)
    step = max(1, _ROWS // table.shape[1])
    for low in range(0, len(rows), step):
        part = slice(low, low + step)
        candidates, target = table[rows[part]], scores[part, None]  # (step, I), (step, 1)
        better[part], equal[part] = (candidates > target).sum(dim=1), (candidates == target).sum(dim=1)
    return scores, better, equal


def _metrics_of_places(
    rows: np.ndarray, scores: np.ndarray, better: np.ndarray, equal: np.ndarray, num_users: int, k: int, discounts: np.ndarray
) -> TopKMetrics:
    """Expected values of the metrics. A relevant item is on one of the places better + 1 .. better + equal.

    Args:
        rows: (K,) user of each relevant pair, 0..num_users-1.
        scores, better, equal: (K,) from `_places`.
        num_users: B.
        k: length of the list.
        discounts: (k + 1,) from `_discounts`.
    """
    first, last = np.minimum(better, k), np.minimum(better + equal, k)
    chance = (last - first) / equal
    hits = np.bincount(rows, chance, num_users)
    gains = np.bincount(rows, (discounts[last] - discounts[first]) / equal, num_users)
    counts = np.bincount(rows, minlength=num_users)
    rival, twin = _among_relevant(rows, scores)
    reciprocal = np.bincount(rows, 1 / (better - rival + (equal - twin + 1) / 2), num_users)
    return TopKMetrics(
        num_users, float((hits / k).sum()), float((hits / counts).sum()),
        float(_any_hit(rows, better, equal, num_users, k).sum()),
        float((gains / discounts[np.minimum(counts, k)]).sum()), float((reciprocal / counts).sum()), k,
    )


def _among_relevant(rows: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K,) users and scores of relevant items -> (K,) others of the same user with a better score, (K,) with the same score."""
    order = np.lexsort((-scores, rows))
    user, score = rows[order], scores[order]
    fresh = np.concatenate(([True], user[1:] != user[:-1]))
    group = np.flatnonzero(fresh | np.concatenate(([True], score[1:] != score[:-1])))
    sizes = np.diff(np.append(group, len(order)))
    begins = np.flatnonzero(fresh)[np.cumsum(fresh) - 1]  # position of the first item of the same user
    better, same = np.empty_like(rows), np.empty_like(rows)
    better[order], same[order] = np.repeat(group, sizes) - begins, np.repeat(sizes, sizes) - 1
    return better, same


def _any_hit(rows: np.ndarray, better: np.ndarray, equal: np.ndarray, num_users: int, k: int) -> np.ndarray:
    """(B,) probability that a relevant item is among the first k; arguments as of `_metrics_of_places`."""
    sure = np.zeros(num_users, dtype=bool)
    sure[rows[better + equal <= k]] = True
    probability = sure.astype(np.float64)
    # Only one group of ties of a user can extend across place k; its items share the places that are left at random.
    edge = (better < k) & (better + equal > k)
    tied = np.bincount(rows[edge], minlength=num_users)
    for user in np.flatnonzero((tied > 0) & ~sure):
        at = np.flatnonzero(edge & (rows == user))[0]
        size, places = int(equal[at]), k - int(better[at])
        probability[user] = 1 - math.comb(size - int(tied[user]), places) / math.comb(size, places)
    return probability


def _discounts(k: int) -> np.ndarray:
    """(k + 1,) sums of 1 / log2(p + 1) over the first 0 .. k places."""
    return np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))))
