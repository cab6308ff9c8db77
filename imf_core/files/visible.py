"""Control characters of names, made visible: in a terminal they would be commands, in a page they are not allowed."""

from __future__ import annotations

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}  # ESC is shown as its sign
_TABLE = {**_PICTURES, 0x7F: "\u2421", **dict.fromkeys(range(0x80, 0xA0), "\ufffd"), 0x2028: "\ufffd", 0x2029: "\ufffd"}


def visible(text: str) -> str:
    """The text with a visible sign for each control character but line ends and tabs; all else stays, also its width."""
    return text if text.isascii() and text.isprintable() else text.translate(_TABLE)


def in_a_file(text: str) -> str:
    """`visible`, and undecodable bytes, which a name may contain, as `\\udc80`: text that is UTF-8 and may stand in a page."""
    return visible(text).encode("utf-8", "backslashreplace").decode("utf-8")
