"""The digest of the source code, so that a study and its workers run the same."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path

import imf_core
from imf_core.errors import ConfigError
from imf_core.files.digest import sha256_of


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the sources of both packages, so that numbers of two versions are never mixed."""
    root = Path(imf_core.__file__).parent.parent
    files = [file for package in ("imf_core", "tune") for file in sorted((root / package).rglob("*.py"))]
    return sha256_of(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() for file in files)[:16]


def refuse_other_code(expected: str) -> None:
    """For a worker: nodes that join after the search has begun were not looked at.

    Raises:
        ConfigError: this node imports other sources than the driver.
    """
    if expected and code_digest() != expected:
        raise ConfigError(
            f"node {socket.gethostname()} has the code {code_digest()}, the driver has {expected}",
            remedy="put the sources back as they were when the search began; on a cluster bring them to every machine: "
            "ray up cluster.yaml", key="code", value=code_digest(),
        )
