"""`imf convert-features`: features in NumPy's or torch's formats -> safetensors that carry the entity names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from imf_core.commands.outputs import check_safetensors, write_features
from imf_core.commands.terminal import terminal
from imf_core.data.features.feature_files import PICKLED, Features
from imf_core.errors import DataError
from imf_core.files.lines import read_lines
from imf_core.files.tensors import plain_numbers, read_arrays, read_torch

_FORMATS = ".npy, .npz, .pt, .pth, and .pkl or .bin that torch.save wrote"


def convert_features(
    source: Annotated[Path, typer.Argument(metavar="FILE", help=f"Features: {_FORMATS}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Where they go.")],
    names: Annotated[Path | None, typer.Option(help="Entity names, one a row; needed where FILE brings none.")] = None,
    key: Annotated[str | None, typer.Option(help="Which entry of FILE is the matrix, where it holds several.")] = None,
) -> None:
    """Convert features to safetensors. Nothing in FILE is run: torch's files go through its restricted reader.

    Example: imf convert-features img.pth mygraph/modalities/image.safetensors --names entities.txt
    """
    check_safetensors(out)
    matrix, names_in_file = _read(source, key)
    listed = [line for _, line in read_lines(names)] if names is not None else names_in_file
    if listed is None:
        raise DataError.at(source, None, "no names in this file", remedy="list them, one for each row: --names NAMES.txt")
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        raise DataError.at(
            source, None, f"not a matrix of numbers: shape {matrix.shape}, {matrix.dtype}", remedy="choose another --key"
        )
    if len(listed) != len(matrix):
        raise DataError.at(
            source, None, f"{len(matrix):,} rows but {len(listed):,} names", remedy="one name for each row, in their order"
        )
    write_features(out, Features(tuple(listed), matrix.astype(np.float32, copy=False)))
    terminal().print(f"{len(matrix):,} rows, {matrix.shape[1]:,} wide: {out}", soft_wrap=True)


def _read(path: Path, key: str | None) -> tuple[np.ndarray, list[str] | None]:
    """The matrix, and the names where the file brings them."""
    if path.suffix in (".npy", ".npz"):
        entries: Any = read_arrays(path)
    elif path.suffix in PICKLED:
        entries = read_torch(path)
    else:
        raise DataError.at(path, None, "format is not known", value=path.suffix, remedy=f"convert {_FORMATS}")
    if isinstance(entries, Mapping):
        return _chosen(path, entries, key)
    return _array(path, entries), None


def _chosen(path: Path, entries: Mapping[Any, Any], key: str | None) -> tuple[np.ndarray, list[str] | None]:
    """A matrix with its names, or one vector a name, from a dictionary."""
    if key is not None:
        if key not in entries:
            shown = ", ".join(str(name) for name in list(entries)[:5])
            raise DataError.at(path, None, f"no entry {key!r}; it has {shown}", remedy="choose another --key", value=key)
        inner = entries[key]
        if isinstance(inner, Mapping):
            return _chosen(path, inner, None)
        return _array(path, inner), _names(entries)
    arrays = {str(name): _array(path, value) for name, value in entries.items() if _is_array(value)}
    matrices = [name for name, value in arrays.items() if value.ndim == 2 and value.dtype.kind in "fiu" and len(value) > 1]
    if len(matrices) == 1 and not _vectors(arrays):
        return arrays[matrices[0]], _names(entries)
    if not matrices and arrays and _vectors(arrays):
        return np.stack([value.reshape(-1) for value in arrays.values()]), list(arrays)
    what = f"the matrices {', '.join(matrices[:5])}" if matrices else "no matrix, nor one vector of one width a name"
    raise DataError.at(path, None, f"not clear what the features are: it holds {what}", remedy="name the entry: --key KEY")


def _vectors(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether these are vectors, (f,) or (1, f), of one width."""
    return all(v.dtype.kind in "fiu" and v.size == v.shape[-1] for v in arrays.values() if v.ndim in (1, 2)) and len(
        {(v.ndim in (1, 2), v.size) for v in arrays.values()}
    ) == 1


def _names(entries: Mapping[Any, Any]) -> list[str] | None:
    for name in ("names", "entities", "ids"):
        names = entries.get(name)
        if isinstance(names, np.ndarray) and names.ndim == 1 and names.dtype.kind == "U":
            return [str(value) for value in names]
        if isinstance(names, (list, tuple)) and all(isinstance(value, str) for value in names):
            return list(names)
    return None


def _is_array(value: Any) -> bool:
    import torch

    return isinstance(value, (np.ndarray, torch.Tensor))


def _array(path: Path, value: Any) -> np.ndarray:
    import torch

    if isinstance(value, torch.Tensor):
        try:
            return plain_numbers(value)
        except ValueError as error:
            raise DataError.at(path, None, f"it holds {error}", remedy="save a matrix with all its numbers") from error
    if isinstance(value, np.ndarray):
        return value
    raise DataError.at(path, None, f"it holds {type(value).__name__}, no matrix", remedy="save a matrix, or vectors by name")
