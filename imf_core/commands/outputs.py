"""What commands share that write one file: it appears when it is complete, and a place that cannot be written is named."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imf_core.data.features.feature_files import Features, save_features
from imf_core.errors import DataError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to that takes the name `path` when all is written, and is gone when something fails.

    Raises:
        DataError: something cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _place(path):
        try:
            yield scratch
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)


def check_safetensors(out: Path) -> None:
    """Refuse another suffix, before anything is read.

    Raises:
        DataError: the name does not end in `.safetensors`.
    """
    if out.suffix != ".safetensors":
        raise DataError.at(out, None, "the output is safetensors", value=out.suffix, remedy="name it OUT.safetensors")


def write_features(out: Path, features: Features) -> None:
    """Write a feature file.

    Raises:
        DataError: it cannot be written.
    """
    with _place(out):
        save_features(out, features)


@contextmanager
def _place(path: Path) -> Iterator[None]:
    """The folder of a file, made; what the system refuses in the block is an error that names the file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror or error}"
        raise DataError(problem, remedy="choose another place", path=str(path)) from error
