"""Text files line by line: what is format and what is content, the same for every reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from imf_core.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LARGE = 1 << 20  # bytes: below, reading line by line is done before Arrow is loaded


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the non-blank lines, without line end and byte order mark.

    Undecodable bytes survive as surrogate escapes. A carriage return counts as a line end only before a line feed.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        handle = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from error
    with handle:
        for number, raw in enumerate(handle, 1):
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raw = raw[3:]
            line = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            if line.strip():
                yield number, line


def is_large(path: Path) -> bool:
    """Whether a file is worth a reader that has to be loaded first.

    Raises:
        DataError: the system does not hand the file out.
    """
    try:
        return path.stat().st_size >= _LARGE
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not hand out."""
    return DataError(f"{path} cannot be read: {error.strerror}", remedy="check the path and its permissions", path=str(path))
