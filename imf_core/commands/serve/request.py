"""The request body of `imf serve`, checked by hand so that every refusal says in words what to change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imf_core.answers import Known, Question
from imf_core.config_base import nearest
from imf_core.errors import ImfError

_K = 10
_EXAMPLE = '{"questions": [{"head": "NAME", "relation": "RELATION", "tail": null}], "k": 10, "known": "drop"}'
_ENDS = ("head", "relation", "tail")


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Args:
        questions: most questions of one request.
        body: most bytes of one request.
        k: most answers to one question.
        names: most names of one listing.
    """

    questions: int = 256
    body: int = 256 * 1024
    k: int = 1000
    names: int = 1000


@dataclass(frozen=True)
class Asked:
    """A checked request: questions, whose names may still be unknown, the number of answers to each, and what becomes of known
    facts.
    """

    questions: tuple[Question, ...]
    k: int
    known: Known = Known.DROP


def read_request(body: bytes, limits: Limits) -> Asked:
    """Read and check a body.

    Raises:
        ImfError: it is no JSON (status 400), or no valid request (status 422).
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ImfError(f"the body is no JSON: {error}", remedy=f"write {_EXAMPLE}", status=400) from error
    if not isinstance(values, dict):
        raise ImfError(f"the body is {_kind(values)}, not an object", remedy=f"write {_EXAMPLE}")
    _known_keys(values, ("questions", "k", "known"), "the body")
    questions, k = values.get("questions"), values.get("k", _K)
    if not isinstance(questions, list):
        raise ImfError(f"questions is {_kind(questions)}, not a list", remedy=f"write {_EXAMPLE}")
    if len(questions) > limits.questions:
        remedy = f"ask at most {limits.questions:,} at a time, or start with --max-batch"
        raise ImfError(f"{len(questions):,} questions in one request", remedy=remedy)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= limits.k:
        whole = isinstance(k, int) and not isinstance(k, bool)
        shown = _kind(k) if not whole else str(k) if abs(k) < 10**9 else "a very large number"
        raise ImfError(f"k is {shown}", remedy=f"ask for 1 to {limits.k:,} answers to a question, or start with --max-k")
    known = values.get("known", Known.DROP)
    if not isinstance(known, str):
        raise ImfError(f"known is {_kind(known)}", remedy=f"choose one of: {', '.join(Known)}")
    asked = tuple(_question(entry, f"questions[{number}]") for number, entry in enumerate(questions))
    return Asked(asked, k, Known.of(known))


def _question(values: Any, path: str) -> Question:
    if not isinstance(values, dict):
        raise ImfError(f"{path} is {_kind(values)}, not an object", remedy=f"write {_EXAMPLE}")
    _known_keys(values, _ENDS, path)
    for key in _ENDS:
        value = values.get(key)
        if not (isinstance(value, str) or (value is None and key != "relation")):
            wanted = "a name" if key == "relation" else "a name, or null where it is sought"
            raise ImfError(f"{path}.{key} is {_kind(value)}", remedy=f"give {wanted}")
    return Question(values.get("head"), values["relation"], values.get("tail"))


def _known_keys(values: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
    for key in values:
        if key not in known:
            raise ImfError(f"{path} has the unknown key {key!r}{nearest(key, known)}", remedy=f"known: {', '.join(known)}")


def _kind(value: Any) -> str:
    """The type of a JSON value in words, for messages: the value itself may be anything, and long."""
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "true or false"), (int, "a whole number"), (float, "a decimal number"), (str, "a text"), (list, "a list"),
        (dict, "an object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


_NAME: dict[str, Any] = {"type": ["string", "null"], "description": "an entity; null or left out where it is sought"}
SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {
            "type": "object", "required": ["questions"],
            "properties": {
                "questions": {"type": "array", "items": {
                    "type": "object", "required": ["relation"],
                    "properties": {"head": _NAME, "relation": {"type": "string"}, "tail": _NAME},
                }},
                "k": {"type": "integer", "minimum": 1, "default": _K, "description": "answers to each question"},
                "known": {
                    "type": "string", "enum": list(Known), "default": Known.DROP,
                    "description": "known facts (train and validation) are left out, marked, or given alone",
                },
            },
        }}},
    }
}
