"""Join a running Ray cluster: send it our code, wait for its machines, and count the resources that it has or can add."""

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
from tune.hosts.cluster import sigterm_kept
from tune.hosts.resources import ClusterResources, Node
from tune.settings import SearchConfig

PACKAGES = ("imf_core", "tune")
BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"  # written to the head by `ray up`
_POLL_SECONDS = 0.5
_HTTP2_SETTINGS = b"\x04"  # type of the frame with which both ends begin (RFC 9113, section 3.4)
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00" + _HTTP2_SETTINGS + b"\x00\x00\x00\x00\x00"


@dataclass(frozen=True)
class Expected:
    """The machines that a cluster is expected to have.

    Args:
        count: number of machines that must join before the search begins, head included; 0: do not wait.
        addresses: of those machines, as far as they are known.
        growth: resources and maximum number of each kind of machine that an autoscaler may add.
    """

    count: int = 0
    addresses: tuple[str, ...] = ()
    growth: tuple[tuple[Mapping[str, float], int], ...] = ()

    @classmethod
    def of(cls, settings: SearchConfig, bootstrap: Path | str = BOOTSTRAP_FILE) -> Expected:
        """Read `--expect-nodes` and, on a head started by `ray up`, its cluster file."""
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
        """Expected addresses that are not among those of the living nodes."""
        return [address for address in self.addresses if address not in alive and _resolved(address) not in alive]


@contextmanager
def joined(settings: SearchConfig, console: Console) -> Iterator[ClusterResources]:
    """Join the cluster at `settings.address` for the duration of the block, after waiting for its machines.

    Raises:
        ConfigError: there is no such cluster, or its versions differ.
        ResourceError: machines are missing.
    """
    variables = environment(settings.address)
    variables.pop("RAY_AUTH_MODE", None)  # every node has its own
    refuse_silent(str(settings.address))
    with staged_code() as code:
        try:
            with sigterm_kept():
                ray.init(
                    address=settings.address, runtime_env={"env_vars": variables, **code}, log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            gist = " ".join(str(error).split()) or repr(error)
            raise ConfigError(
                f"the Ray cluster at {settings.address} cannot be joined: {gist[:600]}",
                remedy="start it (ray up cluster.yaml); use the same versions of Python and Ray, and its token "
                "(~/.ray/auth_token); or search on this machine only: --address local",
                key="address", value=settings.address,
            ) from error
    try:
        expected = Expected.of(settings)
        wait_for_nodes(expected, settings.node_wait_seconds, settings.fewer_nodes, console)
        yield count_resources(ray.nodes(), expected, settings.grows_to)
    finally:
        with sigterm_kept():
            ray.shutdown()


def refuse_silent(address: str, seconds: float = 10.0) -> None:
    """Refuse an address at which nothing listens, or something else: Ray would try it for minutes.

    Ray's servers speak gRPC, so HTTP/2: what greets otherwise, or not at all, is none. Words such as `auto` are left to Ray.

    Args:
        seconds: that a server has to accept the connection, and then to greet.

    Raises:
        ConfigError: no such server answers there; names RAY_ADDRESS if the address comes from it.
    """
    host, mark, port = address.removeprefix("ray://").rpartition(":")
    if not mark or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
                return  # it greets nobody who does not encrypt
            connection.sendall(_HTTP2_GREETING)
            with connection.makefile("rb") as stream:
                greeting = stream.read(9)
        if greeting[3:4] != _HTTP2_SETTINGS:
            raise ConnectionError(f"something else listens there; its greeting is {greeting!r}")
    except (OSError, OverflowError, UnicodeError) as error:
        source = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") == address else "--address"
        raise ConfigError(
            f"no Ray cluster answers at {address}, which {source} names: {error}",
            remedy=f"start it, correct {source}, or search on this machine only: --address local", key="address", value=address,
        ) from error


@contextmanager
def staged_code() -> Iterator[dict[str, Any]]:
    """A `runtime_env` with a copy of our packages as working directory, so that every node runs the driver's code.

    It is empty in a Ray job that has a working directory: Ray accepts only one, and that one is on every node already.
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
    """Wait until the expected machines have joined; `ray up` returns before its launcher has started the workers.

    Args:
        expected: machines to wait for.
        seconds: maximum time to wait.
        fewer: after that time, print a warning and continue instead of failing.
        console: for messages.

    Raises:
        ResourceError: machines are missing after that time; names their addresses.
    """
    deadline, announced = time.monotonic() + seconds, False
    while True:
        alive = [str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]]
        if len(alive) >= expected.count:
            return
        count = f"{len(alive)} of {expected.count} nodes"
        if time.monotonic() > deadline:
            break
        if not announced:
            console.print(f"{count} have joined; waiting up to {seconds:.0f} s for the others", highlight=False)
            announced = True
        time.sleep(_POLL_SECONDS)
    absent = expected.missing(alive)
    problem = count + (f", missing {', '.join(absent)}" if absent else "") + f" after {seconds:.0f} s"
    if fewer:
        console.print(f"[bold yellow]warning[/]: {escape(problem)}; the search starts without the others", highlight=False)
        return
    raise ResourceError(
        problem, remedy="see the launcher's log on the head, /tmp/ray/session_latest/logs/monitor.*; wait longer: "
        "--node-wait 10m; or start with the nodes that have joined: --fewer-nodes",
        asked=expected.count, available=len(alive), missing=absent,
    )


def count_resources(nodes: Sequence[Mapping[str, Any]], expected: Expected, grows_to: int | None) -> ClusterResources:
    """The resources of the cluster, including machines that an autoscaler can add.

    Args:
        nodes: `ray.nodes()`.
        expected: machines that the autoscaler of `ray up` can add, by kind.
        grows_to: total number of machines, head included, to which another autoscaler can grow the cluster; each new machine
            is assumed to be like the largest present one.
    """
    present = ClusterResources.of_nodes(nodes)
    added: list[Node] = []
    for resources, limit in expected.growth:
        kind = Node(float(resources.get("CPU", 0)), float(resources.get("GPU", 0)))
        added += [kind] * max(0, limit - sum(node == kind for node in present.nodes))
    if grows_to is not None and present.nodes:
        largest = max(present.nodes, key=lambda node: (node.gpus, node.cpus))
        added += [largest] * max(0, grows_to - len(present.nodes) - len(added))
    return ClusterResources((*present.nodes, *added), present.controllers, len(added))


def _resolved(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host
