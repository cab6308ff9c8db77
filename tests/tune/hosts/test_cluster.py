"""A Ray of our own, beside others on the same machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from imf_core.errors import ResourceError
from tune.hosts.cluster import ray_cluster, sigterm_kept
from tune.hosts.resources import ClusterResources, Node, plan_resources
from tune.settings import SearchConfig


@pytest.mark.cluster
def test_workers_of_a_group_know_which_ray_is_theirs(tmp_path: Path) -> None:
    """Ray Train frees what an early-stopped group held by asking for the cluster's state; it must not have to guess whose."""
    import ray

    settings = SearchConfig.build({"data": str(tmp_path), "storage": str(tmp_path), "workers": 2})
    machine = ClusterResources((Node(2.0),))
    with ray_cluster(settings, machine, plan_resources(2, 1, 0.0, None, 1, machine, 2**30), lambda failure: None):
        address = ray.get(ray.remote(num_cpus=0)(lambda: os.environ["RAY_ADDRESS"]).remote())
        assert address == ray.get_runtime_context().gcs_address
    assert "RAY_GCS_SERVER_PORT" not in os.environ


@pytest.mark.parametrize("workers", [1, 2])
def test_a_ray_that_does_not_start_is_named_and_what_it_started_is_ended(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def time_out(**settings: object) -> None:
        started.append(subprocess.Popen(["sleep", "600"]))
        raise Exception("The current node timed out\n  during startup.")  # what Ray raises then

    monkeypatch.setattr("ray.init", time_out)
    settings = SearchConfig.build({"data": str(tmp_path), "storage": str(tmp_path), "workers": workers})
    machine = ClusterResources((Node(2.0),))
    resources = plan_resources(workers, 1, 0.0, None, 1, machine, 2**30)
    cluster = ray_cluster(settings, machine, resources, lambda failure: None)
    with pytest.raises(ResourceError, match="did not start on this machine: The current node timed out during"), cluster:
        pytest.fail("the block must not run")
    assert not psutil.pid_exists(started[0].pid)
    assert "RAY_GCS_SERVER_PORT" not in os.environ


@pytest.mark.parametrize("taken", [
    lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    lambda: ctypes.CDLL(None).signal(signal.SIGTERM, 0),  # the system's own action, of which Python does not hear
], ids=["as Ray starts", "as it shuts down"])
def test_sigterm_is_handled_as_before(taken: Callable[[], object]) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with sigterm_kept():
            taken()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
