"""Pictures -> vectors by a pretrained model, in float32; the backbones are in `backbones.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imf_core.encode.base import Part, spread
from imf_core.encode.image.pictures import MAX_PIXELS, PictureError, Pictures, as_paths, open_picture
from imf_core.files.digest import sha256_of, sha256_of_file

if TYPE_CHECKING:
    from imf_core.encode.image.backbones import Backbone

_CODE = "1"  # raise it whenever the same model and picture would give another vector


class PretrainedImageEncoder:
    """One vector an entity: the mean over its readable pictures.

    Args:
        name: how it is called in reports.
        backbone: the model and how its pictures are prepared.
        max_pixels: a larger picture is refused before it is decoded.
        batch: pictures that go through the model at once; bounds the memory, as pictures are decoded one by one.

    Attributes:
        rejected: (path, reason) of the files that the last `encode` could not read; they count as missing.
    """

    shard = 256

    def __init__(self, name: str, backbone: Backbone, *, max_pixels: int = MAX_PIXELS, batch: int = 32) -> None:
        self.name, self.backbone, self.max_pixels, self.batch = name, backbone, max_pixels, batch
        self.rejected: list[tuple[Path, str]] = []

    def identity(self) -> dict[str, str]:
        """Kind, pixel limit, and the hash of the weights."""
        return {"kind": "image", "code": _CODE, "max_pixels": str(self.max_pixels), **self.backbone.identity()}

    def digest(self, item: Pictures) -> str:
        """SHA-256 over the contents of the files."""
        return sha256_of(map(_digest, as_paths(item)))

    def order(self, items: Sequence[Pictures]) -> np.ndarray:
        """As they come: all pictures cost the same."""
        return np.arange(len(items))

    def encode(self, items: Sequence[Pictures | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode picture files; None, no files and unreadable files are missing.

        Args:
            items: for each of n entities a path, several, or None.

        Returns:
            Features (n, f) float32; presence mask (n,) bool.
        """
        pictures = [as_paths(item) for item in items]
        part = self.encode_part(pictures, lambda count: None)
        self.rejected = [(pictures[item][picture], reason) for item, picture, reason in part.rejected]
        return spread(part.vectors, part.present), part.present

    def encode_part(self, items: Sequence[Pictures], advance: Callable[[int], None]) -> Part:
        """Encode the pictures of n entities."""
        sums: dict[int, np.ndarray] = {}
        counts = np.zeros(len(items), dtype=np.int64)
        rejected: list[tuple[int, int, str]] = []
        rows: list[int] = []
        waiting: list[np.ndarray] = []

        def flush() -> None:
            if waiting:
                for row, vector in zip(rows, self.backbone.vectors(np.stack(waiting)), strict=True):
                    sums[row] = sums[row] + vector if row in sums else vector
                rows.clear()
                waiting.clear()

        advanced = 0
        for row, item in enumerate(items):
            for number, path in enumerate(as_paths(item)):
                try:
                    picture = open_picture(path, self.backbone.preparation.shorter, max_pixels=self.max_pixels)
                except PictureError as error:
                    rejected.append((row, number, str(error)))
                    continue
                counts[row] += 1
                rows.append(row)
                waiting.append(self.backbone.preparation(picture))
                if len(waiting) == self.batch:
                    flush()
                    advance(row - advanced)
                    advanced = row
        flush()
        advance(len(items) - advanced)
        present = counts > 0
        width = len(next(iter(sums.values()))) if sums else 0
        vectors = np.array([sums[row] / counts[row] for row in np.flatnonzero(present).tolist()], dtype=np.float32)
        return Part(present, vectors.reshape(len(sums), width), rejected=rejected)


def _digest(path: Path) -> str:
    try:
        return sha256_of_file(path) if path.is_file() else "no file"
    except OSError as error:
        return f"unreadable: {error.errno}"
