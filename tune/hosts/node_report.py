"""What a node of a cluster is, said by the node itself."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import ray

import imf_core
from imf_core.files.digest import sha256_of_file
from tune.sources import code_digest

SEEN_SECONDS = 10.0  # in which a file written by one node has to appear on another: NFS caches folders


@dataclass(frozen=True)
class NodeReport:
    """What a node said of itself.

    Args:
        name: host name.
        address: by which Ray knows it.
        python, ray, torch, version: of Python, Ray, torch and this package.
        code: digest of the sources that the node imports.
        data: digest of the prepared data as read there; a problem begins with `!`.
        storage: empty where the node reads and writes the study's folder, else what is wrong.
        free: bytes free on its temporary disk.
        cpus, gpus: what Ray may hand out there.
        interface: network interface that has its address; empty where none has.
        resolves: address that its own host name has there.
    """

    name: str
    address: str
    python: str
    ray: str
    torch: str
    version: str
    code: str
    data: str
    storage: str
    free: int
    cpus: float = 0.0
    gpus: float = 0.0
    interface: str = ""
    resolves: str = ""

    @property
    def place(self) -> str:
        """`worker1 (10.0.0.11)`."""
        return f"{self.name} ({self.address})"


def look(prepared: str, folder: str, address: str) -> dict[str, Any]:
    """What this node is; runs on it.

    Args:
        prepared: folder of the prepared data.
        folder: made by the driver in the study's folder, with a file `driver` in it.
        address: of this node.
    """
    import torch

    names = [name for name, found in psutil.net_if_addrs().items() if any(item.address == address for item in found)]
    report = NodeReport(
        name=socket.gethostname(), address=address, python=platform.python_version(), ray=ray.__version__,
        torch=torch.__version__, version=imf_core.__version__, code=code_digest(), data=data_digest(Path(prepared)),
        storage=_touch(Path(folder)), free=shutil.disk_usage(tempfile.gettempdir()).free, interface=(names or [""])[0],
        resolves=_own_address(),
    )
    return asdict(report)


def data_digest(prepared: Path) -> str:
    """Digest of the arrays in a folder of prepared data, as read here; `!` and what is wrong where they cannot be used."""
    try:
        wanted = str(json.loads((prepared / "vocabulary.json").read_text(encoding="utf-8"))["arrays_sha256"])
        file = prepared / "arrays.safetensors"
        found = sha256_of_file(file)
    except (OSError, ValueError, KeyError) as error:
        return f"!{prepared} cannot be read: {error}"
    if found != wanted:
        return f"!{file} has {file.stat().st_size:,} bytes with SHA-256 {found[:16]}, not {wanted[:16]}"
    return found[:16]


def _touch(folder: Path) -> str:
    deadline = time.monotonic() + SEEN_SECONDS
    while not (folder / "driver").is_file():
        if time.monotonic() > deadline:
            return f"does not see {folder.parent}"
        time.sleep(0.2)
    try:
        (folder / f"{socket.gethostname()}-{uuid4().hex}").write_text("x", encoding="utf-8")
    except OSError as error:
        return f"cannot write to {folder.parent}: {error.strerror}"
    return ""


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
