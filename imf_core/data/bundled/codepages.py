"""The bundled data set `codepages`: real implicit feedback that is generated in seconds, without a download.

Users are the character encodings of Python's standard library, items the characters that DejaVu Sans draws; an encoding "has" a
character where it can write it and read it again. The picture of an item is its glyph, its text the Unicode name, as in the
bundled graph `unicode`. Encodings that can write every character (UTF, GB 18030) prefer nothing and are left out.
"""

from __future__ import annotations

import codecs
import encodings.aliases
from collections.abc import Iterator
from pathlib import Path

from imf_core.data.bundled.glyphs import characters, pictures, write_lines


def write_codepages(folder: Path) -> None:
    """Write `interactions.tsv`, `items.txt`, `descriptions.tsv` and `images/<item>.png`.

    Args:
        folder: created where missing; files of the same names are replaced.
    """
    drawn = characters()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    write_lines(folder / "interactions.tsv", ["user\titem", *(f"{user}\t{drawn[point]}" for user, point in _contents(drawn))])
    write_lines(folder / "items.txt", drawn.values())
    write_lines(folder / "descriptions.tsv", (f"{name}\t{_describe(point, name)}" for point, name in drawn.items()))
    for name, picture in pictures({name: point for point, name in drawn.items()}):
        picture.save(folder / "images" / f"{name}.png", compress_level=1)


def _describe(point: int, name: str) -> str:
    """The text of a character: Unicode name and block."""
    from fontTools import unicodedata as database

    return f"{name.lower()}, block {database.block(chr(point))}"


def text_encodings() -> list[str]:
    """Names of the encodings between text and bytes that every Python has, sorted."""
    names = []
    for name in sorted(set(encodings.aliases.aliases.values())):
        try:
            known = codecs.lookup(name)
        except LookupError:  # those of Windows alone
            continue
        if getattr(known, "_is_text_encoding", True):
            names.append(name)
    return names


def _contents(drawn: dict[int, str]) -> Iterator[tuple[str, int]]:
    """(encoding, code point) of everything that an encoding can write and read again."""
    for name in text_encodings():
        points = [point for point in drawn if _has(name, chr(point))]
        if len(points) < len(drawn):
            yield from ((name, point) for point in points)


def _has(name: str, sign: str) -> bool:
    try:
        return sign.encode(name).decode(name) == sign
    except (UnicodeError, ValueError):
        return False
