"""The folder for what is generated or extracted once and used again: bundled data sets, features of pretrained encoders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from imf_core.errors import DataError

REMEDY = "set IMF_CACHE to a folder that can be written"


def cache_root() -> Path:
    """`$IMF_CACHE`, else `$XDG_CACHE_HOME/imf-search`, else `~/.cache/imf-search`, else a folder of the temporary one.

    Raises:
        DataError: `IMF_CACHE`, or without it none of the others, can be written.
    """
    asked = os.environ.get("IMF_CACHE")
    if asked:
        root = Path(asked).expanduser()
        if not _writable(root):
            raise DataError(f"IMF_CACHE = {asked!r} cannot be written", remedy=REMEDY, path=asked)
        return root
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path(os.path.expanduser("~")) / ".cache"
    # Without a home, "~" stays as it is: never make a folder of that name in the working directory.
    if home.is_absolute() and _writable(home / "imf-search"):
        return home / "imf-search"
    spare = Path(tempfile.gettempdir()) / f"imf-search-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    if not _writable(spare):
        raise DataError(f"neither {home} nor {spare} can be written", remedy=REMEDY, path=str(spare))
    return spare


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
