"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write_text(path: Path | str, text: str) -> Path:
    """Write a file so that a reader sees the old text or the new, never a part; makes the folder.

    Bytes of names that are no UTF-8 are written as `\\udc80`, which JSON reads back as they were.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write into a temporary folder beside the target and swap it in at the end: readers never see a half."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    fresh.mkdir()
    try:
        yield fresh
        for part in fresh.iterdir():
            descriptor = os.open(part, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        old = folder.parent / f".{folder.name}.old.{uuid.uuid4().hex[:8]}"
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
