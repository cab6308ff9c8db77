"""Splitting a graph into train, validation and test without links across the splits: what moves is a bundle, see `bundles`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from imf_core.data.graph.bundles import Bundles, pair_of
from imf_core.data.graph.splits import codes, distinct, mixed
from imf_core.errors import DataError

HELD_OUT = ("test", "valid")  # in the order in which they are filled
LEFT_OUT = 3
_LOOKED_AT = 50  # bundles for each triple to set aside


class By(StrEnum):
    """What decides which triples are held out."""

    RANDOM = "random"  # by a seeded hash
    TIME = "time"  # the latest ones
    ENTITY = "entity"  # those of held-out entities, which training never sees


@dataclass(frozen=True)
class Partition:
    """The splits and how they came about.

    Args:
        train, valid, test: (T, 3) distinct triples, in their order in the source.
        facts: counts, shares, seed: the content of `split.json`.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    facts: dict[str, Any]

    def lines(self) -> list[str]:
        """What was done, one fact a line."""
        lines = [f"{self.facts['repeats']:,} repeated lines merged"] if self.facts["repeats"] else []
        if self.facts["left_out"]:
            lines.append(f"{self.facts['left_out']:,} triples left out: training would have none of their relation")
        for name in reversed(HELD_OUT):
            wanted, written = self.facts[name]["wanted"], self.facts[name]["written"]
            short = f", {wanted - written:,} fewer than asked for" if wanted is not None and written < wanted else ""
            lines.append(f"{name}: {written:,} triples{short}")
        return [*lines, f"train: {len(self.train):,} triples"]


def partition(
    triples: np.ndarray, num_entities: int, num_relations: int, shares: Mapping[str, float], *, by: By = By.RANDOM,
    seed: int = 0, times: np.ndarray | None = None,
) -> Partition:
    """Split triples.

    By `random` and `time`, every entity and every relation keeps a training triple. By `random`, each relation gives up its
    share; by `time`, the latest bundles are test and those before them validation, where a bundle is as old as its oldest
    triple. By `entity`, the triples of held-out
    entities are held out: training sees none of them.

    Args:
        triples: (T, 3) head, relation, tail ids; repeats are merged.
        num_entities, num_relations: N and R.
        shares: of `valid` and `test`, 0..1 of all triples (by `entity`: of the entities), together below 1.
        by: see `By`.
        seed: another one, another choice.
        times: (T,) for `time`: what is larger is later.

    Raises:
        DataError: nothing is left to train on or to hold out.
    """
    kept = distinct(triples, num_entities, num_relations)
    if by is By.ENTITY:
        split = _by_entity(kept, num_entities, num_relations, shares, seed)
    else:
        latest = None if times is None else _latest(triples, kept, times, num_entities, num_relations)
        split = _by_bundle(kept, num_entities, num_relations, shares, latest, seed)
    parts = {name: kept[split == place] for place, name in enumerate(("train", *HELD_OUT))}
    facts: dict[str, Any] = {
        "by": str(by), "seed": seed, "shares": dict(shares), "lines": len(triples), "repeats": len(triples) - len(kept),
        "train": {"written": len(parts["train"])}, "left_out": int((split == LEFT_OUT).sum()),
    }
    for name in HELD_OUT:
        wanted = None if by is By.ENTITY else round(shares[name] * len(kept))  # there the share is of the entities
        facts[name] = {"wanted": wanted, "written": len(parts[name])}
        if shares[name] and not len(parts[name]):
            raise DataError(
                f"none of the {len(kept):,} triples can be spared for {name}: each entity and relation needs one to train on",
                remedy="ask for a larger share, split by entity, or bring more triples",
            )
    if not len(parts["train"]):
        raise DataError("no triple is left to train on", remedy="ask for smaller shares")
    return Partition(parts["train"], parts["valid"], parts["test"], facts)


