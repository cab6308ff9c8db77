"""The triples of one file in the file's own numbering, and how several files come to share one numbering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from imf_core.data.graph.graph import Vocabulary


@dataclass(frozen=True)
class Part:
    """What one file of names holds.

    Args:
        entities: its names in the order of first appearance, row by row, head before tail.
        relations: the same for relations.
        triples: (T, 3) int64 head, relation, tail: positions in these tuples, one row a line.
        literals: statements left out because their object is a literal.
        texts: subject -> those literals that are not blank, in the order of the file; empty where they were not asked for.
    """

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    triples: np.ndarray
    literals: int = 0
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def renumbered(self, entities: Vocabulary, relations: Vocabulary) -> tuple[np.ndarray, list[str]]:
        """The triples in the numbering of two vocabularies.

        Returns:
            (T, 3) int64, and the names that the vocabularies lack; these have ids from N or R on, in this order.
        """
        entity_ids, unknown_entities = _positions(self.entities, entities)
        relation_ids, unknown_relations = _positions(self.relations, relations)
        if _counts_up(entity_ids) and _counts_up(relation_ids):
            return self.triples, unknown_entities + unknown_relations  # the common case of a training file: nothing is copied
        triples = np.empty_like(self.triples)
        for column, ids in enumerate((entity_ids, relation_ids, entity_ids)):
            triples[:, column] = ids[self.triples[:, column]]
        return triples, unknown_entities + unknown_relations


def merged(kind: str, parts: Iterable[Sequence[str]]) -> Vocabulary:
    """All names of several files, in the order of first appearance."""
    names: dict[str, None] = {}
    for part in parts:
        names.update(dict.fromkeys(part))
    return Vocabulary(tuple(names), kind)


def _positions(names: Sequence[str], vocabulary: Vocabulary) -> tuple[np.ndarray, list[str]]:
    if names is vocabulary.names:
        return np.arange(len(names), dtype=np.int64), []
    index = vocabulary.index
    unknown: list[str] = []
    ids = np.empty(len(names), dtype=np.int64)
    for position, name in enumerate(names):
        index_or_new = index.get(name)
        if index_or_new is None:
            index_or_new = len(vocabulary) + len(unknown)
            unknown.append(name)
        ids[position] = index_or_new
    return ids, unknown


def _counts_up(ids: np.ndarray) -> bool:
    return bool((ids == np.arange(len(ids))).all())
