"""Known facts of entities, for operators that fuse an entity's views in their light.

Shapes: `N` entities, `n` of them in a pass, `R` relations, `T` triples, `K` facts of an entity, `d` and `r` widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class GivenFacts:
    """What `Fusion.know` is given. An operator keeps it as it is: none of it is a parameter or a buffer of its own.

    Args:
        train: (T, 3) int64, the training triples; validation and test are not among them.
        num_relations: R; relation r + R is the inverse of r.
        structure: (N, d), the trained vectors of the entities.
        relations: (2R, r), those of the relations.
        nodes: which entities the running pass fuses: (n,) int64, or None for all N in their order.
    """

    train: np.ndarray
    num_relations: int
    structure: Tensor
    relations: Tensor
    nodes: Callable[[], Tensor | None]


def some_facts(train: np.ndarray, num_entities: int, num_relations: int, most: int) -> np.ndarray:
    """Up to K known facts of each entity, in both directions: as many relations as there are, then further facts of each.

    Args:
        train: (T, 3) int64.
        num_entities, num_relations: N and R.
        most: K, at least 1.

    Returns:
        (N, K, 2) int64 relation (below 2R) and other entity; -1 and -1 where an entity has fewer facts. The same each time.
    """
    heads, relations, tails = train.T
    entity = np.concatenate([heads, tails])
    relation = np.concatenate([relations, relations + num_relations])
    other = np.concatenate([tails, heads])
    order = np.random.default_rng(0).permutation(len(entity))
    kind = entity[order] * (2 * num_relations) + relation[order]
    order = order[np.argsort(kind, kind="stable")]
    turn = _place(entity[order] * (2 * num_relations) + relation[order])  # among the facts of its entity and relation
    order = order[np.lexsort((turn, entity[order]))]
    place = _place(entity[order])
    kept = order[place < most]
    facts = np.full((num_entities, most, 2), -1, dtype=np.int64)
    facts[entity[kept], place[place < most]] = np.stack([relation[kept], other[kept]], axis=1)
    return facts


def _place(keys: np.ndarray) -> np.ndarray:
    """The place of each of ascending keys among its equals, from 0."""
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, dtype=np.int64)
    return np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
