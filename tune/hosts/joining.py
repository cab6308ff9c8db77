"""Joining a Ray cluster: our code for every node, its machines waited for, and what they and its autoscaler have to offer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from rich.console import Console
from rich.markup import escape

import imf_core
from imf_core.errors import ConfigError, ResourceError
from tune.environment import environment
from tune.hosts.resources import ClusterResources, Node
from tune.settings import SearchConfig

PACKAGES = ("imf_core", "tune")
BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"  # what `ray up` leaves on the head
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Expected:
    """What the cluster is to become.

    Args:
        count: machines that are to be there before the search begins, the head counted; 0: whatever is there.
        addresses: of those machines, where they are known.
        growth: machines that an autoscaler may add to those, by their resources.
    """

    count: int = 0
    addresses: tuple[str, ...] = ()
    growth: tuple[tuple[Mapping[str, float], int], ...] = ()

    @classmethod
    def of(cls, settings: SearchConfig, bootstrap: Path | str = BOOTSTRAP_FILE) -> Expected:
        """From `--expect-nodes`, and on a head that `ray up` has started from its cluster file."""
        file = Path(os.path.expanduser(str(bootstrap)))
        config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        provider, types = config.get("provider") or {}, config.get("available_node_types") or {}
        addresses: tuple[str, ...] = ()
        growth: tuple[tuple[Mapping[str, float], int], ...] = ()
        if provider.get("type") == "local":
            addresses = tuple(str(address) for address in (provider["head_ip"], *(provider.get("worker_ips") or [])))
        elif types:
            limit = int(config.get("max_workers") or 0)
            growth = tuple(
                (dict(kind.get("resources") or {}), min(int(kind.get("max_workers", limit)), limit))
                for name, kind in types.items() if name != config.get("head_node_type")
            )
        return cls(settings.expect_nodes or len(addresses), addresses, growth)

    def missing(self, alive: Sequence[str]) -> list[str]:
        """Addresses of which no machine is there."""
        return [address for address in self.addresses if address not in alive and _number(address) not in alive]


@contextmanager
def joined(settings: SearchConfig, console: Console) -> Iterator[ClusterResources]:
    """The cluster at `settings.address` for the length of the block, once the machines that it is to have are there.

    Raises:
        ConfigError: there is no such cluster, or it runs other versions.
        ResourceError: machines are missing.
    """
    variables = environment(settings.address)
    variables.pop("RAY_AUTH_MODE", None)  # that of each node is its own
    with staged_code() as code:
        try:
            ray.init(
                address=settings.address, runtime_env={"env_vars": variables, **code}, log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            gist = " ".join(str(error).split()) or repr(error)
            raise ConfigError(
                f"the Ray cluster at {settings.address} cannot be joined: {gist[:600]}",
                remedy="start it (ray up cluster.yaml); use its versions of Python and Ray, and its token "
                "(~/.ray/auth_token); or search on this machine alone: --address local",
                key="address", value=settings.address,
            ) from error
    try:
        expected = Expected.of(settings)
        wait_for_nodes(expected, settings.node_wait_seconds, settings.fewer_nodes, console)
        yield offered(ray.nodes(), expected, settings.grows_to)
    finally:
        ray.shutdown()


@contextmanager
def staged_code() -> Iterator[dict[str, Any]]:
    """Our packages as Ray's working directory, so that every node runs the driver's code, whatever lies there.

    Within a Ray job that brings a working directory itself, that one is on every node already, and Ray takes no second.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if (job.get("runtime_env") or {}).get("working_dir"):
        yield {}
        return
    root = Path(imf_core.__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="imf-code-") as folder:
        for package in PACKAGES:
            shutil.copytree(root / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        yield {"working_dir": folder}


def wait_for_nodes(expected: Expected, seconds: float, fewer: bool, console: Console) -> None:
    """Wait until the cluster has its machines; the launcher starts workers after `ray up` has returned.

    Raises:
        ResourceError: they are not there in time, with the addresses that are missing; only a warning where `fewer`.
    """
    deadline, told = time.monotonic() + seconds, False
    while True:
        alive = [str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
        if len(alive) >= expected.count:
            return
        have = f"{len(alive)} of {expected.count} nodes"
        if time.monotonic() > deadline:
            break
        if not told:
            console.print(f"{have} are there; waiting up to {seconds:.0f} s for the others", highlight=False)
            told = True
        time.sleep(_POLL_SECONDS)
    absent = expected.missing(alive)
    problem = have + (f", missing {', '.join(absent)}" if absent else "") + f" after {seconds:.0f} s"
    if fewer:
        console.print(f"[bold yellow]warning[/]: {escape(problem)}; the search goes on with them", highlight=False)
        return
    raise ResourceError(
        problem, remedy="see the launcher's log on the head, /tmp/ray/session_latest/logs/monitor.*; wait longer, "
        "--node-wait 10m; or go on with what is there, --fewer-nodes",
        asked=expected.count, available=len(alive), missing=absent,
    )


def offered(nodes: Sequence[Mapping[str, Any]], expected: Expected, grows_to: int | None) -> ClusterResources:
    """What there is, and what an autoscaler adds when it is asked for.

    Args:
        nodes: `ray.nodes()`.
        expected: machines that the launcher's autoscaler may add, by kind.
        grows_to: machines in all, the head counted, where another autoscaler adds them; each like the largest that is there.
    """
    now = ClusterResources.of_nodes(nodes)
    more: list[Node] = []
    for resources, most in expected.growth:
        kind = Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))
        more += [kind] * max(0, most - sum(node == kind for node in now.nodes))
    if grows_to is not None and now.nodes:
        largest = max(now.nodes, key=lambda node: (node.gpus, node.cpus))
        more += [largest] * max(0, grows_to - len(now.nodes) - len(more))
    return ClusterResources((*now.nodes, *more), now.controllers, len(more))


def _number(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host
