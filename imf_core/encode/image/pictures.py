"""Picture files: which belong to which entity, and opening them without trusting them."""

from __future__ import annotations

import os
import re
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

import numpy as np
from PIL import Image, UnidentifiedImageError

from imf_core.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".jfif")
FORMATS_READ = "PNG, JPEG, WebP, BMP or GIF"
# Pictures that are not read: counted, as a folder of them would seem to be empty.
_OTHER_SUFFIXES = (".tif", ".tiff", ".svg", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".ico", ".psd", ".ppm", ".tga")
MAX_PIXELS = 64_000_000
Pictures: TypeAlias = Path | Sequence[Path]  # of one entity
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
# What Pillow raises on damaged files; any other exception is a bug of ours and must show.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)
_FREEBASE = re.compile(r"^([mg])\.(?=[0-9a-z_]+$)(.+)$")  # of the ids of Freebase, with dots


class PictureError(ValueError):
    """A picture file cannot be read; the text is the reason."""


@dataclass(frozen=True)
class ImageFiles:
    """Pictures of a folder, aligned with entities.

    Args:
        paths: for each of the N entities its pictures, in a fixed order; empty where it has none.
        unknown: names with pictures that are no entity.
        others: picture files of formats that are not read.
    """

    paths: list[tuple[Path, ...]]
    unknown: int = 0
    others: int = 0

    @property
    def count(self) -> int:
        """Picture files of entities."""
        return sum(map(len, self.paths))

    @property
    def several(self) -> int:
        """Entities with more than one picture."""
        return sum(len(paths) > 1 for paths in self.paths)


def find_images(folder: Path, names: Sequence[str]) -> ImageFiles:
    """Match pictures to entities: `<name>.png` (or jpg, jpeg, jfif, webp, bmp, gif), and all pictures in a folder `<name>/`.

    The name may be percent-encoded, as by `urllib.parse.quote(name, safe="")`: the way to name the file of `AC/DC`. An id of
    Freebase may have dots instead: `m.02x` for `/m/02x`.

    Raises:
        DataError: the folder cannot be listed.
    """
    rows = {name: row for row, name in enumerate(names)}
    paths: list[list[Path]] = [[] for _ in names]
    unknown: set[str] = set()
    entries = _listed(folder)
    others = sum(map(_is_other, entries))
    single = [(stem, ending) for stem, ending in map(os.path.splitext, entries) if _shows(stem, ending)]
    for stem, ending in sorted(single, key=lambda parts: (SUFFIXES.index(parts[1].lower()), parts)):
        path = folder / f"{stem}{ending}"
        row = _first_row(rows, stem)
        if path.is_dir():
            continue
        if row is None:
            unknown.add(stem)
        else:
            paths[row].append(path)
    for name in sorted(entries):
        if name.startswith(".") or not (folder / name).is_dir():
            continue
        files = _listed(folder / name)
        others += sum(map(_is_other, files))
        inside = sorted(file for file in files if _shows(*os.path.splitext(file)))
        row = _first_row(rows, name)
        if row is not None:
            paths[row] += [folder / name / file for file in inside]
        elif inside:
            unknown.add(name)
    return ImageFiles([tuple(pictures) for pictures in paths], len(unknown), others)


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {error.strerror}", remedy="check the path and its permissions", path=str(folder)
        ) from error


def _shows(stem: str, ending: str) -> bool:
    return ending.lower() in SUFFIXES and not stem.startswith("._")


def _is_other(file: str) -> bool:
    return file.lower().endswith(_OTHER_SUFFIXES) and not file.startswith("._")


def _first_row(rows: dict[str, int], stem: str) -> int | None:
    # Some file systems store names decomposed: compose them as a last resort.
    freebase = _FREEBASE.sub(r"/\1/\2", stem)
    for name in (stem, unquote(stem, errors="surrogateescape"), unicodedata.normalize("NFC", stem), freebase):
        if name in rows:
            return rows[name]
    return None


def as_paths(pictures: Pictures | None) -> tuple[Path, ...]:
    """The picture files of an entity, however they are given."""
    if pictures is None:
        return ()
    return (Path(pictures),) if isinstance(pictures, (str, Path)) else tuple(map(Path, pictures))


def open_picture(path: Path, side: int, *, mode: str = "RGB", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture in mode L or RGB, decoded; of an animation the first frame, transparent parts on white.

    The content decides the format, not the suffix. A JPEG much larger than `side` may be decoded at a smaller size, which is
    far faster.

    Args:
        path: of the file.
        side: the shorter side that is needed, in pixels.
        mode: `L` or `RGB`.
        max_pixels: a larger picture is refused before it is decoded, as it may be made to fill the memory.

    Raises:
        PictureError: no picture, a damaged one, or too large.
    """
    try:
        if not path.is_file():
            raise PictureError("no such file" if not path.exists() else "not a file")  # a pipe would never end
        with warnings.catch_warnings():
            # Our own limit decides, not Pillow's warning at another one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=_FORMATS)
        with picture:
            if picture.width * picture.height > max_pixels:
                raise PictureError(f"{picture.width} x {picture.height} pixels, more than {max_pixels:,}")
            picture.draft(mode, (4 * side, 4 * side))
            return _flat(picture, mode)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError("an empty file" if _is_empty(path) else f"holds no {FORMATS_READ} picture") from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split())
        raise PictureError(f"{type(error).__name__}: {reason}") from error


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _flat(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: a plain conversion would clip all but the darkest 256 values
        grey = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
        return grey.convert(mode)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    return (picture.convert("RGB") if picture.mode == "CMYK" else picture).convert(mode)
