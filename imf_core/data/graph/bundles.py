"""Moving triples out of train by *bundle*: all triples between the same two entities, whichever the relations and directions.

Reversed, inverse and near-duplicate links therefore stay together: train keeps no triple between the ends of a moved one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from imf_core.data.graph.graph import expand_ranges
from imf_core.data.graph.splits import codes, mixed

_BLOCK = 1 << 14  # bundles looked at together


class Bundles:
    """The bundles of a graph, which move while every entity and every relation keeps a training triple.

    Letters: B bundles, T triples, N entities, R relations.

    Args:
        triples: (T, 3) distinct head, relation, tail ids; all are in train at first.
        num_entities, num_relations: N and R.
        rows: (T',) rows of whole bundles; the others never move. Default: all.
        single: each triple is a bundle of its own.
    """

    def __init__(
        self, triples: np.ndarray, num_entities: int, num_relations: int, rows: np.ndarray | None = None, single: bool = False
    ) -> None:
        self.triples, self.num_entities = triples, num_entities
        rows = np.arange(len(triples)) if rows is None else rows
        pairs = pair_of(triples[rows], num_entities)
        by_bundle = np.lexsort((triples[rows, 1], pairs))  # rows of a bundle stand side by side, and in it those of a relation
        self.order, pairs = rows[by_bundle], pairs[by_bundle]
        relations = triples[self.order, 1]
        other = np.full(len(rows), True) if single else np.diff(pairs, prepend=-1) != 0
        self.starts = np.append(np.flatnonzero(other), len(rows))  # (B + 1,) positions in `order`
        self.pairs = pairs[self.starts[:-1]]  # (B,)
        self._keys = codes(triples[self.order], num_entities, num_relations) if single else self.pairs  # (B,)
        self.counts = np.diff(self.starts)  # (B,) triples
        twins = np.flatnonzero(~other & (np.diff(relations, prepend=-1) == 0))
        self._needs = np.ones(len(rows), dtype=np.int8)  # (T',) triples of the relation in the bundle; 2: both directions
        self._needs[twins] = self._needs[twins - 1] = 2
        self.links = np.bincount(triples[:, [0, 2]].ravel(), minlength=num_entities)  # (N,) ends left in train
        self.uses = np.bincount(triples[:, 1], minlength=num_relations)  # (R,) triples left in train
        self.moved = np.zeros(len(self.counts), dtype=bool)

    def sequence(self, seed: int, times: np.ndarray | None = None) -> np.ndarray:
        """(B,) the bundles by a hash of their entities' ids (single triples: of all ids), the same with every version of NumPy.

        Args:
            seed: another one, another sequence.
            times: (T,) the latest bundles first, a bundle being as old as its oldest triple; the hash decides between equals.
        """
        hashed = mixed(self._keys, seed)
        if times is None:
            return np.argsort(hashed, kind="stable")
        return np.lexsort((hashed, -np.minimum.reduceat(times[self.order], self.starts[:-1])))

    def move(self, sequence: np.ndarray, quotas: np.ndarray, room: int) -> np.ndarray:
        """Move bundles out of train: in sequence, those that can be spared and fit.

        Args:
            sequence: (S,) bundles.
            quotas: (R,) most triples of each relation.
            room: most triples.

        Returns:
            (K,) their rows in `triples`, ascending.
        """
        quotas = quotas.copy()
        rows: list[np.ndarray] = []
        for start in range(0, len(sequence), _BLOCK):
            block = sequence[start : start + _BLOCK]
            for bundle in block[self.movable(block, quotas, room)].tolist():  # few of them: those are looked at one by one
                inside = self.order[self.starts[bundle] : self.starts[bundle + 1]]
                relations = Counter(self.triples[inside, 1].tolist())
                ends = Counter(self.triples[inside][:, [0, 2]].ravel().tolist())
                spared = all(self.uses[relation] > count for relation, count in relations.items()) and all(
                    self.links[entity] > count for entity, count in ends.items()
                )
                if not spared or len(inside) > room or any(quotas[kind] < count for kind, count in relations.items()):
                    continue
                for relation, count in relations.items():
                    quotas[relation] -= count
                    self.uses[relation] -= count
                for entity, count in ends.items():
                    self.links[entity] -= count
                self.moved[bundle] = True
                rows.append(inside)
                room -= len(inside)
            if room <= 0:
                break
        return np.sort(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)

    def movable(self, bundles: np.ndarray, quotas: np.ndarray, room: int) -> np.ndarray:
        """(S,) bool: the bundle can be spared and fits as things stand. See `move` for the arguments."""
        counts, pairs = self.counts[bundles], self.pairs[bundles]
        low, high = pairs // self.num_entities, pairs % self.num_entities
        fewest = np.minimum(self.links[low], self.links[high])
        good = ~self.moved[bundles] & (counts <= room) & (fewest > counts * (1 + (low == high)))
        which, inside = expand_ranges(self.starts[bundles], self.starts[bundles + 1], self.order)
        relation = self.triples[inside, 1]
        needs = expand_ranges(self.starts[bundles], self.starts[bundles + 1], self._needs)[1]
        good[which[(quotas[relation] < needs) | (self.uses[relation] <= needs)]] = False
        return good


def pair_of(triples: np.ndarray, num_entities: int) -> np.ndarray:
    """(T,) one int64 for the two ends of a triple, whatever the direction."""
    low, high = np.minimum(triples[:, 0], triples[:, 2]), np.maximum(triples[:, 0], triples[:, 2])
    return low * num_entities + high
