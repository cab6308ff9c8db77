"""A modality: one feature vector per entity, aligned by entity name, with a mask of who has one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imf_core.config import FUSED, STRUCTURE
from imf_core.data.readers import read_lines
from imf_core.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Modality:
    """Features of the N entities of a graph.

    Args:
        name: for example `text`; letters, digits, `_` and `-`, and no name of a built-in branch.
        matrix: (N, f) float32, finite; rows of entities without the modality are zero and never read as features.
        mask: (N,) bool, True where the entity has the modality.
        unknown: names in the source that are no entity of the graph (counted, ignored).
    """

    name: str
    matrix: np.ndarray
    mask: np.ndarray
    unknown: int = 0

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

    def describe(self) -> str:
        """One line for the terminal: `text: 5,990 of 6,016 entities (99.6 %), 128 wide`."""
        extra = f", {self.unknown:,} rows of unknown names ignored" if self.unknown else ""
        present = f"{int(self.mask.sum()):,} of {len(self.mask):,} entities ({100 * self.coverage:.1f} %)"
        return f"{self.name}: {present}, {self.width} wide{extra}"

    def standardised(self) -> np.ndarray:
        """(N, f) float32: present rows centred and divided by their common root mean square; missing rows zero."""
        present = self.matrix[self.mask].astype(np.float64)
        centre = present.mean(axis=0)
        scale = float(np.sqrt(((present - centre) ** 2).mean())) or 1.0
        return np.where(self.mask[:, None], (self.matrix - centre) / scale, 0.0).astype(np.float32)

    @classmethod
    def aligned(cls, name: str, matrix: np.ndarray, row_names: Sequence[str], entities: Sequence[str]) -> Modality:
        """Put rows in entity order by name, whatever order they come in.

        Args:
            matrix: (K, f) features of `row_names`.
            row_names: K distinct names; names that are no entity are counted and ignored.
            entities: the N names of the graph.

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
        aligned = np.where(mask[:, None], matrix[np.maximum(order, 0)], 0.0).astype(np.float32)
        return cls(name, aligned, mask, unknown=len(row_names) - int(mask.sum()))

    def save(self, path: Path, entities: Sequence[str]) -> None:
        """Write the present rows and their names as safetensors."""
        names = "\n".join(entity for entity, has in zip(entities, self.mask, strict=True) if has)
        save_file(
            {"matrix": self.matrix[self.mask], "names": np.frombuffer(names.encode("utf-8", "surrogateescape"), np.uint8)}, path
        )


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
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy") as handle:
                missing = {"matrix", "names"} - set(handle.keys())
                if missing:
                    raise DataError.at(path, None, f"no tensor {sorted(missing)[0]!r}", remedy="write it with Modality.save")
                matrix, names = (
                    handle.get_tensor("matrix"),
                    bytes(handle.get_tensor("names")).decode("utf-8", "surrogateescape").split("\n"),
                )
        except SafetensorError as error:
            raise DataError.at(path, None, f"no safetensors file: {error}", remedy="extract the features again") from error
    elif path.suffix == ".npy":
        listing = path.with_suffix(".names.txt")
        if not listing.exists():
            raise DataError.at(
                path,
                None,
                f"{listing.name} is missing: features are aligned by name",
                remedy=f"write one entity name a row into {listing.name}",
            )
        try:
            matrix = np.load(path, allow_pickle=False)
            if not isinstance(matrix, np.ndarray):
                raise ValueError("it is an archive of several")
        except (ValueError, EOFError) as error:
            raise DataError.at(
                path, None, f"no plain NumPy array: {error}", remedy="save a float matrix without objects"
            ) from error
        names = [line for _, line in read_lines(listing)]
    else:
        raise DataError.at(
            path,
            None,
            "feature format is not accepted (pickles can run code)",
            value=path.suffix,
            remedy="use .safetensors, or .npy with .names.txt",
        )
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise DataError.at(
            path, None, f"not a matrix of numbers: shape {matrix.shape}, {matrix.dtype}", remedy="one row a name"
        )
    return Modality.aligned(name or path.stem, matrix, names, entities)
