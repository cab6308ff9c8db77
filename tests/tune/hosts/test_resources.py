"""What fits at a time, and refusals in numbers (case TRAIN-7)."""

from __future__ import annotations

import pytest

from imf_core.errors import ResourceError
from tune.hosts.resources import ClusterResources, Node, plan_resources

TWO = ClusterResources((Node(2),))


def test_two_cpus_run_two_trials_of_one_thread() -> None:
    plan = plan_resources(1, None, 0, None, 12, TWO)
    assert (plan.concurrency, plan.cpus_per_worker) == (2, 1)
    assert plan.trial_bundle == {"CPU": 1}


def test_two_workers_fit_on_two_cpus_because_the_driver_takes_none() -> None:
    plan = plan_resources(2, None, 0, None, 4, TWO)
    assert (plan.concurrency, plan.cpus_per_worker, plan.workers) == (1, 1, 2)
    assert plan.trial_bundle == {"trial": 1}
    assert plan.worker_bundle == {"CPU": 1}
    assert plan.custom_resources["trial"] >= 1


def test_the_impossible_is_refused_in_numbers() -> None:
    with pytest.raises(ResourceError, match=r"needs 3 CPU .*cluster has 2") as caught:
        plan_resources(3, 1, 0, None, 4, TWO)
    assert (caught.value.asked, caught.value.available) == (3, 2)
    assert caught.value.remedy
    with pytest.raises(ResourceError, match=r"needs 3 CPU .*cluster has 2"):
        plan_resources(1, 3, 0, 1, 4, TWO)
    with pytest.raises(ResourceError, match=r"needs 1 GPU .*cluster has 0"):
        plan_resources(1, None, 1, None, 4, TWO)


def test_a_concurrency_that_does_not_fit_is_lowered_and_said() -> None:
    plan = plan_resources(1, None, 0, 4, 12, TWO)
    assert plan.concurrency == 2
    assert any("concurrency 4 lowered to 2" in note and "cluster has 2 CPU" in note for note in plan.notes)
    few = plan_resources(1, None, 0, 4, 1, TWO)
    assert (few.concurrency, few.cpus_per_worker) == (1, 2)
    assert any("lowered to 1" in note for note in few.notes)


def test_spare_cpus_are_shared_evenly() -> None:
    big = ClusterResources((Node(64),))
    assert plan_resources(1, None, 0, None, 12, big).cpus_per_worker == 5
    assert plan_resources(1, None, 0, 4, 12, big).cpus_per_worker == 16
    assert plan_resources(1, 4, 0, None, 100, big).concurrency == 16


def test_a_worker_stays_on_one_machine() -> None:
    three = ClusterResources((Node(4), Node(4), Node(2)))
    assert plan_resources(1, 3, 0, None, 9, three).concurrency == 2
    with pytest.raises(ResourceError, match="stays on one of the 3 machines, and the largest has 4 CPU"):
        plan_resources(1, 6, 0, None, 9, three)


def test_gpus() -> None:
    machine = ClusterResources((Node(16, 2),))
    assert plan_resources(1, None, 1, None, 8, machine).concurrency == 2
    shared = plan_resources(1, None, 0.4, None, 8, machine)
    assert (shared.concurrency, shared.trial_bundle) == (4, {"CPU": 4, "GPU": 0.4})
    with pytest.raises(ResourceError, match="only a trial with one worker can share"):
        plan_resources(2, None, 0.5, None, 8, machine)
    with pytest.raises(ResourceError, match="only a trial with one worker can share"):
        plan_resources(1, None, 1.5, None, 8, machine)


def test_cluster_from_ray_nodes() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9}}, {"Alive": False, "Resources": {"CPU": 9.0}},
        {"Alive": True, "Resources": {"trial": 100.0}},
    ]
    cluster = ClusterResources.of_nodes(nodes)
    assert (cluster.cpus, cluster.gpus, cluster.controllers) == (4.0, 1.0, 100.0)
    assert ClusterResources.local().cpus >= 1


def test_a_cluster_that_cannot_watch_trials_of_several_workers_is_refused() -> None:
    """Without the resource their controllers would wait for ever."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}]
    with pytest.raises(ResourceError, match="resource 'trial'") as caught:
        plan_resources(2, None, 0, None, 4, ClusterResources.of_nodes(nodes))
    assert "--resources" in caught.value.remedy
    assert plan_resources(1, None, 0, None, 4, ClusterResources.of_nodes(nodes)).concurrency == 4
    nodes[0]["Resources"]["trial"] = 1.0  # type: ignore[index]
    assert plan_resources(2, None, 0, None, 4, ClusterResources.of_nodes(nodes)).concurrency == 1


def test_the_plan_counts_the_cluster_not_this_machine() -> None:
    three = [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}] * 3
    plan = plan_resources(1, 4, 1, None, 12, ClusterResources.of_nodes(three))
    assert plan.concurrency == 3
    assert "the cluster has 12 CPU and 3 GPU on 3 machines" in plan.notes
