"""Pictures -> vectors without any pretrained model: a small grey bitmap, reduced by principal components."""

from __future__ import annotations

import os
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA

from imf_core.encode.base import spread
from imf_core.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# What Pillow raises on damaged files; everything else is a fault of ours and must show.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFiles:
    """Pictures of a folder, aligned with entities.

    Args:
        paths: N entries, None where the entity has no picture.
        unknown: picture files whose name is no entity.
        repeated: further picture files of an entity that already has one (the first in the order of `SUFFIXES` is taken).
    """

    paths: list[Path | None]
    unknown: int = 0
    repeated: int = 0


def find_images(folder: Path, names: Sequence[str]) -> ImageFiles:
    """Match `<name>.png` (or jpg, jpeg, webp, bmp, gif) to entities; the name as it is or percent-encoded.

    Percent-encoded is what `urllib.parse.quote(name, safe="")` gives: the way to name the file of `AC/DC`.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        files = os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {error.strerror}", remedy="check the path and its permissions", path=str(folder)
        ) from error
    rows = {name: row for row, name in enumerate(names)}
    pictures = [(SUFFIXES.index(ending.lower()), stem, ending) for stem, ending in map(os.path.splitext, files)
                if ending.lower() in SUFFIXES and not stem.startswith("._")]
    paths: list[Path | None] = [None] * len(names)
    unknown = repeated = 0
    for _, stem, ending in sorted(pictures):
        row = _first_row(rows, stem)
        if row is None:
            unknown += 1
        elif paths[row] is not None:
            repeated += 1
        else:
            paths[row] = Path(folder) / f"{stem}{ending}"
    return ImageFiles(paths, unknown, repeated)


def _first_row(rows: dict[str, int], stem: str) -> int | None:
    # Some file systems store names decomposed: compose them as a last resort.
    for name in (stem, unquote(stem, errors="surrogateescape"), unicodedata.normalize("NFC", stem)):
        if name in rows:
            return rows[name]
    return None


class BitmapImageEncoder:
    """Principal components of small grey pictures.

    Args:
        width: f, number of features; fewer where there are fewer pictures or pixels.
        size: side of the bitmap in pixels.
        max_pixels: a larger picture is refused before it is decoded, as it may be made to fill the memory.

    Attributes:
        rejected: (path, reason) of the files that the last `encode` could not read; they count as missing.
    """

    name = "bitmap"

    def __init__(self, width: int = 64, size: int = 24, *, max_pixels: int = 64_000_000) -> None:
        self.width, self.size, self.max_pixels = width, size, max_pixels
        self.rejected: list[tuple[Path, str]] = []

    def encode(self, items: Sequence[Path | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode picture files; None and unreadable files are missing.

        Args:
            items: n paths.

        Returns:
            Features (n, f) float32, each component of mean 0 and standard deviation 1 over the present pictures; presence
            mask (n,) bool.
        """
        self.rejected = []
        mask = np.zeros(len(items), dtype=bool)
        bitmaps: list[np.ndarray] = []
        for row, path in enumerate(items):
            bitmap = None if path is None else self._read(Path(path))
            if bitmap is not None:
                mask[row] = True
                bitmaps.append(bitmap)
        if not bitmaps:
            return np.zeros((len(items), 0), dtype=np.float32), mask
        return spread(_components(np.stack(bitmaps), self.width), mask), mask

    def _read(self, path: Path) -> np.ndarray | None:
        """(size * size,) grey values 0..1, or None and a note in `rejected`."""
        try:
            with warnings.catch_warnings():
                # Our own limit decides, not Pillow's warning at another one.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(path, formats=_FORMATS)
            with picture:
                if picture.width * picture.height > self.max_pixels:
                    self.rejected.append((path, f"{picture.width} x {picture.height} pixels, more than {self.max_pixels:,}"))
                    return None
                picture.draft("L", (4 * self.size, 4 * self.size))  # JPEG decodes at a fraction of the size, far faster
                small = _grey(picture).resize((self.size, self.size), Image.Resampling.BOX)
        except _DAMAGED as error:
            self.rejected.append((path, f"{type(error).__name__}: {error}"))
            return None
        return np.asarray(small, dtype=np.float64).ravel() / 255


def _grey(picture: Image.Image) -> Image.Image:
    """The picture in mode L, transparent parts on white."""
    if picture.mode.startswith("I"):  # 16 bits a pixel: a plain conversion would clip all but the darkest 256 values
        return Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("L")
    return picture.convert("L")


def _components(bitmaps: np.ndarray, width: int) -> np.ndarray:
    """(p, f) standardised principal components of (p, size * size)."""
    width = min(width, *bitmaps.shape)
    if len(bitmaps) == 1:
        return np.zeros((1, width))  # a single picture differs from nothing
    vectors = PCA(n_components=width, svd_solver="covariance_eigh").fit_transform(bitmaps)
    scale = vectors.std(axis=0)
    # Components below the rounding error of the first carry nothing: zero, not amplified noise.
    return np.divide(vectors, scale, out=np.zeros_like(vectors), where=scale > 1e-6 * max(scale.max(), 1e-6))
