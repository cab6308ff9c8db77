"""A modality: one feature vector per entity, aligned by entity name, with a mask of who has one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imf_core.config import FUSED, STRUCTURE
from imf_core.data.features.feature_files import Features, read_features, save_features
from imf_core.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_CHUNK = 1024  # rows that are widened to double precision at once


@dataclass(frozen=True)
class Modality:
    """Features of the N entities of a graph.

    Args:
        name: for example `text`; letters, digits, `_` and `-`, and no name of a built-in branch.
        matrix: (N, f) float32, finite; rows of entities without the modality are zero and never read as features.
        mask: (N,) bool, True where the entity has the modality.
        unknown: names in the source that are no entity of the graph (counted, ignored).
        encoder: what made the features, where that is known.
        standard: the matrix is what `standardised` gives; it then costs nothing, and is shared rather than copied.
    """

    name: str
    matrix: np.ndarray
    mask: np.ndarray
    unknown: int = 0
    encoder: str = ""
    standard: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in (STRUCTURE, FUSED):
            raise DataError(
                f"{self.name!r} cannot name a modality",
                remedy=f"use letters, digits, _ and -, and neither {STRUCTURE} nor {FUSED}",
                value=self.name,
            )
        if self.matrix.ndim != 2 or self.matrix.shape[0] != len(self.mask):
            raise DataError(
                f"modality {self.name}: matrix {self.matrix.shape} does not fit {len(self.mask)} mask entries",
                remedy="one row an entity",
            )
        if not self.mask.any():
            raise DataError(
                f"modality {self.name}: none of the {len(self.mask):,} entities has it",
                remedy="check that the names agree with the graph's",
            )
        bad = ~np.isfinite(self.matrix).all(axis=1)
        if bad.any():
            raise DataError(
                f"modality {self.name}: row {int(np.flatnonzero(bad)[0])} holds a non-finite number "
                f"({int(bad.sum())} such rows)",
                remedy="extract the features again, or leave these entities out",
            )

    @property
    def width(self) -> int:
        """f, the width of the features."""
        return int(self.matrix.shape[1])

    @property
    def coverage(self) -> float:
        """Share of the entities that have the modality, 0..1."""
        return float(self.mask.mean())

    def describe(self, noun: str = "entities") -> str:
        """One line for the terminal: `text: 5,990 of 6,016 entities (99.6 %), 128 wide`; `noun`: what has the features."""
        extra = f", {self.unknown:,} rows of unknown names ignored" if self.unknown else ""
        present = f"{int(self.mask.sum()):,} of {len(self.mask):,} {noun} ({100 * self.coverage:.1f} %)"
        by = f", {self.encoder}" if self.encoder else ""
        return f"{self.name}: {present}, {self.width} wide{by}{extra}"

    def standardised(self) -> np.ndarray:
        """(N, f) float32: present rows centred and divided by their common root mean square; missing rows zero."""
        if self.standard:
            return self.matrix
        present = self.matrix[self.mask]
        centre = present.mean(axis=0, dtype=np.float64)
        chunks = range(0, len(present), _CHUNK)
        squares = sum(float(((present[low : low + _CHUNK] - centre) ** 2).sum()) for low in chunks)
        scale = float(np.sqrt(squares / max(present.size, 1))) or 1.0
        for low in chunks:
            present[low : low + _CHUNK] = (present[low : low + _CHUNK] - centre) / scale
        standard = np.zeros(self.matrix.shape, dtype=np.float32)
        standard[self.mask] = present
        return standard

    @classmethod
    def aligned(
        cls, name: str, matrix: np.ndarray, row_names: Sequence[str], entities: Sequence[str], *, encoder: str = ""
    ) -> Modality:
        """Put rows in entity order by name, whatever order they come in.

        Args:
            matrix: (K, f) features of `row_names`.
            row_names: K distinct names; names that are no entity are counted and ignored.
            entities: the N names of the graph.
            encoder: what made the rows, where that is known.

        Raises:
            DataError: row count and names disagree, or a name occurs twice.
        """
        if len(row_names) != len(matrix):
            raise DataError(f"modality {name}: {len(matrix)} rows but {len(row_names)} names", remedy="one name a row")
        rows = {row_name: position for position, row_name in enumerate(row_names)}
        if len(rows) != len(row_names):
            repeated = next(row_name for position, row_name in enumerate(row_names) if rows[row_name] != position)
            raise DataError(f"modality {name}: two rows for {repeated!r}", remedy="pool them, or keep one", value=repeated)
        order = np.fromiter((rows.get(entity, -1) for entity in entities), dtype=np.int64, count=len(entities))
        mask = order >= 0
        placed = np.zeros((len(mask), matrix.shape[1]), dtype=np.float32)
        placed[mask] = matrix[order[mask]]
        return cls(name, placed, mask, len(row_names) - int(mask.sum()), encoder)

    def save(self, path: Path, entities: Sequence[str], facts: Mapping[str, str] | None = None) -> None:
        """Write the present rows and their names as safetensors, and facts on their origin as its metadata."""
        names = tuple(entity for entity, has in zip(entities, self.mask, strict=True) if has)
        save_features(path, Features(names, self.matrix[self.mask], dict(facts or {})))


def load_modality(path: Path, entities: Sequence[str], name: str | None = None) -> Modality:
    """Read `<name>.safetensors` (tensors `matrix` and `names`), or `<name>.npy` beside `<name>.names.txt`.

    Args:
        path: the file.
        entities: the N names of the graph.
        name: of the modality; default: the file's, without its suffix.

    Raises:
        DataError: pickled or unknown formats, missing names, damaged files.
    """
    path = Path(path)
    return modality_of(name or path.stem, read_features(path), entities)


def modality_of(name: str, features: Features, entities: Sequence[str]) -> Modality:
    """The modality that the rows of a feature file become; see `Modality.aligned`."""
    return Modality.aligned(name, features.matrix, features.names, entities, encoder=features.facts.get("encoder", ""))
