"""How entities are shown on a page: a short text and a small picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imf_core.config import DataConfig
from imf_core.data.formats.layout import GraphFiles
from imf_core.encode.image.pictures import PictureError, find_images, open_picture
from imf_core.prepare.entity_files import IMAGES, EntityFiles
from imf_core.prepare.link_data import resolve
from imf_core.prepare.views import text_source


@dataclass(frozen=True)
class Appearance:
    """A text, and a picture as a data URI; empty where there is none."""

    text: str = ""
    picture: str = ""


def appearances(
    data: DataConfig, names: Sequence[str], *, characters: int, side: int, form: Literal["PNG", "JPEG"]
) -> dict[str, Appearance]:
    """Texts and pictures of entities, by name.

    Args:
        data: where they are.
        names: of the entities.
        characters: most of a text.
        side: longest of a picture, pixels.
        form: of the pictures.

    Raises:
        DataError: the graph's folder cannot be read.
    """
    folder = resolve(data.path)
    files = EntityFiles(folder, GraphFiles.of(data, folder))
    texts = files.literals if text_source(data, folder) == "literals" else files.texts
    pictures = find_images(folder / IMAGES, names).paths if (folder / IMAGES).is_dir() else [()] * len(names)
    return {
        name: Appearance(_shortened(texts.get(name, ""), characters), _thumbnail(paths, side, form))
        for name, paths in zip(names, pictures, strict=True)
    }


def _shortened(text: str, characters: int) -> str:
    words = " ".join(text.split())
    return words if len(words) <= characters else f"{words[: characters - 1].rstrip()}…"


def _thumbnail(paths: Sequence[Path], side: int, form: str) -> str:
    """The first picture that can be read, decoded and written anew, as a data URI; empty without one."""
    for path in paths:
        try:
            picture = open_picture(path, side)
        except PictureError:
            continue
        picture.thumbnail((side, side))
        file = io.BytesIO()
        picture.save(file, format=form, quality=85)
        return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return ""
