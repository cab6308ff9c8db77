"""Ray for the length of a search: one of our own, or a cluster that was joined."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

import imf_core
from imf_core.errors import ResourceError
from tune.environment import environment
from tune.hosts.resources import ClusterResources, ResourcePlan
from tune.hosts.watchdog import watching
from tune.settings import SearchConfig


@contextmanager
def ray_cluster(settings: SearchConfig, resources: ResourcePlan, lost: Callable[[ResourceError], None]) -> Iterator[None]:
    """Ray for the length of the block: one of our own with the planned resources, unless a cluster has been joined.

    `lost` is told when a cluster of our own has died; then the block is interrupted as by Ctrl-C.

    The dashboard process runs with worker groups only: Ray Train gives the resources of an early-stopped group back through
    its state API, and without it the next trial would wait for ever. It listens on loopback.
    """
    if settings.joins:
        yield
        return
    # Workers find our packages where the driver has them, also from another folder and where nothing is installed.
    root = str(Path(imf_core.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    variables = {**environment(settings.address), "PYTHONPATH": path}
    ray.init(
        address="local", num_cpus=int(ClusterResources.local().cpus), include_dashboard=settings.workers > 1,
        resources=resources.custom_resources, runtime_env={"env_vars": variables}, log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        with watching(lost):
            yield
    finally:
        ray.shutdown()
