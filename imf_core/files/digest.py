"""SHA-256 of files and of what is in memory, hexadecimal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """Digest of a file's bytes.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(parts: Iterable[bytes | memoryview | str]) -> str:
    """Digest of several parts, one after the other with nothing between them.

    Args:
        parts: bytes, memory (of a contiguous array: `array.data`), or text in UTF-8, in which undecodable bytes of names are
            the bytes that they came from.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()
