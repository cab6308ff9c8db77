"""Pictures -> vectors without any pretrained model: a small grey bitmap, reduced by principal components."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imf_core.encode.base import spread
from imf_core.encode.image.pictures import MAX_PIXELS, PictureError, Pictures, as_paths, open_picture


class BitmapImageEncoder:
    """Principal components of small grey pictures; of an entity with several, of their mean.

    Args:
        width: f, number of features; fewer if there are fewer pictures or pixels.
        size: side of the bitmap in pixels.
        max_pixels: a larger picture is refused before it is decoded, as it may be made to fill the memory.

    Attributes:
        rejected: (path, reason) of the files that the last `encode` could not read; they count as missing.
    """

    name = "bitmap"

    def __init__(self, width: int = 64, size: int = 24, *, max_pixels: int = MAX_PIXELS) -> None:
        self.width, self.size, self.max_pixels = width, size, max_pixels
        self.rejected: list[tuple[Path, str]] = []

    def encode(self, items: Sequence[Pictures | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode picture files; None, no files and unreadable files are missing.

        Args:
            items: for each of n entities a path, several, or None.

        Returns:
            Features (n, f) float32, each component of mean 0 and standard deviation 1 over the entities with a picture;
            presence mask (n,) bool.
        """
        self.rejected = []
        mask = np.zeros(len(items), dtype=bool)
        bitmaps: list[np.ndarray] = []
        for row, item in enumerate(items):
            read = [bitmap for path in as_paths(item) if (bitmap := self._read(path)) is not None]
            if read:
                mask[row] = True
                bitmaps.append(np.mean(read, axis=0))
        if not bitmaps:
            return np.zeros((len(items), 0), dtype=np.float32), mask
        return spread(_components(np.stack(bitmaps), self.width), mask), mask

    def _read(self, path: Path) -> np.ndarray | None:
        """(size * size,) grey values 0..1, or None and a note in `rejected`."""
        try:
            picture = open_picture(path, self.size, mode="L", max_pixels=self.max_pixels)
        except PictureError as error:
            self.rejected.append((path, str(error)))
            return None
        small = picture.resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float64).ravel() / 255


def _components(bitmaps: np.ndarray, width: int) -> np.ndarray:
    """(p, f) standardised principal components of (p, size * size)."""
    width = min(width, *bitmaps.shape)
    if len(bitmaps) == 1:
        return np.zeros((1, width))  # a single picture differs from nothing
    from sklearn.decomposition import PCA  # here: it takes a second to load, and a trial reads features that are ready

    vectors = PCA(n_components=width, svd_solver="covariance_eigh").fit_transform(bitmaps)
    scale = vectors.std(axis=0)
    # Components below the rounding error of the first carry nothing: zero, not amplified noise.
    return np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale > 1e-6 * max(scale.max(), 1e-6))
