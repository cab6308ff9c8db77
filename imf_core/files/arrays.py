"""Files of NumPy arrays, read without running code and without trusting the sizes that their headers announce."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from imf_core.errors import DataError
from imf_core.files.lines import refuse_other_kinds

_BROKEN = (
    OSError, ValueError, EOFError, SyntaxError, TypeError, LookupError, ArithmeticError, MemoryError, RuntimeError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_array(path: Path, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file.

    Args:
        path: of the file.
        mapped: map the file instead of reading it.

    Raises:
        DataError: the file cannot be read, is damaged, or holds objects (pickles) or several arrays.
    """
    content = _read(path, mapped)
    if isinstance(content, dict):
        raise DataError.at(path, None, "an archive of several arrays", remedy="save one array by numpy.save")
    return content


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a `.npy` file, or the arrays of a `.npz` archive by name; errors as of `read_array`."""
    return _read(path, False)


def _read(path: Path, mapped: bool) -> np.ndarray | dict[str, np.ndarray]:
    try:
        refuse_other_kinds(path)
        with path.open("rb") as handle:
            start = handle.read(2)
            handle.seek(0)
            if start == b"PK":
                return _unpacked(handle)
            _refuse_announced(handle, path.stat().st_size)
            handle.seek(0)
            if not mapped:
                return cast(np.ndarray, np.load(handle, allow_pickle=False))
        return cast(np.ndarray, np.load(path, mmap_mode="r", allow_pickle=False))
    except _BROKEN as error:
        problem = f"no plain NumPy file: {error or type(error).__name__}"
        raise DataError.at(path, None, problem, remedy="save numbers without objects (a pickle can run code)") from error


def _unpacked(handle: BinaryIO) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(handle) as archive:
        for item in archive.infolist():
            if item.filename.endswith(".npy"):
                with archive.open(item) as member:
                    _refuse_announced(cast(BinaryIO, member), item.file_size)
    handle.seek(0)
    with np.load(handle, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files if isinstance(arrays[name], np.ndarray)}


def _refuse_announced(handle: BinaryIO, size: int) -> None:
    """Refuse a header that announces more than the file holds: room for it all would be made first."""
    read = _HEADERS.get(np.lib.format.read_magic(handle))
    if read is None:
        return
    shape, _, dtype = read(handle)
    announced = math.prod(shape) * dtype.itemsize
    if announced > size:
        raise ValueError(f"its header announces {announced:,} bytes, the file has {size:,}")
