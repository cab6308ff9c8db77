"""Splitting triples: distinct rows, rows of another split, a validation split carved from train."""

from __future__ import annotations

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


def carve(
    triples: np.ndarray, count: int, num_entities: int, num_relations: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Set triples aside such that no entity and no relation loses its last one.

    Which ones is decided by a hash of ids and seed, not by a random generator: the same with every version of NumPy.

    Args:
        triples: (T, 3) distinct training triples.
        count: how many to set aside; fewer if the others cannot be spared.
        seed: another seed sets other triples aside.

    Returns:
        The kept and the set-aside triples, each in the order of `triples`.
    """
    links = np.bincount(triples[:, [0, 2]].ravel(), minlength=num_entities)
    loops = triples[:, 0] == triples[:, 2]
    links -= np.bincount(triples[loops, 0], minlength=num_entities)  # a self-loop is one triple of its entity, not two
    uses = np.bincount(triples[:, 1], minlength=num_relations)
    spare = (links[triples[:, 0]] > 1) & (links[triples[:, 2]] > 1) & (uses[triples[:, 1]] > 1)
    rows = np.flatnonzero(spare)
    rows = rows[np.argsort(mixed(codes(triples[rows], num_entities, num_relations), seed), kind="stable")]
    aside = np.zeros(len(triples), dtype=bool)
    left = count
    for row in rows.tolist():
        if left <= 0:
            break
        head, relation, tail = triples[row].tolist()
        if links[head] > 1 and links[tail] > 1 and uses[relation] > 1:
            aside[row] = True
            links[head] -= 1
            if tail != head:
                links[tail] -= 1
            uses[relation] -= 1
            left -= 1
    return triples[~aside], triples[aside]


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """splitmix64 of each value: well-spread 64-bit numbers (Steele, Lea and Flood 2014)."""
    mixed = values.astype(np.uint64) + np.uint64((0x9E3779B97F4A7C15 * (seed + 1)) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
