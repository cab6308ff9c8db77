"""What splitting triples needs: a number for each, distinct rows, a hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def codes(triples: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """(T,) one int64 a triple, equal exactly where the triples are equal.

    Args:
        triples: (T, 3) head, relation, tail ids.

    Raises:
        OverflowError: N * R * N does not fit 63 bits.
    """
    if num_entities * num_relations * num_entities >= 2**63:
        raise OverflowError(f"{num_entities:,} entities and {num_relations:,} relations have too many triples to number")
    return (triples[:, 0] * num_relations + triples[:, 1]) * num_entities + triples[:, 2]


def distinct(triples: np.ndarray, num_entities: int, num_relations: int) -> np.ndarray:
    """Without repeats, in order of first appearance."""
    _, first = np.unique(codes(triples, num_entities, num_relations), return_index=True)
    return triples if len(first) == len(triples) else triples[np.sort(first)]


def counted_of(
    triples: np.ndarray, earlier: Sequence[np.ndarray], num_entities: int, num_relations: int
) -> np.ndarray | None:
    """Which triples of a split its figures are of: those that stand in no earlier split.

    Args:
        triples: (T, 3).
        earlier: (., 3) each.

    Returns:
        (T,) bool; all True where no triple is left, None where none is shared.
    """
    size = num_entities, num_relations
    shared = np.isin(codes(triples, *size), np.concatenate([codes(part, *size) for part in earlier]))
    return None if not shared.any() else shared if shared.all() else ~shared


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of each value: well-spread 64-bit numbers (Steele, Lea and Flood 2014)."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
