"""A digest of the source code: a study and its workers must all run the same version."""

from __future__ import annotations

import socket
import subprocess
from functools import lru_cache
from pathlib import Path

import imf_core
from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of


@lru_cache(maxsize=1)
def code_digest() -> str:
    """The first 16 hexadecimal digits of the SHA-256 of all sources of `imf_core` and `tune`."""
    root = Path(imf_core.__file__).parent.parent
    files = [file for package in ("imf_core", "tune") for file in sorted((root / package).rglob("*.py"))]
    return sha256_of(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() for file in files)[:16]


def search_command() -> list[str]:
    """The words that start the search in any folder, for `imf_core.files.programs.command_line`."""
    return ["python", str(Path(imf_core.__file__).parent.parent / "tune" / "search.py")]


def git_commit() -> str:
    """The Git commit of the source tree; empty if it is no repository of its own, as an installed package is not."""
    root = Path(imf_core.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # Git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def refuse_other_code(expected: str) -> None:
    """Check, in a worker, that it runs the driver's code: a node that joined during the search has not been checked yet.

    Args:
        expected: digest of the driver's code; empty: accept any.

    Raises:
        ConfigError: this node imports other sources than the driver.
    """
    if expected and code_digest() != expected:
        raise ConfigError(
            f"node {socket.gethostname()} has the code {code_digest()}, the driver has {expected}",
            remedy="restore the sources as they were when the search began; on a cluster upload them to every machine: "
            "ray up cluster.yaml", key="code", value=code_digest(),
        )
