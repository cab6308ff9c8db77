"""How relations share their pairs: the ground of one-step rules and of the search for inverse and near-duplicate relations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from imf_core.data.graph.splits import distinct

THRESHOLD = 0.8  # Akrami et al. (SIGMOD 2020) take 0.8 of both relations, Toutanova and Chen (CVSC 2015) 0.97
MIN_SHARED = 3  # fewer shared pairs are chance: DB15K has 22 relation pairs that reach 0.8 by one or two pairs

INVERSE, DUPLICATE, SYMMETRIC = "inverse", "near-duplicate", "symmetric"


def flipped(triples: np.ndarray) -> np.ndarray:
    """(T, 3) with head and tail exchanged."""
    return triples[:, [2, 1, 0]]


def pair_codes(triples: np.ndarray, num_entities: int) -> np.ndarray:
    """(T,) one int64 an ordered pair of head and tail."""
    return triples[:, 0] * num_entities + triples[:, 2]


def is_in(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """(T,) bool: the value is one of the ascending ones."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


def shared_pairs(first: np.ndarray, second: np.ndarray, num_entities: int, num_relations: int) -> csr_array:
    """Number of ordered pairs that a relation links in `first` and a relation links in `second`.

    A sparse product over pairs: its work is the sum over pairs of the relations that link it, never R * R * pairs.

    Args:
        first, second: (T, 3), (S, 3) triples without repeats; `flipped` ones count reversed links.

    Returns:
        (R, R) int64; entry [a, b] counts the pairs of `a` in `first` that `b` links in `second`.
    """
    sides = []
    for part in (first, second):
        code = pair_codes(part, num_entities)
        order = np.argsort(code)  # looking up ascending values is far faster than looking up any
        sides.append((code[order], part[order, 1]))
    common = sides[0][0][is_in(sides[0][0], sides[1][0])]
    common = common[np.diff(common, prepend=-1) > 0]
    incidence = []
    for code, relation in sides:
        inside = is_in(code, common)
        column = np.searchsorted(common, code[inside])
        ones = np.ones(len(column), dtype=np.int64)
        incidence.append(csr_array((ones, (relation[inside], column)), shape=(num_relations, max(len(common), 1))))
    return csr_array(incidence[0] @ incidence[1].T)


@dataclass(frozen=True)
class RelationPair:
    """Two relations that link the same pairs; or, for a symmetric one, a relation and itself.

    Args:
        kind: `inverse` (b links the pairs of a reversed), `near-duplicate` (in the same direction) or `symmetric`.
        a, b: relation ids; a is the one whose held-out triples the other one gives away, else the smaller one.
        shared: distinct pairs of a, over all splits, that b links (reversed for an inverse).
        share_a, share_b: the shared pairs as a share of the pairs of a and of b, 0..1.
        valid, test: held-out triples of either relation whose pair the other one links in train.
    """

    kind: str
    a: int
    b: int
    shared: int
    share_a: float
    share_b: float
    valid: int = 0
    test: int = 0


def similar_relations(splits: dict[str, np.ndarray], num_entities: int, num_relations: int) -> list[RelationPair]:
    """Relations that say the same, the most shared pairs first.

    Two relations are reported where they share at least `MIN_SHARED` pairs and these are at least `THRESHOLD` of the smaller
    one, over all splits together; or where they are that share of the test triples of one of them, linked in train by the
    other: a relation that is rare in train may still give its test triples away.

    Args:
        splits: train, valid, test (T, 3), each without repeats; train must be there.
    """
    pairs: list[RelationPair] = []
    for reverse in (False, True):
        turned = flipped if reverse else np.asarray
        if reverse:  # a self-loop is its own reverse and says nothing of the direction
            splits = {name: rows[rows[:, 0] != rows[:, 2]] for name, rows in splits.items()}
        train = splits["train"]
        all_triples = distinct(np.concatenate(list(splits.values())), num_entities, num_relations)
        sizes = np.bincount(all_triples[:, 1], minlength=num_relations)
        shared = shared_pairs(all_triples, turned(all_triples), num_entities, num_relations)
        linked = {
            name: shared_pairs(rows, turned(train), num_entities, num_relations)
            for name, rows in splits.items() if name != "train"
        }
        near = _reaching(shared, sizes)
        if "test" in linked:
            near |= _reaching(linked["test"], np.bincount(splits["test"][:, 1], minlength=num_relations), one_sided=True)
        for a, b in sorted(near):
            if a == b and not reverse:
                continue
            given = {name: (int(counts[a, b]), int(counts[b, a])) for name, counts in linked.items()}
            order = (given.get("test", (0, 0)), -sizes[a]), (given.get("test", (0, 0))[::-1], -sizes[b])
            if order[1] > order[0]:
                a, b = b, a
            count = int(shared[a, b])
            kind = (SYMMETRIC if a == b else INVERSE) if reverse else DUPLICATE
            held_out = {name: pair[0] if a == b else sum(pair) for name, pair in given.items()}
            pairs.append(RelationPair(kind, a, b, count, count / int(sizes[a]), count / int(sizes[b]), **held_out))
    return sorted(pairs, key=lambda pair: (-pair.test, -pair.shared, pair.a, pair.b))


def _reaching(counts: csr_array, sizes: np.ndarray, *, one_sided: bool = False) -> set[tuple[int, int]]:
    """(smaller id, larger id) where the count reaches the threshold of the smaller relation (or of the row's alone)."""
    cells = counts.tocoo()
    rows, columns = cells.row.astype(np.int64), cells.col.astype(np.int64)
    base = sizes[rows] if one_sided else np.minimum(sizes[rows], sizes[columns])
    good = (cells.data >= MIN_SHARED) & (cells.data >= THRESHOLD * base)
    return set(zip(np.minimum(rows, columns)[good].tolist(), np.maximum(rows, columns)[good].tolist(), strict=True))
