"""Ways in which a file is damaged or forged: bytes cut and changed, values of JSON replaced by others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MOVED = object()  # a key that is left out
OTHERS: tuple[Any, ...] = (None, [], [None], "\ud800 text", -1, 0.5, 10**30, 1e308, {"a": {"b": [1]}}, {}, True, MOVED)
LONG = "9" * 5000  # more digits than Python reads


def forged(content: Any, others: tuple[Any, ...] = OTHERS, most: int = 4) -> Iterator[tuple[str, Any]]:
    """Copies of a JSON value in which one value is another: (what was done, copy).

    Args:
        content: an object or list.
        others: what stands in its place.
        most: of a list only so many items are tried.
    """
    for place in _places(content, (), most):
        for other in others:
            copy = json.loads(json.dumps(content))
            node = copy
            for key in place[:-1]:
                node = node[key]
            if other is MOVED:
                del node[place[-1]]
            else:
                node[place[-1]] = other
            name = "removed" if other is MOVED else repr(other)[:20]
            yield f"{'.'.join(map(str, place))} {name}", copy


def _places(node: Any, above: tuple[Any, ...], most: int) -> Iterator[tuple[Any, ...]]:
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))[:most] if isinstance(node, list) else []
    for key, value in items:
        yield (*above, key)
        yield from _places(value, (*above, key), most)


def spoilt(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Whole files of other bytes than they should have: (what was done, bytes)."""
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "last byte lost", content[:-2]
    yield "zeros", bytes(len(content))
    yield "UTF-16", content.decode("utf-8", "replace").encode("utf-16")
    yield "not UTF-8", content.replace(b'"', b'"\xff', 1)
    yield "another value", b"3"
    yield "null", b"null"
    yield "text", b'"text"'
    yield "nested deeply", b"[" * 100_000 + b"]" * 100_000
    yield "objects nested deeply", b'{"a":' * 100_000
    yield "a long number", b'{"format": %s}' % LONG.encode()
    yield "a long number for the first", content.replace(b": ", b": %s, " % LONG.encode(), 1)
    yield "NaN", content.replace(b": ", b": NaN, ", 1)
    yield "twice", content * 2
