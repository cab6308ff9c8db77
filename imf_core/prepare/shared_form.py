"""The form on disk that all trials share: arrays as safetensors, everything else as JSON beside them, and a digest of both.

Features are standardised first, so that no trial needs a copy; every process maps the same file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from imf_core.data.features.modality import Modality
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_file, atomic_write_text
from imf_core.files.digest import sha256_of_file

_ARRAYS, _FACTS = "arrays.safetensors", "vocabulary.json"
_REMEDY = "prepare it again"


def save_shared(
    folder: Path, arrays: Mapping[str, np.ndarray], modalities: Sequence[Modality], facts: Mapping[str, Any]
) -> None:
    """Write a shared form.

    Args:
        folder: made.
        arrays: by name; `train` and `valid` among them.
        modalities: stored with them.
        facts: JSON values; `fingerprint` among them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for modality in modalities:
        tensors[f"matrix.{modality.name}"] = np.ascontiguousarray(modality.standardised())
        tensors[f"mask.{modality.name}"] = np.ascontiguousarray(modality.mask)
    with atomic_file(folder / _ARRAYS) as scratch:
        save_file(tensors, scratch)
    described = {
        **facts,
        "modalities": {item.name: {"unknown": item.unknown, "encoder": item.encoder, "standard": True} for item in modalities},
        "arrays_sha256": sha256_of_file(folder / _ARRAYS),
    }
    atomic_write_text(folder / _FACTS, json.dumps(described))


def arrays_digest(folder: Path) -> str:
    """SHA-256 of the arrays that `save_shared` wrote."""
    return str(json.loads((folder / _FACTS).read_text(encoding="utf-8"))["arrays_sha256"])


def load_shared(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[Modality, ...]]:
    """Read what `save_shared` wrote: facts, arrays and modalities.

    Raises:
        DataError: a part is missing or damaged, or the arrays are not those that were written.
    """
    try:
        facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        # The flavour for torch maps the file: all processes share its pages. The one for NumPy would copy it.
        arrays = {name: tensor.numpy() for name, tensor in load_file(folder / _ARRAYS).items()}
        digest = sha256_of_file(folder / _ARRAYS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged: {error}", remedy=_REMEDY, path=str(folder)) from error
    _agree(folder, _ARRAYS, digest, facts["arrays_sha256"])
    for name, array in arrays.items():
        if name not in ("train", "valid"):
            array.flags.writeable = False  # features are shared by all trials and written by none
    modalities = tuple(
        Modality(name, arrays[f"matrix.{name}"], arrays[f"mask.{name}"], **described)
        for name, described in facts["modalities"].items()
    )
    return facts, arrays, modalities


def check_fingerprint(folder: Path, fingerprint: str, facts: Mapping[str, Any]) -> None:
    """Refuse arrays beside another vocabulary.

    Raises:
        DataError: the fingerprint is another one.
    """
    _agree(folder, "fingerprint", fingerprint, facts["fingerprint"])


def named(modalities: Sequence[Modality], names: Sequence[str] | None) -> tuple[Modality, ...]:
    """The named modalities (None: all).

    Raises:
        DataError: a name that is not among them.
    """
    if names is None:
        return tuple(modalities)
    by_name = {modality.name: modality for modality in modalities}
    for name in names:
        if name not in by_name:
            raise DataError(
                f"modality {name!r} is not there; found: {', '.join(by_name) or 'none'}",
                remedy="add modalities/<name>.safetensors, descriptions.tsv or images/, or leave it out", value=name,
            )
    return tuple(by_name[name] for name in names)


def _agree(folder: Path, what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise DataError(
            f"{folder} is damaged: {what} {actual[:12]} is not {expected[:12]}", remedy=_REMEDY, path=str(folder)
        )
