"""JSON that a program wrote and that anything may have happened to since: read without harm, and only in the expected form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class Stored(BaseModel):
    """Values of a file of JSON: those that are needed and their types; further ones may stand beside them."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())


def read_json(path: Path) -> Any:
    """The content of a file of JSON, whatever it is.

    Raises:
        OSError: the system does not hand the file out.
        ValueError: it is no regular file, no JSON in UTF-8, is nested too deeply, or holds a number of thousands of digits.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a file")
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str | bytes) -> Any:
    """The value of a text of JSON.

    Raises:
        ValueError: see `read_json`.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def told(error: ValidationError, most: int = 60) -> str:
    """What is wrong with the first refused value: `metrics.best = [1]: Input should be a valid number`.

    Args:
        error: of pydantic.
        most: signs of the value that are shown.
    """
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"it lacks {place}"
    return f"{place} = {shortened(first.get('input'), most)}: {first['msg']}" if place else str(first["msg"])


def shortened(value: object, most: int = 60) -> str:
    """A value as it is written, cut; of a number of thousands of digits only that it is one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."
