"""A Ray cluster of two nodes on this machine: joined, counted, looked at, with our code handed to both (SUB-1, SUB-6)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from rich.console import Console

import imf_core
from imf_core.errors import ResourceError
from imf_core.prepare.link_data import LinkData, save_prepared
from tune.hosts.joining import joined
from tune.hosts.nodes import check_nodes, refuse_unfit
from tune.hosts.resources import plan_resources
from tune.settings import SearchConfig
from tune.sources import code_digest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"trial": 10}, "include_dashboard": False}
    )
    made.add_node(num_cpus=3)
    yield made
    made.shutdown()


def test_two_nodes_are_joined_counted_and_alike(cluster: Cluster, toy: LinkData, tmp_path: Path) -> None:
    def where_imported() -> str:  # within, so that it travels by value: a worker has our code, not our tests
        return str(Path(imf_core.__file__))

    save_prepared(toy, tmp_path / "study" / "data")
    said = io.StringIO()
    console = Console(file=said, width=120)
    settings = SearchConfig.build({
        "data": "unicode", "storage": str(tmp_path), "address": cluster.address, "expect_nodes": 2, "node_wait_seconds": 60.0,
    })
    with joined(settings, console) as there:
        assert (there.cpus, len(there.nodes), there.controllers) == (4, 2, 10)
        assert plan_resources(1, 1, 0, None, 9, there).concurrency == 4  # the cluster's CPUs, whatever this machine has
        reports = check_nodes(tmp_path / "study" / "data", tmp_path / "study", console)
        file = ray.get(ray.remote(num_cpus=3)(where_imported).remote(), timeout=60)  # only the second node has so many
    assert len(reports) == 2
    assert {report.code for report in reports} == {code_digest()}
    assert {(report.storage, report.cpus) for report in reports} == {("", 1.0), ("", 3.0)}
    assert "working_dir" in file  # the driver's copy, not what may be installed there
    assert f"code {code_digest()}" in said.getvalue()
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["data"]
    with pytest.raises(ResourceError, match="has code a1b2, the driver has"):
        refuse_unfit(reports[0], [reports[0], replace(reports[1], code="a1b2")])


def test_sub_5_a_machine_that_does_not_come_ends_it_in_time(cluster: Cluster, tmp_path: Path) -> None:
    settings = SearchConfig.build({
        "data": "unicode", "storage": str(tmp_path), "address": cluster.address, "expect_nodes": 3, "node_wait_seconds": 1.0,
    })
    with pytest.raises(ResourceError, match="2 of 3 nodes after 1 s"), joined(settings, Console(file=io.StringIO())):
        pass
    assert not ray.is_initialized()
