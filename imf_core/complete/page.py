"""The page of new facts: texts and pictures of both ends, which branch says so, and the nearest training facts.

It loads nothing and runs no code. Jinja2 escapes all text, since names and texts come from data; pictures are decoded and
written anew, small, into the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from imf_core.complete.complete import Completion
from imf_core.config import DataConfig
from imf_core.data.formats.layout import GraphFiles
from imf_core.encode.image.pictures import PictureError, find_images, open_picture
from imf_core.errors import DataError
from imf_core.files.visible import in_a_file
from imf_core.predict import Predictor
from imf_core.prepare.entity_files import IMAGES, EntityFiles
from imf_core.prepare.link_data import resolve

_SIDE = 96  # of a picture, pixels
_TEXT = 300  # characters of a text that are shown
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class EntityView:
    """What the page shows of an entity beside its name: a text, and a picture as a data URI; empty where there is none."""

    text: str = ""
    picture: str = ""


def completion_page(predictor: Predictor, completion: Completion, probability: str) -> str:
    """The page as HTML.

    Args:
        predictor: whose facts these are; its data folder has the texts and pictures, if it is there.
        completion: the facts.
        probability: what the probabilities mean.
    """
    names = dict.fromkeys(name for fact in completion.facts for name in (fact.head, fact.tail))
    views = entity_views(predictor, names)
    page = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("complete.html").render(
        completion=completion, views=views, probability=probability, title=str(predictor.checkpoint.path),
        graph=predictor.graph.describe(),
    )
    return in_a_file(page)


def entity_views(predictor: Predictor, names: Iterable[str]) -> dict[str, EntityView]:
    """Texts and pictures of entities by name; empty views where the data folder cannot be read."""
    settings, wanted = predictor.checkpoint.config.data, tuple(names)
    if predictor.data is not None:
        settings = settings.elsewhere(predictor.data)
    try:
        folder = resolve(settings.path)
        texts, images = _texts(settings, folder), folder / IMAGES
        paths = find_images(images, wanted).paths if images.is_dir() else [()] * len(wanted)
    except DataError:
        return dict.fromkeys(wanted, EntityView())
    return {
        name: EntityView(_shortened(texts.get(name, "")), _picture(pictures[0]) if pictures else "")
        for name, pictures in zip(wanted, paths, strict=True)
    }


def _texts(settings: DataConfig, folder: Path) -> dict[str, str]:
    files = EntityFiles(folder, GraphFiles.of(settings, folder))
    return files.literals if settings.text == "literals" else files.texts


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _TEXT else words[: _TEXT - 1].rstrip() + "\u2026"


def _picture(path: Path) -> str:
    """A small JPEG of a picture file as a data URI; empty if it cannot be read."""
    try:
        picture = open_picture(path, _SIDE)
    except PictureError:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
