"""Ways in which a file is damaged or forged: bytes cut and changed, values of JSON replaced by others."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable, Iterator
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


# --- drawn damage -----------------------------------------------------------------------------------------------------

SIGNS = (
    b"\t",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"",
    b"a",
    b"0",
    b"-1",
    b"1e3",
    b"NaN",
    b"99999999999999999999",
    LONG.encode(),
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    "\u2028".encode(),
    "é".encode(),
    b'"',
    b"'",
    b"\\",
    b"\\uD800",
    b"<",
    b">",
    b"_:c",
    b" .",
    b"{",
    b"}",
    b"[",
    b"]",
    b"[" * 20_000,
    b":",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"!!python/object:os.system ",
    b"!!timestamp 2026-99-99",
    b"%41",
    b"@en",
    b"#",
    b",",
    b"null",
    b"true",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"head\trelation\ttail\n",
)
LAUGHS = b"a: &a [l, l, l, l, l, l, l, l, l]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghi"
)


def drawn(content: bytes, name: str, draw: random.Random) -> bytes:
    """A damaged or forged copy of a file.

    Args:
        content: of the whole file.
        name: of the file, whose suffix says of what kind it is.
        draw: chooses.
    """
    kind = name.rpartition(".")[2]
    ways: list[Callable[[], bytes]] = [lambda: _cut_and_pasted(content, draw)] * 4
    ways += [lambda: draw.choice(list(spoilt(content)))[1], lambda: b"".join(draw.choices(SIGNS, k=draw.randrange(30)))]
    ways += [lambda: _encoded(content, draw), lambda: _packed(content, draw)]
    if kind == "json":
        ways += [lambda: _forged(content, draw)] * 8
    elif kind == "jsonl":
        ways += [lambda: _line(content, draw)] * 8
    elif kind == "safetensors":
        ways += [lambda: _headed(content, draw)] * 8
    elif kind == "npy":
        ways += [lambda: _announced(content, draw)] * 4
    elif kind == "yaml":
        ways += [lambda: LAUGHS, lambda: _line(content, draw)]
    return draw.choice(ways)()


def _cut_and_pasted(content: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(1, 9)):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice((0, 1, 1, 2, 8, 64)))
        piece = draw.choice(
            (b"", draw.randbytes(max(1, end - start)), bytes(end - start), content[start:end] * 2, draw.choice(SIGNS))
        )
        content = content[:start] + piece + content[end:]
    return content


def _encoded(content: bytes, draw: random.Random) -> bytes:
    return content.decode("latin-1").encode(draw.choice(("utf-16", "utf-16-be", "utf-32", "utf-8-sig", "utf-7", "cp500")))


def _packed(content: bytes, draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(draw.randrange(3)):
            archive.writestr(f"{number}", content)
    packed = draw.choice((gzip.compress(content), bz2.compress(content), lzma.compress(content), buffer.getvalue()))
    return packed if draw.random() < 0.3 else _cut_and_pasted(packed, draw)


def _forged(content: bytes, draw: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(draw.randrange(1, 4)):
        places = list(_places(value, (), 4))
        if not places:
            break
        *above, last = draw.choice(places)
        node = value
        for key in above:
            node = node[key]
        other = draw.choice((*OTHERS, draw.randrange(-5, 5), "NaN", float("inf"), "x" * 1000, node))
        if other is MOVED:
            del node[last]
        else:
            node[last] = json.loads(json.dumps(other))
    return json.dumps(value).encode()


def _line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    way = draw.randrange(4)
    if way == 0 and lines[place].startswith(b"{"):
        lines[place] = _forged(lines[place], draw) + b"\n"
    elif way == 1:
        lines.insert(draw.randrange(len(lines)), lines[place])
    elif way == 2:
        del lines[place]
    else:
        lines[place] = _cut_and_pasted(lines[place], draw)
    return b"".join(lines)


def _headed(content: bytes, draw: random.Random) -> bytes:
    """Safetensors with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if draw.random() < 0.5:
        entry = header[draw.choice(sorted(name for name in header if name != "__metadata__"))]
        entry["dtype"] = draw.choice(
            ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "U8", "BOOL", "C64", "U16", "F4")
        )
        entry["shape"] = draw.choice((entry["shape"], [], [0], [2**40, 2**40], [len(content) - 8 - length], [1, 1], [-1]))
    changed = _forged(json.dumps(header).encode(), draw) if draw.random() < 0.7 else json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + content[8 + length :]


def _announced(content: bytes, draw: random.Random) -> bytes:
    """A `.npy` file with another header."""
    dtype = draw.choice(("<f4", "<f8", "<f2", "<i8", "|b1", "|O", "<U5", "<c8", "|V8", "<M8[s]", ">f4", "<f4'*2+'"))
    shape = draw.choice(
        ("()", "(3,)", "(3, 0)", "(0, 3)", "(1, 1)", "(2, 3)", "(1048576, 6291456)", "(-1,)", "x", "(1e9,)", "((1,),)")
    )
    text = f"{{'descr': '{dtype}', 'fortran_order': {draw.choice(('True', 'False', '3'))}, 'shape': {shape}, }}".encode()
    return content[:6] + bytes((draw.choice((1, 2, 3)), 0)) + len(text).to_bytes(2, "little") + text + content[128:]
