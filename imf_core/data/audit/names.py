"""Names that look the same to a reader, and triples of an entity with itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from imf_core.data.graph.graph import Vocabulary

_ADDRESS = re.compile(r"^<?\w[\w+.-]*://[^>]*?([^/#>]+)[/#]?>?$")


def colliding(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of names that are one when read: equal but for case, blanks and underscores, or for the place of a web address.

    Returns:
        The groups in the order of their first name.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_read(name), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def self_loops(triples: np.ndarray, entities: Vocabulary, relations: Vocabulary, most: int = 3) -> tuple[str, ...]:
    """The first triples of an entity with itself, as `ENTITY relation ENTITY`.

    Args:
        triples: (T, 3).
        entities, relations: their names.
        most: how many.
    """
    loops = triples[triples[:, 0] == triples[:, 2]][:most].tolist()
    return tuple(f"{entities.names[head]} {relations.names[relation]} {entities.names[tail]}" for head, relation, tail in loops)


def _read(name: str) -> str:
    address = _ADDRESS.match(name) if "://" in name else None
    return " ".join((address[1] if address else name).replace("_", " ").split()).casefold()
