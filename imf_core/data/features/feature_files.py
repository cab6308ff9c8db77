"""Feature files: rows and the names of their entities, as safetensors, or as a NumPy matrix beside a list of names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imf_core.errors import DataError
from imf_core.files.atomic import atomic_file
from imf_core.files.lines import read_lines, refuse_other_kinds
from imf_core.files.tensors import plain_numbers, read_array

PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Features:
    """Rows of features and whose they are.

    Args:
        names: of the K rows.
        matrix: (K, f) of numbers; read-only and memory-mapped if read from a safetensors file.
        facts: origin of the features: `encoder`, `key`, counts (all as text).
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    facts: Mapping[str, str] = field(default_factory=dict)


def save_features(path: Path, features: Features, more: Mapping[str, np.ndarray] | None = None) -> None:
    """Write safetensors with the tensors `matrix` and `names` (UTF-8, one a line), atomically.

    Args:
        path: of the file.
        features: rows, names, facts.
        more: further tensors, which `read_features` ignores.
    """
    names = "\n".join(features.names).encode("utf-8", "surrogateescape")
    with atomic_file(path) as scratch:
        save_file(
            {**(more or {}), "matrix": np.ascontiguousarray(features.matrix), "names": np.frombuffer(names, np.uint8)},
            scratch, metadata=dict(features.facts) or None,
        )


def read_features(path: Path) -> Features:
    """Read `<name>.safetensors`, or `<name>.npy` beside `<name>.names.txt`. Nothing that is read here can run code.

    Raises:
        DataError: pickled or unknown formats, missing names, damaged files.
    """
    if path.suffix == ".safetensors":
        features = _read_safetensors(path)
    elif path.suffix == ".npy":
        features = _read_npy(path)
    elif path.suffix in PICKLED:
        raise DataError.at(
            path, None, "pickled features are not opened (a pickle can run code)",
            remedy=f"where you trust its origin, convert it: imf convert-features {path} {path.with_suffix('.safetensors')}"
            " --names NAMES.txt, and move the original out of the way",
        )
    else:
        raise DataError.at(
            path, None, "feature format is not accepted", value=path.suffix,
            remedy="use .safetensors, or .npy with .names.txt (imf convert-features makes the first of .npy, .npz and .pth)",
        )
    matrix = features.matrix
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or (len(matrix) and not matrix.shape[1]):
        raise DataError.at(
            path, None, f"not a matrix of numbers: shape {matrix.shape}, {matrix.dtype}", remedy="one row a name"
        )
    return features


def feature_files(folder: Path) -> dict[str, Path]:
    """The files in `modalities/` of a graph folder, by modality; of a `.npy` and a `.safetensors` of one name the latter."""
    modalities = folder / "modalities"
    if not modalities.is_dir():
        return {}
    paths = sorted(modalities.iterdir())
    return {path.stem: path for path in paths if not path.name.startswith(".") and not path.name.endswith(".names.txt")}


def _read_safetensors(path: Path) -> Features:
    try:
        refuse_other_kinds(path)
        # The flavour for torch maps the file, the one for NumPy copies it; besides, it knows bfloat16.
        with safe_open(path, framework="pt") as handle:
            missing = {"matrix", "names"} - set(handle.keys())
            if missing:
                raise DataError.at(
                    path, None, f"no tensor {sorted(missing)[0]!r}", remedy="write it with imf encode or imf convert-features"
                )
            matrix, listed = plain_numbers(handle.get_tensor("matrix")), plain_numbers(handle.get_tensor("names"))
            facts = handle.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError.at(path, None, f"no safetensors file: {error}", remedy="extract the features again") from error
    if listed.dtype != np.uint8 or listed.ndim != 1:
        remedy = "write it with imf encode or imf convert-features"
        raise DataError.at(path, None, f"the tensor 'names' is no text: {listed.dtype} {listed.shape}", remedy=remedy)
    matrix.flags.writeable = False
    listing = listed.tobytes()
    names = listing.decode("utf-8", "surrogateescape").split("\n") if matrix.size or listing else []
    return Features(tuple(names), matrix, facts)


def _read_npy(path: Path) -> Features:
    listing = path.with_suffix(".names.txt")
    if not listing.exists():
        raise DataError.at(
            path, None, f"{listing.name} is missing: features are aligned by name",
            remedy=f"write one entity name a row into {listing.name}",
        )
    return Features(tuple(line for _, line in read_lines(listing)), read_array(path))
