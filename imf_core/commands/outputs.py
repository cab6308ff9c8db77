"""Output files of commands: a file appears when it is complete, and an error names the file that cannot be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imf_core.data.features.feature_files import Features, save_features
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_file


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write to, see `atomic_file`.

    Raises:
        DataError: the file cannot be written.
    """
    with _writable(path), atomic_file(path) as scratch:
        yield scratch


def check_safetensors(out: Path) -> None:
    """Refuse another suffix than `.safetensors`, before anything is read.

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
    with _writable(out):
        save_features(out, features)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `DataError` that names the file."""
    try:
        yield
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror or error}"
        raise DataError(problem, remedy="choose another place", path=str(path)) from error
