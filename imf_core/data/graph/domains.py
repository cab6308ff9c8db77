"""Which questions make sense, and which have one answer only, as the training facts show it.

Shapes: `N` entities, `R` relations (2R with inverses), `Q` questions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers

_HALF = 0.5  # of the entities that answer one question answer another: then it makes sense for the rest too
_SINGLE = 0.95  # of the answered questions of a relation have one answer: then a second one is no new fact, but an error


@dataclass(frozen=True)
class Domains:
    """The type constraints of a graph without types.

    A question (e, r) makes sense if training answers it, or if it answers another question of e, and at least half of the
    entities with that one have this one too: characters that have a script have a block, but cities have no spouse.

    Args:
        keys: (Q,) int64, ascending, `entity * 2R + relation`: the questions that make sense.
        single: (2R,) bool: at least 95 % of the questions that training answers have one answer.
    """

    keys: np.ndarray
    single: np.ndarray

    @classmethod
    def of(cls, graph: KnowledgeGraph) -> Domains:
        """The domains of the training facts."""
        answered, width = graph.known(graph.train), 2 * graph.num_relations
        entities, relations = answered.queries()
        has = csr_array((np.ones(len(entities)), (entities, relations)), shape=(graph.num_entities, width))
        together = (has.T @ has).tocoo()  # (2R, 2R): entities that answer both
        counts = np.maximum(np.bincount(relations, minlength=width), 1)
        implied = together.data >= _HALF * counts[together.row]
        rules = csr_array((np.ones(int(implied.sum())), (together.row[implied], together.col[implied])), shape=(width, width))
        sensible = (has @ rules).tocoo()
        keys = np.sort(sensible.row.astype(np.int64) * width + sensible.col)
        one = np.bincount(relations, np.diff(answered.offsets) == 1, minlength=width)
        return cls(keys, one >= _SINGLE * counts)

    def make_sense(self, entities: np.ndarray, relations: np.ndarray) -> np.ndarray:
        """(Q,) bool; relations below 2R."""
        return np.isin(entities * len(self.single) + relations, self.keys)

    def open_questions(self, known: KnownAnswers) -> tuple[np.ndarray, np.ndarray]:
        """Entities (Q,) and relations (Q,) of the questions that make sense and whose answer is not settled by a known one."""
        entities, relations = self.keys // len(self.single), self.keys % len(self.single)
        settled = self.single[relations] & np.isin(self.keys, known.keys)
        return entities[~settled], relations[~settled]
