"""The page of new facts: texts and pictures of both ends, which branch says so, and the nearest training facts.

It loads nothing and runs no code.
"""

from __future__ import annotations

from pathlib import Path

from imf_core.complete.complete import Completion
from imf_core.errors import DataError
from imf_core.evaluate.certainty import shown
from imf_core.files.pages import rendered
from imf_core.predict import Predictor
from imf_core.prepare.appearance import Appearance, appearances

_SIDE = 96  # of a picture, pixels
_TEXT = 300  # characters of a text that are shown
_TEMPLATE = Path(__file__).parent / "templates" / "complete.html"


def completion_page(predictor: Predictor, completion: Completion, probability: str) -> str:
    """The page as HTML.

    Args:
        predictor: whose facts these are; its data folder has the texts and pictures, if it is there.
        completion: the facts.
        probability: what the probabilities mean.
    """
    names = list(dict.fromkeys(name for fact in completion.facts for name in (fact.head, fact.tail)))
    settings = predictor.checkpoint.config.data
    if predictor.data is not None:
        settings = settings.elsewhere(predictor.data)
    try:
        views = appearances(settings, names, characters=_TEXT, side=_SIDE, form="JPEG")
    except DataError:
        views = dict.fromkeys(names, Appearance())
    return rendered(_TEMPLATE, {
        "completion": completion, "views": views, "probability": probability, "title": str(predictor.checkpoint.path),
        "graph": predictor.graph.describe(), "shown": shown,
    })
