"""Files and folders that appear complete or not at all: written under another name beside the target, then renamed.

What is written gets the mode that the umask gives a new file, also where a library (safetensors, `tempfile`) makes its files
private: other users of a shared folder are to read them.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART = ".part"


def atomic_write_text(path: Path | str, text: str) -> Path:
    """Write a text file, see `atomic_file`.

    Bytes of names that are not UTF-8 are written as `\\udc80`, which JSON reads back as the same bytes.
    """
    with atomic_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        stream.write(text)
    return Path(path)


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """A path to write to. It takes the name `path` when the block ends and is deleted if the block raises.

    A reader sees the old file or the new one, never a part. The folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    try:
        scratch.touch()
        mode = scratch.stat().st_mode  # as the umask has it
        yield scratch
        _allow(scratch, mode)
        _sync(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path, *, replace: bool = True, alone: bool = False) -> Iterator[Path]:
    """A folder to write into. It takes the name `folder` when the block ends and is deleted if the block raises.

    A reader sees the old folder or the new one, never a part. The parent folder is made.

    Args:
        folder: the target.
        replace: an existing folder is moved aside, and deleted once the new one has its name or moved back if that fails.
            False: only an empty folder is replaced.
        alone: no other process writes this folder, so that what a killed one has left beside it is deleted first.

    Raises:
        OSError: something cannot be written, or there is a folder that may not be replaced.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if alone:
        for path in folder.parent.iterdir():
            if path.name.startswith(f".{folder.name}.") and path.suffix == _PART:
                shutil.rmtree(path, ignore_errors=True)
    scratch, old = _scratch(folder), _scratch(folder)
    scratch.mkdir()
    mode = scratch.stat().st_mode
    try:
        yield scratch
        for path in scratch.rglob("*"):
            _allow(path, mode if path.is_dir() else mode & 0o666)
        for path in scratch.iterdir():
            if not path.is_symlink():
                _sync(path)
        if replace and folder.exists():
            folder.rename(old)
        try:
            scratch.rename(folder)  # onto an empty folder too
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PART}")


def _allow(path: Path, mode: int) -> None:
    """Add the permissions of a mode to those of a file or folder."""
    has = path.lstat().st_mode
    if not stat.S_ISLNK(has) and has | stat.S_IMODE(mode) != has:
        path.chmod(stat.S_IMODE(has | mode))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
