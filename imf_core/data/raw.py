"""A graph as its files say it: every line, repeats and overlaps included. What the audit looks at and the converter writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imf_core.data.graph.graph import Vocabulary

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class RawGraph:
    """Vocabularies and the lines of each split, before anything is merged or mended.

    Args:
        entities, relations: names in id order, those of the test file included (they are candidates of the ranking).
        train: (T, 3) int64 head, relation, tail ids, one row a line, in the order of the file.
        valid: the same; None where there is no such file.
        test: the same; None where there is no such file, or where it was not asked for.
        notes: what the reader wants the user to know (skipped literals, names that look alike, ...).
        source: where it is from.
    """

    entities: Vocabulary
    relations: Vocabulary
    train: np.ndarray
    valid: np.ndarray | None = None
    test: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    source: str = ""

    def splits(self) -> dict[str, np.ndarray]:
        """The splits that are there, by name, in the order train, valid, test."""
        return {name: rows for name in SPLITS if (rows := getattr(self, name)) is not None}
