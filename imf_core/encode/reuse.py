"""Items that an earlier extraction by the same encoder has encoded: one new picture must not cost all others again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

PRESENT, TRUNCATED, BLANK, REJECTED = 1, 2, 4, 8  # bits of an item's flags


@dataclass(frozen=True)
class Source:
    """Items whose vectors are rows of a feature file.

    Args:
        path: the file.
        items: (k,) positions among the items that were looked for.
        rows: (k,) of the file's matrix.
        width: of that matrix.
    """

    path: Path
    items: np.ndarray
    rows: np.ndarray
    width: int

    def vectors(self) -> np.ndarray:
        """(k, width) float32."""
        with safe_open(self.path, framework="pt") as handle:  # this flavour maps the file
            return np.asarray(handle.get_tensor("matrix").numpy()[self.rows])


@dataclass
class Known:
    """What a folder of feature files holds of n items.

    Args:
        flags: (n,) uint8 bits of the items; 0 where nothing is known.
        missing: (m,) int64, the items that have to be encoded.
        sources: where the vectors of the others are; those with nothing to read have none.
    """

    flags: np.ndarray
    missing: np.ndarray
    sources: list[Source] = field(default_factory=list)


def digest_rows(digests: Sequence[str]) -> np.ndarray:
    """(n, b) uint8 of n hexadecimal digests of b bytes each."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), -1 if digests else 0)


def known_items(root: Path, settings: str, digests: Sequence[str]) -> Known:
    """Look for items in the feature files of a folder.

    Items with an unreadable picture are encoded again: the fault may have been a passing one, and they are few.

    Args:
        root: folder with feature files.
        settings: all that the vectors depend on besides the items, as the files' metadata say it.
        digests: hexadecimal, of n items.
    """
    wanted: dict[bytes, list[int]] = {}
    for item, digest in enumerate(digest_rows(digests)):
        wanted.setdefault(digest.tobytes(), []).append(item)
    known = Known(np.zeros(len(digests), dtype=np.uint8), np.arange(0))
    for path in sorted(root.glob("*.safetensors")):
        if wanted:
            with suppress(OSError, SafetensorError):  # damaged, or without digests: no help, and no harm
                _look_into(path, settings, wanted, known)
    known.missing = np.array(sorted(item for items in wanted.values() for item in items), dtype=np.int64)
    return known


def _look_into(path: Path, settings: str, wanted: dict[bytes, list[int]], known: Known) -> None:
    with safe_open(path, framework="numpy") as handle:
        if (handle.metadata() or {}).get("settings") != settings:
            return
        digests, flags = handle.get_tensor("digests"), handle.get_tensor("flags")
        width = handle.get_slice("matrix").get_shape()[1]
    rows = np.cumsum(flags & PRESENT != 0) - 1
    pairs: list[tuple[int, int]] = []
    for position in np.flatnonzero(flags & REJECTED == 0).tolist():
        for item in wanted.pop(digests[position].tobytes(), ()):
            known.flags[item] = flags[position]
            if flags[position] & PRESENT:
                pairs.append((item, int(rows[position])))
    if pairs:
        items, file_rows = np.array(pairs, dtype=np.int64).T
        known.sources.append(Source(path, items, file_rows, width))
