"""A report that a node of the cluster makes about itself: versions, code, data, storage, network."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import ray

import imf_core
from imf_core.files.digest import sha256_of_file
from tune.sources import code_digest

SEEN_SECONDS = 10.0  # maximum time until a file written by one node is visible on another; NFS caches directories


@dataclass(frozen=True)
class NodeReport:
    """The state of a node.

    Args:
        name: host name.
        address: its address in Ray.
        python, ray, torch, version: versions of Python, Ray, torch and this package.
        code: digest of the sources that the node imports.
        data: digest of the prepared data as the node reads it, or `!` and a problem.
        storage: empty if the node can read and write the study's folder, else the problem.
        free: free space on its temporary disk, bytes.
        cpus, gpus: what Ray may allocate there.
        interface: network interface with its address; empty if there is none.
        resolves: address to which its host name resolves on the node itself.
        parts: packages with parts of one's own that the search may use, and their versions there.
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
    parts: str = ""

    @property
    def label(self) -> str:
        """Name and address: `worker1 (10.0.0.11)`."""
        return f"{self.name} ({self.address})"


def report_node(prepared: str, folder: str, address: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Make the report of the node on which this runs, as plain values.

    Args:
        prepared: folder of the prepared data.
        folder: inside the study's folder; the driver has written a file `driver` there.
        address: of this node.
        packages: distributions with parts that the search may use.
    """
    import torch

    names = [name for name, addresses in psutil.net_if_addrs().items() if any(item.address == address for item in addresses)]
    report = NodeReport(
        name=socket.gethostname(), address=address, python=platform.python_version(), ray=ray.__version__,
        torch=torch.__version__, version=imf_core.__version__, code=code_digest(), data=data_digest(Path(prepared)),
        storage=_touch(Path(folder)), free=shutil.disk_usage(tempfile.gettempdir()).free, interface=(names or [""])[0],
        resolves=_own_address(), parts=versions_of(packages),
    )
    return asdict(report)


def versions_of(packages: Sequence[str]) -> str:
    """Packages with their versions here, as text: `rotate-part 1.0, other-part (not installed)`."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return ", ".join(found)


def data_digest(prepared: Path) -> str:
    """Digest of the arrays of prepared data as this node reads them; `!` and the problem if they are missing or damaged."""
    try:
        expected = str(json.loads((prepared / "vocabulary.json").read_text(encoding="utf-8"))["arrays_sha256"])
        file = prepared / "arrays.safetensors"
        digest = sha256_of_file(file)
    except (OSError, ValueError, KeyError) as error:
        return f"!{prepared} cannot be read: {error}"
    if digest != expected:
        return f"!{file} has {file.stat().st_size:,} bytes with SHA-256 {digest[:16]}, not {expected[:16]}"
    return digest[:16]


def _touch(folder: Path) -> str:
    """Write a file that the driver looks for; returns the problem, empty if there is none."""
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