def carve(
    triples: np.ndarray, count: int, num_entities: int, num_relations: int, seed: int = 0, *, apart: np.ndarray | None = None,
    single: bool = False, every: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Set bundles of triples aside such that no entity and no relation loses its last training triple.

    Each relation gives up its share first; what is then missing comes from any relation. Where every bundle is larger than
    `count`, one is set aside all the same.

    Args:
        triples: (T, 3) distinct training triples.
        count: how many to set aside; fewer if the others cannot be spared.
        num_entities, num_relations: N and R.
        seed: another seed sets other triples aside.
        apart: (S, 3) held-out triples; bundles between the ends of one stay in train.
        single: each triple moves alone, whatever else train knows of its ends.
        every: look at every bundle, not just at 50 times as many as are wanted.

    Returns:
        The kept and the set-aside triples, each in the order of `triples`.
    """
    if count <= 0 or not len(triples):
        return triples, triples[:0]
    # The first bundles of the sequence will do, unless most of them cannot be spared: a large graph is not sorted for a few.
    first = 2**64 * _LOOKED_AT * count // len(triples)
    rows = None
    if first < 2**64 and not every:
        keys = codes(triples, num_entities, num_relations) if single else pair_of(triples, num_entities)
        rows = np.flatnonzero(mixed(keys, seed) < np.uint64(first))
    bundles = Bundles(triples, num_entities, num_relations, rows, single)
    sequence = bundles.sequence(seed)
    if apart is not None:
        held = np.isin(bundles.pairs, pair_of(apart, num_entities))
        sequence = sequence[~held[sequence]]
    aside = np.zeros(len(triples), dtype=bool)
    aside[bundles.move(sequence, _quotas(bundles.uses, count, seed), count)] = True
    anything = np.full(num_relations, len(triples))
    aside[bundles.move(sequence, anything, count - int(aside.sum()))] = True
    if rows is not None and aside.sum() < count:
        return carve(triples, count, num_entities, num_relations, seed, apart=apart, single=single, every=True)
    if not aside.any():
        spare = sequence[bundles.movable(sequence, anything, len(triples))]
        smallest = spare[np.argsort(bundles.counts[spare], kind="stable")[:1]]
        aside[bundles.move(smallest, anything, len(triples))] = True
    return triples[~aside], triples[aside]


def _by_bundle(
    triples: np.ndarray, num_entities: int, num_relations: int, shares: Mapping[str, float], times: np.ndarray | None, seed: int
) -> np.ndarray:
    """(T,) 0 train, 1 test, 2 valid.

    Args:
        times: (T,) of each triple; None: by hash and quotas alone.
    """
    bundles = Bundles(triples, num_entities, num_relations)
    sequence, split = bundles.sequence(seed, times), np.zeros(len(triples), dtype=np.int8)
    uses, start = bundles.uses.copy(), 0
    for place, name in enumerate(HELD_OUT, start=1):
        wanted = round(shares[name] * len(triples))
        if times is None:
            split[bundles.move(sequence, _quotas(uses, wanted, seed), wanted)] = place
            continue
        # So many of the latest, whatever their relations; those that cannot be spared are not replaced by older ones.
        stop = start + int(np.searchsorted(np.cumsum(bundles.counts[sequence[start:]]), wanted, side="right"))
        split[bundles.move(sequence[start:stop], np.full(num_relations, len(triples)), len(triples))] = place
        start = stop
    return split


def _quotas(uses: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """(R,) triples that each relation gives up: its share, rounded so that they add up (largest remainder, then by hash)."""
    exact = uses * (wanted / max(1, uses.sum()))
    quota = np.floor(exact).astype(np.int64)
    missing = wanted - int(quota.sum())
    tie = mixed(np.arange(len(uses)), seed)
    quota[np.lexsort((tie, quota - exact))[:missing]] += 1
    return quota


def _latest(
    triples: np.ndarray, kept: np.ndarray, times: np.ndarray, num_entities: int, num_relations: int
) -> np.ndarray:
    """Time of each distinct triple: that of its last repeat."""
    found, place = np.unique(codes(triples, num_entities, num_relations), return_inverse=True)
    latest = np.full(len(found), -np.inf)
    np.maximum.at(latest, place, times)
    return latest[np.searchsorted(found, codes(kept, num_entities, num_relations))]


def _by_entity(
    triples: np.ndarray, num_entities: int, num_relations: int, shares: Mapping[str, float], seed: int
) -> np.ndarray:
    """(T,) 0 train, 1 test, 2 valid, 3 left out.

    A triple with an end held out for test is test, else one with an end held out for validation is valid. Triples of a relation
    that only held-out entities have are left out: no model could answer them.
    """
    present = np.unique(triples[:, [0, 2]])
    hashed = present[np.argsort(mixed(present, seed), kind="stable")]
    group = np.zeros(num_entities, dtype=np.int8)
    start = 0
    for place, name in enumerate(HELD_OUT, start=1):
        stop = start + round(shares[name] * len(present))
        group[hashed[start:stop]] = place
        start = stop
    ends = group[triples[:, [0, 2]]]
    split = np.where((ends == 1).any(axis=1), 1, np.where((ends == 2).any(axis=1), 2, 0)).astype(np.int8)
    trained = np.zeros(num_relations, dtype=bool)
    trained[triples[split == 0, 1]] = True
    split[~trained[triples[:, 1]]] = LEFT_OUT
    return split
