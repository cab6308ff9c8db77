"""GPUs that are there are used: from what is detected, through the plan, to what Ray gives each trial."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from small_search import write_graph

from imf_core.errors import ResourceError
from tune.hosts import gpus, resources
from tune.hosts.cluster import ray_cluster
from tune.hosts.gpus import Gpu, why_unused
from tune.hosts.resources import ClusterResources, Node, automatic_gpus, plan_resources
from tune.plan.plan import make_plan
from tune.settings import SearchConfig

GIB = 2**30


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch):
    """Sets the number of 24 GiB cards, and of CPUs, that are detected."""

    def set_cards(count: int, cpus: int = 16) -> None:
        monkeypatch.setattr(resources, "visible_gpus", lambda: (Gpu("Card", 24 * GIB),) * count)
        monkeypatch.setattr(resources, "_usable_cpus", lambda: cpus)

    return set_cards


@pytest.mark.parametrize(
    ("count", "gpus_per_worker", "concurrency"),
    [(0, 0.0, 12), (1, 0.25, 4), (2, 0.25, 8), (8, 0.5, 12)],
)
def test_a_plan_uses_all_cards(cards, tmp_path: Path, count: int, gpus_per_worker: float, concurrency: int) -> None:
    cards(count)
    write_graph(tmp_path / "graph")
    asked = {"data": str(tmp_path / "graph"), "storage": str(tmp_path), "trials": 12}
    plan = make_plan(SearchConfig.build(asked), ClusterResources.local()).resources
    assert (plan.gpus_per_worker, plan.concurrency) == (gpus_per_worker, concurrency)
    assert plan.trial_bundle.get("GPU", 0.0) == gpus_per_worker
    assert any(note == f"GPU: {count} x Card (24 GiB)" for note in plan.notes) == bool(count)


def test_workers_of_one_trial_have_a_card_each(cards) -> None:
    cards(2)
    plan = plan_resources(2, None, None, None, 4, ClusterResources.local(), GIB)
    assert (plan.concurrency, plan.worker_bundle["GPU"], plan.trial_bundle) == (1, 1.0, {"trial": 1})
    cards(1)
    with pytest.raises(ResourceError, match=r"a trial needs 2 GPU .*cluster has 1"):
        plan_resources(2, None, None, None, 4, ClusterResources.local(), GIB)


@pytest.mark.parametrize(
    ("trials", "cpus", "worker_gib", "expected"),
    [
        (1, 16, 1, 1.0),  # one trial at a time has the card
        (3, 16, 1, 1 / 3),
        (12, 16, 1, 1 / 4),
        (12, 2, 1, 1 / 2),  # a trial needs a CPU
        (12, 16, 8, 1 / 2),  # two of 8 GiB fit into 80 % of 24
        (12, 16, 30, 1.0),  # the trial will say that it does not fit
        (12, 16, 0, 1.0),
    ],
)
def test_a_card_is_shared_where_trials_fit(trials: int, cpus: int, worker_gib: int, expected: float) -> None:
    machine = ClusterResources((Node(cpus, 1.0, 24 * GIB),))
    assert automatic_gpus(1, trials, machine, worker_gib * GIB) == pytest.approx(expected)


def test_what_is_said_goes_before_what_is_detected(cards) -> None:
    cards(2)
    there = ClusterResources.local()
    assert plan_resources(1, None, 0.0, None, 12, there, GIB).trial_bundle.keys() == {"CPU"}
    assert plan_resources(1, None, 1.0, None, 12, there, GIB).concurrency == 2
    assert [SearchConfig.build({"gpus_per_worker": text}).requested_gpus for text in ("auto", "0.5", 2)] == [None, 0.5, 2.0]
    assert SearchConfig.build({}).requested_gpus is None


def test_hardware_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(gpus, "_NVIDIA", tmp_path / "none")
    assert why_unused() == ""
    (tmp_path / "none" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "1 NVIDIA GPU(s) are not used" in why_unused() and "is a CPU build" in why_unused()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA_VISIBLE_DEVICES hides them" in why_unused()
    monkeypatch.setattr(gpus, "_NVIDIA", tmp_path / "nothing")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "Mac" in why_unused()


@pytest.mark.cluster
def test_ray_gives_each_trial_its_share_of_the_cards(cards, tmp_path: Path) -> None:
    """Ray hands out two cards that are not there: what a trial sees of them is the variable."""
    import ray
    import ray.tune as ray_tune

    cards(2, cpus=2)
    settings = SearchConfig.build({"data": str(tmp_path), "storage": str(tmp_path)})
    machine = ClusterResources.local()
    plan = plan_resources(1, None, None, None, 2, machine, GIB)

    def trial(config: dict) -> None:
        (tmp_path / f"seen-{config['number']}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        ray_tune.report({"done": 1})

    with ray_cluster(settings, machine, plan, lambda failure: None):
        assert ray.cluster_resources()["GPU"] == 2
        ray_tune.Tuner(
            ray_tune.with_resources(trial, plan.trial_bundle), param_space={"number": ray_tune.grid_search([0, 1])},
            run_config=ray_tune.RunConfig(storage_path=str(tmp_path / "ray"), verbose=0),
        ).fit()
    assert sorted((tmp_path / f"seen-{number}").read_text() for number in (0, 1)) == ["0", "1"]
    assert json.dumps(plan.trial_bundle) == '{"CPU": 1, "GPU": 1.0}'
