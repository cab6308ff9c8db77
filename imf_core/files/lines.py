"""Text files line by line: what is format and what is content, the same for every reader."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from imf_core.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PACKED = (".gz", ".bz2", ".xz", ".zip")  # suffixes of the containers that are read
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)  # what a damaged container raises
_LARGE = 1 << 20  # bytes: below, reading line by line is done before Arrow is loaded
_WIDE = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_LOOKED_AT = 512  # bytes from which an encoding without a mark is told
_NO_FILES = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_text(path: Path) -> BinaryIO:
    """A text file as bytes of its own, or of UTF-8: unpacked if it is gzip, bzip2, xz or zip, converted from UTF-16 or UTF-32.

    What a file holds decides, not its name.

    Raises:
        DataError: the file cannot be opened, is none (a pipe would never end), or is an archive of several.
    """
    try:
        refuse_other_kinds(path)
        handle = cast(BinaryIO, _unpacked(path, path.open("rb")))
        start = handle.read(_LOOKED_AT)
        handle.seek(0)
        encoding = _encoding(start)
        if encoding is None:
            return handle
        with handle:
            data = handle.read()
    except BROKEN as error:
        raise unreadable(path, error) from error
    with suppress(UnicodeDecodeError):  # then these are names of odd bytes
        text = data.decode(encoding).removeprefix("\ufeff")
        if _is_text(text):
            data = text.encode("utf-8")
    return io.BytesIO(data)


def refuse_other_kinds(path: Path) -> None:
    """Refuse what is no regular file: to read a pipe or a device might never end.

    Raises:
        DataError: it is a folder, a pipe, a device or a socket.
        OSError: there is no such file, or the system does not say.
    """
    if (kind := _NO_FILES.get(stat.S_IFMT(path.stat().st_mode))) is not None:
        raise DataError.at(path, None, f"this is {kind}, not a file", remedy="give a file")


def _unpacked(path: Path, handle: BinaryIO) -> object:
    start = handle.read(6)
    handle.seek(0)
    if start[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=handle)
    if start[:3] == b"BZh":
        return bz2.BZ2File(handle)
    if start == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(handle)
    if start[:4] == b"PK\x03\x04":
        try:
            archive = zipfile.ZipFile(handle)
            items = [item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX")]
            names = [item.filename for item in items]
            if len(names) == 1:
                return archive.open(names[0])
        except (RuntimeError, ValueError, OverflowError, LookupError, struct.error) as error:  # encrypted, damaged
            raise unreadable(path, error) from error
        problem = f"an archive of {len(names)} files ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        raise DataError.at(path, None, problem, remedy="unpack it and give the folder")
    return handle


def _encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file show, where it is not one whose line ends are single bytes."""
    if start.count(0) < max(2, len(start) // 32):  # tabs and line ends hold one each in these
        return None
    marked = next((encoding for mark, encoding in _WIDE.items() if start.startswith(mark)), None)
    if marked is not None:
        return marked
    even, odd = start[::2].count(0), start[1::2].count(0)  # ASCII in UTF-16 has a zero in every other place
    if even + odd < max(8, len(start) // 4):
        return None
    return "utf-16-le" if not even else "utf-16-be" if not odd else None


def _is_text(text: str) -> bool:
    """Whether the first lines are what a person writes: each begins with a name, of assigned characters.

    Names may hold any bytes; some that hold zeros could also be read as UTF-16.
    """
    lines = [line for line in text[:_LOOKED_AT].split("\n") if line.strip()]
    signs = {sign for line in lines for sign in line.rstrip("\r")} - {"\t"}
    odd = any(sign == "\ufeff" or unicodedata.category(sign) in ("Cc", "Cn", "Cs") for sign in signs)
    return bool(lines) and not odd and all(line.split("\t")[0].strip() for line in lines)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the non-blank lines, without line end and byte order mark.

    Undecodable bytes survive as surrogate escapes. A carriage return counts as a line end only before a line feed.

    Raises:
        DataError: see `open_text`; or its container is damaged.
    """
    with open_text(path) as handle:
        number = 0
        while True:
            try:
                raw = handle.readline()
            except BROKEN as error:
                raise unreadable(path, error) from error
            if not raw:
                return
            number += 1
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                raw = raw[3:]
            line = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            if line.strip():
                yield number, line


def plain_name(path: Path) -> str:
    """The name of a file without the suffix of its container."""
    return path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name


def is_large(path: Path) -> bool:
    """Whether a file is worth a reader that has to be loaded first.

    Raises:
        DataError: the system does not hand the file out.
    """
    try:
        return path.stat().st_size >= _LARGE
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> DataError:
    """The error for a file that the system does not hand out, or whose container is damaged."""
    if isinstance(error, OSError) and error.strerror:
        remedy = "check the path and its permissions"
        return DataError(f"{path} cannot be read: {error.strerror}", remedy=remedy, path=str(path), line=None)
    return DataError(f"{path} cannot be unpacked: {error}", remedy="fetch or pack it again", path=str(path), line=None)
