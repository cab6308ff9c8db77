"""Entities and relations of validation and test that training lacks: counted, and kept or left out by one policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Policy = Literal["keep", "drop"]
_WORDS = {"valid": "validation"}


@dataclass(frozen=True)
class Unseen:
    """What a split holds that training lacks.

    Args:
        split: `valid` or `test`.
        num_entities, num_relations: distinct ones that occur in no training triple.
        in_entity, in_relation: (T,) bool, the triple holds such an entity, such a relation.
    """

    split: str
    num_entities: int
    num_relations: int
    in_entity: np.ndarray
    in_relation: np.ndarray

    @property
    def in_either(self) -> np.ndarray:
        """(T,) bool: the triples that the policy `drop` leaves out."""
        return self.in_entity | self.in_relation

    def describe(self) -> str:
        """`2 unseen entities in 2 test triples; 1 unseen relation in 1`; empty if there are none."""
        counts = (
            (self.num_entities, "entity", "entities", int(self.in_entity.sum())),
            (self.num_relations, "relation", "relations", int(self.in_relation.sum())),
        )
        parts = [f"{count:,} unseen {one if count == 1 else many} in {rows:,}" for count, one, many, rows in counts if count]
        if parts:
            rows = next(rows for count, _, _, rows in counts if count)
            parts[0] += f" {_WORDS.get(self.split, self.split)} {'triple' if rows == 1 else 'triples'}"
        return "; ".join(parts)

    def note(self, policy: Policy, num_candidates: int) -> str:
        """What happens to them, with the numbers; empty if there are none.

        Args:
            policy: `data.unseen`.
            num_candidates: entities among which the answers are ranked.
        """
        counts = self.describe()
        if not counts:
            return ""
        if policy == "keep":
            return f"{counts}: kept, ranked among {num_candidates:,} entities (data.unseen=drop leaves them out)"
        return f"{counts}: {int(self.in_either.sum()):,} of {len(self.in_either):,} left out (data.unseen=drop)"


def find_unseen(split: str, triples: np.ndarray, seen_entities: np.ndarray, seen_relations: np.ndarray) -> Unseen:
    """Compare a split with training.

    Args:
        split: `valid` or `test`.
        triples: (T, 3) head, relation, tail ids.
        seen_entities, seen_relations: (N,) and (R,) bool, it occurs in a training triple.
    """
    new_head, new_tail = ~seen_entities[triples[:, 0]], ~seen_entities[triples[:, 2]]
    new_relation = ~seen_relations[triples[:, 1]]
    entities = np.concatenate([triples[new_head, 0], triples[new_tail, 2]])
    return Unseen(
        split, len(np.unique(entities)), len(np.unique(triples[new_relation, 1])), new_head | new_tail, new_relation
    )


def seen_in(triples: np.ndarray, num_entities: int, num_relations: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (R,) bool: the entity, the relation occurs in the triples."""
    entities, relations = np.zeros(num_entities, dtype=bool), np.zeros(num_relations, dtype=bool)
    entities[triples[:, 0]] = True
    entities[triples[:, 2]] = True
    relations[triples[:, 1]] = True
    return entities, relations
