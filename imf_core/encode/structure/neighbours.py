"""Neighbours of entities, sampled, and triples corrupted: what a step of the structure encoder reads.

Shapes: `N` entities, `R` relations (2R with inverses), `T` triples, `E` edges, `n` nodes of a step, `k` corruptions a triple.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imf_core.data.graph.graph import with_inverses
from imf_core.data.graph.splits import codes

_ROUNDS = 8  # draws before a corruption that is always a known triple is given up


@dataclass(frozen=True)
class Hop:
    """The edges of one attention layer over the nodes of a step.

    Args:
        edges: (2, E) int64 positions among the step's nodes: row 0 the aggregating node, row 1 its neighbour.
        types: (E,) int64 relation ids below 2R.
        size: aggregating nodes; they are the first of the step's nodes.
    """

    edges: np.ndarray
    types: np.ndarray
    size: int


class Neighbours:
    """CSR lists: entity -> (neighbour, relation), both directions: a triple `(h, r, t)` is an edge from t to h and, with the
    inverse relation, from h to t.

    Args:
        triples: (T, 3) training triples.
        num_entities, num_relations: N and R.
    """

    def __init__(self, triples: np.ndarray, num_entities: int, num_relations: int) -> None:
        rows = with_inverses(triples, num_relations)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        self.offsets = np.searchsorted(rows[:, 0], np.arange(num_entities + 1)).astype(np.int64)
        self.relations, self.others = rows[:, 1].copy(), rows[:, 2].copy()
        self._place = np.full(num_entities, -1, dtype=np.int64)

    def sample(self, nodes: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Edges of some nodes, at most `most` of each, chosen evenly along its list (which is ordered by relation).

        Args:
            nodes: (n,) distinct entities.
            most: the cap.
            rng: source of the choice; a node within the cap keeps all of its edges.

        Returns:
            rows (E,) positions in `nodes`, and places (E,) in `others` and `relations`.
        """
        degrees = self.offsets[nodes + 1] - self.offsets[nodes]
        taken = np.minimum(degrees, most)
        rows = np.repeat(np.arange(len(nodes)), taken)
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(taken) - taken, taken)
        # Systematic sampling: the i-th of m edges is at (i + u) * degree / m; distinct, each edge equally likely, O(m).
        start = np.where(degrees > most, rng.random(len(nodes)), 0.0)[rows]
        steps = ((rank + start) * (degrees / np.maximum(taken, 1))[rows]).astype(np.int64)
        return rows, self.offsets[nodes][rows] + np.minimum(steps, degrees[rows] - 1)

    def step(self, seeds: np.ndarray, most: int, rng: np.random.Generator, depth: int = 2) -> tuple[np.ndarray, list[Hop]]:
        """The surroundings of some entities, for `depth` layers.

        Args:
            seeds: (s,) distinct entities whose vectors are wanted.
            most: neighbours of a node at most: there are never more than `n * most` edges in a layer.
            rng: source of the samples.

        Returns:
            nodes (n,) entities, the seeds first; and a hop a layer in the order of computation: the last one ends in the seeds.
        """
        nodes, hops = seeds, []
        for _ in range(depth):
            rows, places = self.sample(nodes, most, rng)
            reached_by_edges = self.others[places]
            self._place[nodes] = np.arange(len(nodes))
            fresh = np.unique(reached_by_edges[self._place[reached_by_edges] < 0])
            reached = np.concatenate([nodes, fresh])
            self._place[fresh] = np.arange(len(nodes), len(reached))
            hops.append(Hop(np.stack([rows, self._place[reached_by_edges]]), self.relations[places], len(nodes)))
            self._place[reached] = -1
            nodes = reached
        return nodes, hops[::-1]


class Corruption:
    """Draws triples with another head or another tail that are no training triples.

    Args:
        triples: (T, 3) training triples; nothing else is known here.
        num_entities, num_relations: N and R.
    """

    def __init__(self, triples: np.ndarray, num_entities: int, num_relations: int) -> None:
        self.num_entities, self.num_relations = num_entities, num_relations
        self._known = np.unique(codes(triples, num_entities, num_relations))

    def draw(self, triples: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`count` corruptions of each triple.

        Args:
            triples: (B, 3).
            count: k.
            rng: source of the draws.

        Returns:
            (B * k, 3) triples, those of the first triple first; and (B * k,) bool: False where every draw was a known triple.
        """
        drawn = np.repeat(triples, count, axis=0)
        column = np.where(rng.random(len(drawn)) < 0.5, 0, 2)
        open_rows = np.arange(len(drawn))
        for _ in range(_ROUNDS):
            drawn[open_rows, column[open_rows]] = rng.integers(self.num_entities, size=len(open_rows))
            open_rows = open_rows[self._is_known(drawn[open_rows])]
            if not len(open_rows):
                break
        good = np.ones(len(drawn), dtype=bool)
        good[open_rows] = False
        return drawn, good

    def _is_known(self, triples: np.ndarray) -> np.ndarray:
        wanted = codes(triples, self.num_entities, self.num_relations)
        position = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return np.asarray(self._known[position] == wanted)
