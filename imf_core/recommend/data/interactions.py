"""Implicit feedback: pairs of users and items, split for each user into training, validation and test interactions.

If the files give no split, the rules for a user with n interactions are:

- `round(0.8 n)` are training interactions: at least one if there is any, and both of two;
- of the rest, the larger half is test and the smaller one validation, so a single one is a test interaction;
- a user with fewer than three has none to test and is left out of averages.

If there are files of training and of test interactions but none of validation, `round(0.1 n)` of a user's training interactions
are set aside.

A hash of ids and seed chooses them. Ids follow the order of first appearance, so data sets that differ only in their names are
split alike.

Shapes: `U` users, `I` items, `P` interactions (a user id and an item id), `B` users that are looked up, `K` their items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from imf_core.data.graph.graph import SPLITS, Vocabulary, expand_ranges, fingerprint_of
from imf_core.data.graph.splits import mixed
from imf_core.errors import DataError

_TRAIN, _CARVED = 0.8, 0.1


@dataclass(frozen=True)
class RawInteractions:
    """Every line of the files; nothing is merged or left out.

    Args:
        users, items: names in id order.
        splits: `train`, `valid`, `test`, or `all` where the files give no split -> (P, 2) int64 user and item ids.
        used: (I,) bool: the item has an interaction in some file.
        offset: features without names: their row number plus this is the item's name. None: items have names.
        notes: what the readers skipped.
        source: folder or file, for messages.
        problems: what the readers found that makes the figures mean something else than they say.
    """

    users: Vocabulary
    items: Vocabulary
    splits: Mapping[str, np.ndarray]
    used: np.ndarray
    notes: tuple[str, ...] = ()
    source: str = ""
    offset: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> int:
        """Number of interactions in all files, repeats included."""
        return sum(map(len, self.splits.values()))

    def split(self, seed: int) -> dict[str, np.ndarray]:
        """Distinct pairs (P, 2) by `train`, `valid`, `test`: as the files give them, else by the rules above."""
        pairs = {name: distinct_pairs(rows, len(self.items)) for name, rows in self.splits.items()}
        size = len(self.users), len(self.items)
        if "all" in pairs:
            return dict(zip(SPLITS, split_per_user(pairs["all"], *size, seed), strict=True))
        if "valid" not in pairs:
            pairs["train"], pairs["valid"] = _part(pairs["train"], _places(pairs["train"], *size, seed), _CARVED, size[0])
        return {name: pairs.get(name, np.empty((0, 2), np.int64)) for name in SPLITS}


@dataclass(frozen=True)
class Interactions:
    """Users, items and the training and validation interactions. The test split stays on disk until `open_test`.

    Args:
        users, items: vocabularies in id order.
        train, valid: (P, 2) int64 user and item ids, distinct, ascending.
        test_reader: reads the test split; None where there is none (or where it must not be reachable).
        notes: what was mended or skipped.
        source: folder or file, for messages.
    """

    users: Vocabulary
    items: Vocabulary
    train: np.ndarray
    valid: np.ndarray
    test_reader: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not len(self.train):
            raise DataError(
                f"{self.source or 'the data'} has no training interaction", remedy="put user<TAB>item lines into it"
            )

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.items)

    def describe(self) -> str:
        """One line for the terminal: source and sizes."""
        return (
            f"{self.source}: {self.num_users:,} users, {self.num_items:,} items, {len(self.train):,} training and "
            f"{len(self.valid):,} validation interactions"
        )

    def open_test(self) -> np.ndarray:
        """Read the test interactions, (P, 2). Only the final evaluation may call this: nothing may be chosen by them.

        Raises:
            DataError: there is no test split.
        """
        if self.test_reader is None:
            raise DataError(f"{self.source or 'the data'} has no test split", remedy="give test.tsv, or one file that is split")
        return self.test_reader()

    @cached_property
    def seen_items(self) -> np.ndarray:
        """(I,) bool: the item has a training interaction; the others are *cold*."""
        return np.bincount(self.train[:, 1], minlength=self.num_items) > 0

    @cached_property
    def seen_users(self) -> np.ndarray:
        """(U,) bool: the user has a training interaction."""
        return np.bincount(self.train[:, 0], minlength=self.num_users) > 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of vocabularies, train and valid, which identifies the data of a study. The test split is not read."""
        return fingerprint_of((self.users, self.items), (self.train, self.valid))


@dataclass(frozen=True)
class Owned:
    """CSR index: user -> ascending distinct items.

    Args:
        offsets: (U + 1,) int64; those of user u are `items[offsets[u]:offsets[u + 1]]`.
        items: (P,) int64.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def build(cls, parts: Iterable[np.ndarray], num_users: int, num_items: int) -> Owned:
        """Index the pairs of several arrays (P, 2); repeats are merged."""
        pairs = distinct_pairs(np.concatenate([np.empty((0, 2), np.int64), *parts]), num_items)
        counts = np.bincount(pairs[:, 0], minlength=num_users)
        return cls(np.concatenate(([0], np.cumsum(counts))).astype(np.int64), pairs[:, 1])

    def of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) users -> (K,) positions in `users`, and (K,) items of those users."""
        return expand_ranges(self.offsets[users], self.offsets[users + 1], self.items)


def distinct_pairs(pairs: np.ndarray, num_items: int) -> np.ndarray:
    """(P, 2) -> (P', 2) without repeats, ascending by user, then item."""
    codes = np.unique(pairs[:, 0] * np.int64(max(num_items, 1)) + pairs[:, 1])
    return np.stack(np.divmod(codes, max(num_items, 1)), axis=1).astype(np.int64)


def split_per_user(
    pairs: np.ndarray, num_users: int, num_items: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test pairs by the rules at the top of this file.

    Args:
        pairs: (P, 2) int64, distinct, ascending.
        num_users, num_items: U and I.
        seed: of the choice.
    """
    place, user = _places(pairs, num_users, num_items, seed), pairs[:, 0]
    counts = np.bincount(user, minlength=num_users)
    train = np.floor(_TRAIN * counts + 0.5).astype(np.int64)
    test = (counts - train + 1) // 2
    held, last = place >= train[user], place >= (counts - test)[user]
    return pairs[~held], pairs[held & ~last], pairs[last]


def _places(pairs: np.ndarray, num_users: int, num_items: int, seed: int) -> np.ndarray:
    """(P,) position of each pair in a random order of its user's pairs."""
    order = np.lexsort((mixed(pairs[:, 0] * np.int64(num_items) + pairs[:, 1], seed), pairs[:, 0]))
    counts = np.bincount(pairs[:, 0], minlength=num_users)
    place = np.empty(len(pairs), dtype=np.int64)
    place[order] = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def _part(pairs: np.ndarray, place: np.ndarray, share: float, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide the pairs (P, 2), ordered by `place` (P,): the last `share` of each user's pairs are returned second."""
    counts = np.bincount(pairs[:, 0], minlength=num_users)
    aside = place >= (counts - np.floor(share * counts + 0.5).astype(np.int64))[pairs[:, 0]]
    return pairs[~aside], pairs[aside]
