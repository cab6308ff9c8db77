"""What the bundled data sets share: the characters that DejaVu Sans draws, their pictures, their names in words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_CANVAS, _GLYPH, _BASELINE = 32, 22, 24  # pixels: side of a picture, font size, height of the baseline from the top


def characters() -> dict[int, str]:
    """Code point -> Unicode name, of everything that the font draws and Unicode names."""
    from fontTools.ttLib import TTFont

    with TTFont(font_file(), lazy=True) as font:
        points = sorted(font.getBestCmap())
    return {point: name for point in points if (name := unicodedata.name(chr(point), ""))}


def pictures(points: dict[str, int]) -> Iterator[tuple[str, Image.Image]]:
    """Dark glyphs on white; characters without ink (spaces, controls) have no picture."""
    # The basic layout draws code points as they are: no shaping library, hence the same glyph on each machine.
    basic, file = ImageFont.Layout.BASIC, font_file()
    sizes = {size: ImageFont.truetype(file, size, layout_engine=basic) for size in range(8, _GLYPH + 1)}
    for name, point in points.items():
        sign, size = chr(point), _GLYPH
        left, top, right, bottom = sizes[size].getbbox(sign, anchor="ls")
        if right <= left or bottom <= top:
            continue
        while right - left > _CANVAS and size > min(sizes):
            size -= 1
            left, top, right, bottom = sizes[size].getbbox(sign, anchor="ls")
        picture = Image.new("L", (_CANVAS, _CANVAS), 255)
        # Centred across, but on one baseline: height tells a superscript from a digit, a comma from an apostrophe.
        ImageDraw.Draw(picture).text(((_CANVAS - left - right) // 2, _BASELINE), sign, fill=0, font=sizes[size], anchor="ls")
        yield name, picture


def font_file() -> Path:
    """DejaVu Sans, as it comes with matplotlib."""
    import matplotlib  # here and not above: only the bundled data needs it, and it is slow to import

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, a line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
