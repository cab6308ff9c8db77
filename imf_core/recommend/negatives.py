"""Negatives of BPR, drawn in each step: items that a user does not have, exactly and without rejection sampling.

Shapes: `U` users, `I` items, `P` training interactions, `B` interactions of a step, `K` negatives of each.
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
    k_t - t <= j; so one binary search in `k_t - t` replaces rejection sampling.

    Args:
        owned: the items of each user.
        num_items: I.
    """

    def __init__(self, owned: Owned, num_items: int) -> None:
        counts = np.diff(owned.offsets)
        self.starts, self.free, self.num_items = owned.offsets[:-1], num_items - counts, num_items
        position = np.arange(len(owned.items)) - np.repeat(self.starts, counts)  # (P,) t
        users = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._keys = users * np.int64(num_items + 1) + (owned.items - position)  # ascending: users in order, k_t - t in each

    def draw(self, users: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw items.

        Args:
            users: (B,) ids.
            count: K.
            random: the generator.

        Returns:
            (B, K) int64 item ids.

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
    """The training interactions with their negatives, in another order in each epoch.

    A user who has every item shows no preference: such interactions are left out here (they stay in the graph).

    Args:
        data: only its training interactions are read.

    Attributes:
        pairs: (P, 2) int64 user and item ids.
        left_out: number of interactions that are left out.

    Raises:
        DataError: every user has every item.
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
        """Steps of an epoch, the same for each process.

        Raises:
            DataError: fewer interactions than processes.
        """
        if len(self.pairs) < world:
            raise DataError(f"{len(self.pairs)} training interactions for {world} workers", remedy="use fewer workers")
        return min(-(-len(self.pairs) // batch_size), len(self.pairs) // world)

    def epoch(
        self, batch_size: int, num_negatives: int, seed: int, epoch: int, shard: Shard = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """This process's part of each step of an epoch.

        Order and negatives depend on (seed, epoch) alone; they are the same for any number of processes, which divide each
        step among them.

        Args:
            batch_size: interactions of a step, over all processes.
            num_negatives: K.
            seed, epoch: of the random numbers.
            shard: this process.

        Yields:
            Users (B,), positives (B,) and negatives (B, K), int64 ids; and the weight of this process's mean loss in that of
            the step, times the number of processes.
        """
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.pairs))
        for chunk in np.array_split(order, self.num_steps(batch_size, shard.world)):
            users, items = self.pairs[chunk].T
            negatives = self.negatives.draw(users, num_negatives, random)
            rows = slice(shard.rank, None, shard.world)
            part = [torch.from_numpy(np.ascontiguousarray(ids[rows])) for ids in (users, items, negatives)]
            yield part[0], part[1], part[2], len(part[0]) * shard.world / len(chunk)
