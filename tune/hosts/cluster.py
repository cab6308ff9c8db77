"""Ray for the length of a search: one of our own, or a cluster that was joined."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import ray

import imf_core
from imf_core.errors import ResourceError
from tune.environment import environment
from tune.hosts.leftovers import ProcessRecord, end, end_leftovers
from tune.hosts.resources import ClusterResources, ResourcePlan
from tune.hosts.watchdog import watching
from tune.settings import SearchConfig

_PORT = "RAY_GCS_SERVER_PORT"  # where a Ray that is started listens


@contextmanager
def ray_cluster(
    settings: SearchConfig, machine: ClusterResources, resources: ResourcePlan, lost: Callable[[ResourceError], None]
) -> Iterator[None]:
    """Ray for the length of the block: one of our own with the planned resources, unless a cluster has been joined.

    The dashboard runs with worker groups only, on loopback: Ray Train returns the resources of an early-stopped group through
    its state API, and without it the next trial would wait for ever. What a killed driver has left is ended first.

    Args:
        machine: resources of this machine, as in the plan.
        lost: called when a cluster of our own has died; then the block is interrupted as by Ctrl-C.

    Raises:
        ResourceError: Ray does not start.
    """
    if settings.joins:
        yield
        return
    # Workers import our packages from the driver's source tree, wherever they run and whether or not we are installed.
    root = str(Path(imf_core.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    variables = {**environment(settings.address), "PYTHONPATH": path}
    if settings.workers > 1:  # Ray Train asks for the state of "the" cluster, and gives up where another Ray runs beside ours
        port = os.environ[_PORT] = str(_free_port())
        variables["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    end_leftovers()
    before = set(psutil.Process().children())
    try:
        with sigterm_kept():
            ray.init(
                address="local", num_cpus=int(machine.cpus), num_gpus=int(machine.gpus),
                include_dashboard=settings.workers > 1, resources=resources.custom_resources,
                runtime_env={"env_vars": variables}, log_to_driver=False, logging_level=logging.ERROR,
            )
    except Exception as error:  # a plain one where a part of Ray is not up within its 30 s; what it started runs on
        with sigterm_kept():
            ray.shutdown()
        end([child for child in psutil.Process().children(recursive=True) if child not in before])
        raise ResourceError(
            f"Ray did not start on this machine: {' '.join(str(error).split())[:300]}",
            remedy="if other programs keep its CPUs busy, run the same command again later; the logs of Ray: "
            f"{Path(tempfile.gettempdir()) / 'ray' / 'session_latest' / 'logs'}",
        ) from error
    finally:
        if settings.workers > 1:
            os.environ.pop(_PORT)
    record = ProcessRecord(set(psutil.Process().children()) - before)
    try:
        with watching(lost, record):
            yield
    finally:
        with sigterm_kept():
            ray.shutdown()
        record.remove()


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """After the block SIGTERM is handled as before it: for the start and the end of a Ray.

    Ray sets a handler of its own as it starts. As it shuts down, its C++ side gives the signal back to the system, of which
    Python does not hear.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            signal.signal(signal.SIGTERM, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
