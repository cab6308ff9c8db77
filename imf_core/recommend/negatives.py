"""Negatives of BPR, drawn on the fly: items that a user has not, exactly and without a loop that might not end.

Shapes: `U` users, `I` items, `P` training interactions, `B` of a step, `K` negatives of each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from imf_core.errors import DataError
from imf_core.recommend.data.interactions import Interactions, Owned
from imf_core.runtime import WHOLE, Shard


class Negatives:
    """Uniform draws from the items that a user does not have.

    The j-th item that is missing in the ascending items k_0, k_1, ... of a user is j plus the number of those t with
    k_t - t <= j; so one binary search in `k_t - t` replaces drawing again and again.

    Args:
        owned: what each user has.
        num_items: I.
    """

    def __init__(self, owned: Owned, num_items: int) -> None:
        counts = np.diff(owned.offsets)
        self.starts, self.free, self.num_items = owned.offsets[:-1], num_items - counts, num_items
        place = np.arange(len(owned.items)) - np.repeat(self.starts, counts)
        users = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._keys = users * np.int64(num_items + 1) + (owned.items - place)  # ascending: users in order, k_t - t within each

    def draw(self, users: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """(B, count) items; of users (B,) that do not have everything.

        Raises:
            ValueError: a user has every item.
        """
        free = self.free[users]
        if len(free) and free.min() <= 0:
            raise ValueError(f"user {int(users[np.argmin(free)])} has every item")
        chosen = np.minimum((random.random((len(users), count)) * free[:, None]).astype(np.int64), free[:, None] - 1)
        keys = users[:, None] * np.int64(self.num_items + 1) + chosen
        return chosen + np.searchsorted(self._keys, keys, side="right") - self.starts[users][:, None]


class TrainingPairs:
    """The training interactions that a step learns from, in another order each epoch.

    A user who has every item tells nothing about preference: her interactions are left out (they stay in the graph).

    Args:
        data: only its training interactions are read.

    Raises:
        DataError: nobody lacks an item.
    """

    def __init__(self, data: Interactions) -> None:
        self.negatives = Negatives(Owned.build([data.train], data.num_users, data.num_items), data.num_items)
        usable = self.negatives.free[data.train[:, 0]] > 0
        self.pairs = data.train[usable]
        self.left_out = int((~usable).sum())
        if not len(self.pairs):
            raise DataError(
                f"{data.source}: every user has every item, so there is nothing to prefer",
                remedy="list more items in items.txt, or give features of items that nobody has",
            )

    def num_steps(self, batch_size: int, world: int) -> int:
        """Steps of an epoch, the same on each rank.

        Raises:
            DataError: fewer interactions than processes.
        """
        if len(self.pairs) < world:
            raise DataError(f"{len(self.pairs)} training interactions for {world} workers", remedy="use fewer workers")
        return min(-(-len(self.pairs) // batch_size), len(self.pairs) // world)

    def epoch(
        self,
        batch_size: int,
        num_negatives: int,
        seed: int,
        epoch: int,
        shard: Shard = WHOLE,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Users (B,), positives (B,), negatives (B, K) of this rank, and the weight of its mean in that of the whole step.

        Order and negatives depend on (seed, epoch) alone and are the same for any number of ranks, which share each step.
        """
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.pairs))
        for chunk in np.array_split(order, self.num_steps(batch_size, shard.world)):
            users, items = self.pairs[chunk].T
            negatives = self.negatives.draw(users, num_negatives, random)
            mine = slice(shard.rank, None, shard.world)
            own = [torch.from_numpy(np.ascontiguousarray(part[mine])) for part in (users, items, negatives)]
            yield own[0], own[1], own[2], len(own[0]) * shard.world / len(chunk)
