"""How many trials fit at a time, and what each of them takes; an impossible request is refused in numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.errors import ResourceError

TRIAL_SLOT = "trial"  # custom resource: the driver of a trial with several workers takes one of these and no CPU
TRIAL_SLOTS = 100


@dataclass(frozen=True)
class Node:
    """One machine of the cluster: what Ray may hand out there."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class ClusterResources:
    """What there is, by machine: a worker never spans two.

    Args:
        nodes: machines, those included that an autoscaler adds when they are asked for.
        controllers: how many trials of several workers the cluster can watch; None: it is ours, and as many as are needed.
        to_come: how many of the machines are not there yet.
    """

    nodes: tuple[Node, ...]
    controllers: float | None = None
    to_come: int = 0

    @classmethod
    def local(cls, gpus: float = 0.0) -> ClusterResources:
        """This machine: the CPUs that this process may use (affinity and container quota, not those of the board)."""
        return cls((Node(float(_usable_cpus()), gpus),))

    @classmethod
    def of_nodes(cls, nodes: Iterable[Mapping[str, Any]]) -> ClusterResources:
        """From `ray.nodes()`; dead nodes are left out."""
        alive = [dict(node.get("Resources", {})) for node in nodes if node.get("Alive", True)]
        controllers = sum(float(item.get(TRIAL_SLOT, 0.0)) for item in alive)
        return cls(tuple(Node(float(item.get("CPU", 0.0)), float(item.get("GPU", 0.0))) for item in alive), controllers)

    @property
    def cpus(self) -> float:
        """All CPUs."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """All GPUs."""
        return sum(node.gpus for node in self.nodes)

    def slots(self, cpus: float, gpus: float) -> int:
        """Workers of this size that fit at the same time."""
        count = 0
        for node in self.nodes:
            fitting = _shares(node.cpus, cpus)
            if gpus:  # a share stays on one card: three of 0.4 do not fit on one
                fitting = min(fitting, _shares(node.gpus, gpus) if gpus >= 1 else int(node.gpus) * _shares(1.0, gpus))
            count += fitting
        return count


@dataclass(frozen=True)
class ResourcePlan:
    """What the search asks of Ray.

    Args:
        concurrency: trials at a time.
        workers: processes of each trial.
        cpus_per_worker, gpus_per_worker: what each takes.
        threads_per_worker: for `torch.set_num_threads`.
        notes: what was chosen or lowered, in words.
    """

    concurrency: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    threads_per_worker: int
    notes: tuple[str, ...] = ()

    @property
    def trial_bundle(self) -> dict[str, float]:
        """For `ray_tune.with_resources`: one worker is the trial itself; with several the trial only watches them."""
        if self.workers > 1:
            return {TRIAL_SLOT: 1}
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})}

    @property
    def worker_bundle(self) -> dict[str, float]:
        """For `ray.train.ScalingConfig(resources_per_worker=...)`."""
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})}

    @property
    def custom_resources(self) -> dict[str, float]:
        """For `ray.init(resources=...)` of a cluster of our own."""
        return {TRIAL_SLOT: max(TRIAL_SLOTS, self.concurrency)}


def plan_resources(
    workers: int, cpus_per_worker: int | None, gpus_per_worker: float, concurrency: int | None, trials: int,
    cluster: ClusterResources,
) -> ResourcePlan:
    """Fit the request to the cluster.

    Args:
        workers: processes that train one trial, >= 1.
        cpus_per_worker: >= 1; None: the CPUs shared evenly by the trials that run at a time.
        gpus_per_worker: 0, a fraction (one worker only) or a whole number.
        concurrency: trials at a time; None: as many as fit, never more than `trials`. A number that does not fit is lowered.
        trials: of the whole search.
        cluster: what there is.

    Raises:
        ResourceError: not even one trial fits; facts `asked` and `available`.
    """
    notes: list[str] = []
    if gpus_per_worker % 1 and (workers > 1 or gpus_per_worker > 1):
        raise ResourceError(
            f"{workers} workers with {gpus_per_worker:g} GPU each: only a single worker can share a GPU",
            remedy="give whole GPUs to each worker, or use --workers 1", asked=gpus_per_worker, available=cluster.gpus,
        )
    cpus = cpus_per_worker or 1
    _refuse_impossible(workers, cpus, gpus_per_worker, cluster)
    fit = cluster.slots(cpus, gpus_per_worker) // workers
    if workers > 1 and cluster.controllers is not None:
        fit = min(fit, _controllers(cluster.controllers))
    wanted = min(fit if concurrency is None else concurrency, trials)
    chosen = min(wanted, fit)
    if concurrency is not None and concurrency > trials:
        notes.append(f"concurrency {concurrency} lowered to {trials}: there are no more trials")
    if chosen < wanted:
        what = f"{workers} x {cpus} CPU" + (f" and {workers} x {gpus_per_worker:g} GPU" if gpus_per_worker else "")
        have = f"{cluster.cpus:g} CPU" + (f" and {cluster.gpus:g} GPU" if gpus_per_worker else "")
        notes.append(f"concurrency {wanted} lowered to {chosen}: each trial takes {what}, the cluster has {have}")
    if cluster.controllers is not None:
        coming = f", {cluster.to_come} of which are started when they are needed" if cluster.to_come else ""
        notes.append(f"the cluster has {cluster.cpus:g} CPU and {cluster.gpus:g} GPU on {len(cluster.nodes)} machines{coming}")
    if cpus_per_worker is None:
        while cluster.slots(cpus + 1, gpus_per_worker) // workers >= chosen:
            cpus += 1
    shape = "in the trial's own process" if workers == 1 else f"as {workers} workers"
    notes.append(f"{chosen} trial{'s' if chosen > 1 else ''} at a time, each {shape} of {cpus} CPU and {cpus} threads")
    return ResourcePlan(chosen, workers, cpus, gpus_per_worker, cpus, tuple(notes))


def _controllers(there: float) -> int:
    if there < 1:
        raise ResourceError(
            f"no node of the cluster has the resource {TRIAL_SLOT!r}, on which trials of several workers are watched",
            remedy=f"start Ray on the head with --resources='{{\"{TRIAL_SLOT}\": 1000}}', as cluster/cluster.yaml does; or use "
            "--workers 1",
            asked=1, available=there,
        )
    return int(there)


def _refuse_impossible(workers: int, cpus: int, gpus: float, cluster: ClusterResources) -> None:
    for unit, each, total in (("CPU", float(cpus), cluster.cpus), ("GPU", gpus, cluster.gpus)):
        if workers * each > total + 1e-9:
            raise ResourceError(
                f"a trial needs {workers * each:g} {unit} ({workers} worker{'s' if workers > 1 else ''} x {each:g}), "
                f"cluster has {total:g}",
                remedy=f"lower --workers or --{unit.lower()}s-per-worker, or add machines",
                asked=workers * each, available=total,
            )
    slots = cluster.slots(cpus, gpus)
    if slots < workers:
        largest = max((node.cpus for node in cluster.nodes), default=0.0)
        raise ResourceError(
            f"a trial needs {workers} workers of {cpus} CPU and {gpus:g} GPU, but only {slots} such fit: a worker stays on "
            f"one of the {len(cluster.nodes)} machines, and the largest has {largest:g} CPU",
            remedy="make the workers smaller or fewer", asked=workers, available=slots,
        )


def _shares(total: float, each: float) -> int:
    return int((total + 1e-9) / each)


def _usable_cpus() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text(encoding="ascii").strip().partition(" ")
        if limit.isdigit() and period.isdigit():
            count = min(count, max(1, int(limit) // int(period)))
    return count
