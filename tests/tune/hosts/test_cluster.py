"""A Ray of our own, beside others on the same machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tune.hosts.cluster import ray_cluster
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
