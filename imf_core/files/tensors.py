"""Files of arrays and tensors, read without running code and without trusting the sizes that they announce.

NumPy's formats, safetensors, and torch's own format through its restricted reader.
"""

from __future__ import annotations

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from imf_core.errors import DataError
from imf_core.files.lines import refuse_other_kinds

if TYPE_CHECKING:
    from torch import Tensor


_MOST_NUMBERS = 2**28  # that a tensor may stand for beyond those that it stores
_BROKEN = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, ArithmeticError,
    MemoryError, ImportError, SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
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


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is tensors, numbers, text, lists and dictionaries.

    Raises:
        DataError: the file cannot be read, is damaged, is no file of torch, or holds anything that would have to run code.
    """
    import torch

    refused = torch.serialization.pickle.UnpicklingError  # no import of what can unpickle
    try:
        refuse_other_kinds(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of protocols that the restricted reader may not know; it then fails
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError.at(path, None, "no such file", remedy="check the path") from error
    except (refused, *_BROKEN) as error:
        raise DataError.at(
            path, None,
            "torch's restricted reader refuses it: damaged, a plain pickle, or more than tensors, which could run code",
            remedy="where you trust its origin, write it again where it was made: numpy.save('FEATURES.npy', matrix), or "
            "safetensors.torch.save_file(tensors, FILE)",
        ) from error


def plain_numbers(tensor: Tensor) -> np.ndarray:
    """The numbers of a tensor of any kind: sparse and quantised ones as they are meant, small floats as float32.

    Raises:
        ValueError: it has no data (meta), is nested, or stands for more numbers than memory holds.
    """
    import torch

    if tensor.is_meta or tensor.is_nested:
        raise ValueError("a tensor without data" if tensor.is_meta else "a nested tensor")
    strided = tensor.layout == torch.strided
    if tensor.numel() > _MOST_NUMBERS and not (strided and tensor.numel() <= tensor.untyped_storage().nbytes()):
        raise ValueError(f"a tensor of {tensor.numel():,} numbers, most of which are not stored")
    try:
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        if not strided:
            tensor = tensor.to_dense()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        return tensor.detach().cpu().resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a tensor of {tensor.dtype} that cannot be read: {str(error).partition(chr(10))[0]}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state of a model: tensors by name; a state under `state_dict` or `model` is found.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            refuse_other_kinds(path)
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError.at(path, None, f"weights cannot be read: {error}", remedy="check the path") from error
    state = read_torch(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError.at(path, None, "no tensors by name", remedy="save the model's state_dict()")
    return state
