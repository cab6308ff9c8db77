"""How many trials can run at the same time and what each of them takes; impossible requests are refused."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.errors import ResourceError
from tune.hosts.gpus import visible_gpus, why_unused

TRIAL_SLOT = "trial"  # custom resource: the controller of a trial with several workers takes one of these and no CPU
TRIAL_SLOTS = 100
_MOST_SHARING = 4  # trials on a card: more gain nothing, as each is bound by the launching of kernels on its own CPU
_USED = 0.8  # share of a card's memory that is planned with


@dataclass(frozen=True)
class Node:
    """The resources that Ray may allocate on one machine."""

    cpus: float
    gpus: float = 0.0
    gpu_bytes: int = 0  # memory of the smallest of them; 0 if it is not known


@dataclass(frozen=True)
class ClusterResources:
    """The resources of a cluster by machine, since a worker cannot span two.

    Args:
        nodes: machines, including those that an autoscaler adds on demand.
        controllers: number of trials with several workers that the cluster can control; None: no limit, Ray is our own.
        to_come: number of machines that have not joined yet.
        notes: messages about what there is, or is not.
    """

    nodes: tuple[Node, ...]
    controllers: float | None = None
    to_come: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def local(cls) -> ClusterResources:
        """This machine, with the CPUs that this process may use (affinity and container quota count) and its visible GPUs."""
        cards = visible_gpus()
        names = Counter(f"{card.name} ({card.bytes / 2**30:.0f} GiB)" for card in cards)
        notes = [f"GPU: {', '.join(f'{count} x {name}' for name, count in names.items())}"] if cards else []
        node = Node(float(_usable_cpus()), float(len(cards)), min((card.bytes for card in cards), default=0))
        return cls((node,), notes=(*notes, *filter(None, [why_unused()])))

    @classmethod
    def of_nodes(cls, nodes: Iterable[Mapping[str, Any]]) -> ClusterResources:
        """The living nodes of `ray.nodes()`."""
        alive = [dict(node.get("Resources", {})) for node in nodes if node.get("Alive", True)]
        controllers = sum(float(item.get(TRIAL_SLOT, 0.0)) for item in alive)
        return cls(tuple(Node(float(item.get("CPU", 0.0)), float(item.get("GPU", 0.0))) for item in alive), controllers)

    @property
    def cpus(self) -> float:
        """Total number of CPUs."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Total number of GPUs."""
        return sum(node.gpus for node in self.nodes)

    def slots(self, cpus: float, gpus: float) -> int:
        """Number of workers of this size that fit at the same time."""
        count = 0
        for node in self.nodes:
            fitting = _whole_shares(node.cpus, cpus)
            if gpus >= 1:
                fitting = min(fitting, _whole_shares(node.gpus, gpus))
            elif gpus:  # a fraction stays on one GPU: three workers of 0.4 do not fit on it
                fitting = min(fitting, int(node.gpus) * _whole_shares(1.0, gpus))
            count += fitting
        return count


@dataclass(frozen=True)
class ResourcePlan:
    """The resources that the search requests from Ray.

    Args:
        concurrency: number of concurrent trials.
        workers: processes of each trial.
        cpus_per_worker, gpus_per_worker: resources of each worker; it runs one thread per CPU.
        notes: messages about what was chosen or lowered.
    """

    concurrency: int
    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    notes: tuple[str, ...] = ()

    @property
    def trial_bundle(self) -> dict[str, float]:
        """For `ray_tune.with_resources`: a single worker is the trial itself, several are controlled by it."""
        return {TRIAL_SLOT: 1} if self.workers > 1 else self.worker_bundle

    @property
    def worker_bundle(self) -> dict[str, float]:
        """The resources of one worker."""
        return {"CPU": self.cpus_per_worker, **({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})}

    @property
    def custom_resources(self) -> dict[str, float]:
        """For `ray.init(resources=...)` when Ray is started on this machine."""
        return {TRIAL_SLOT: max(TRIAL_SLOTS, self.concurrency)}


def plan_resources(
    workers: int, cpus_per_worker: int | None, gpus_per_worker: float | None, concurrency: int | None, trials: int,
    cluster: ClusterResources, worker_bytes: int = 0,
) -> ResourcePlan:
    """Fit the request to the cluster.

    Args:
        workers: processes that train one trial, >= 1.
        cpus_per_worker: >= 1; None: divide the CPUs evenly among the concurrent trials.
        gpus_per_worker: 0, a fraction (one worker only) or a whole number; None: see `automatic_gpus`.
        concurrency: maximum number of concurrent trials; None: as many as fit. Never more than `trials`; lowered if it does
            not fit.
        trials: number of trials of the whole search.
        cluster: resources of the cluster.
        worker_bytes: estimated memory of a worker; 0 if it is not known.

    Raises:
        ResourceError: not even one trial fits; with the facts `asked` and `available`.
    """
    notes = list(cluster.notes)
    if gpus_per_worker is None:
        gpus_per_worker = automatic_gpus(workers, min(concurrency or trials, trials), cluster, worker_bytes)
    if gpus_per_worker % 1 and (workers > 1 or gpus_per_worker > 1):
        raise ResourceError(
            f"{workers} workers with {gpus_per_worker:g} GPU each: only a trial with one worker can share a GPU",
            remedy="give each worker whole GPUs, or use --workers 1", asked=gpus_per_worker, available=cluster.gpus,
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
        each = f"{workers} x {cpus} CPU" + (f" and {workers} x {gpus_per_worker:g} GPU" if gpus_per_worker else "")
        total = f"{cluster.cpus:g} CPU" + (f" and {cluster.gpus:g} GPU" if gpus_per_worker else "")
        notes.append(f"concurrency {wanted} lowered to {chosen}: each trial takes {each}, the cluster has {total}")
    if cluster.controllers is not None:
        coming = f", {cluster.to_come} of them started on demand" if cluster.to_come else ""
        notes.append(f"the cluster has {cluster.cpus:g} CPU and {cluster.gpus:g} GPU on {len(cluster.nodes)} machines{coming}")
    if cpus_per_worker is None:
        while cluster.slots(cpus + 1, gpus_per_worker) // workers >= chosen:
            cpus += 1
    shape = "in the trial's own process" if workers == 1 else f"as {workers} workers"
    gpu = f", {gpus_per_worker:.3g} GPU" if gpus_per_worker else ""
    notes.append(f"{chosen} trial{'s' if chosen > 1 else ''} at a time, each {shape} of {cpus} CPU{gpu} and {cpus} threads")
    return ResourcePlan(chosen, workers, cpus, gpus_per_worker, tuple(notes))


def automatic_gpus(workers: int, trials: int, cluster: ClusterResources, worker_bytes: int) -> float:
    """GPUs of each worker where nobody says: all cards are used, and shared by several trials where that keeps them busy.

    A worker of several has a card of its own. A trial in its own process gets a fraction if there are more trials at a time
    than cards, and as many fit into the memory of the smallest card.

    Args:
        workers: processes of a trial.
        trials: at most so many at a time.
        cluster: resources of the cluster.
        worker_bytes: estimated memory of a worker; 0 if it is not known: then no card is shared.

    Returns:
        0 without GPUs; 1; or 1/2, 1/3, 1/4.
    """
    if not cluster.gpus:
        return 0.0
    smallest = min(node.gpu_bytes for node in cluster.nodes if node.gpus)
    if workers > 1 or not smallest or not worker_bytes:
        return 1.0
    fitting = int(_USED * smallest / worker_bytes)
    needed = math.ceil(min(trials, cluster.cpus) / cluster.gpus)
    return 1.0 / max(1, min(_MOST_SHARING, fitting, needed))


def _controllers(available: float) -> int:
    if available < 1:
        raise ResourceError(
            f"no node of the cluster has the resource {TRIAL_SLOT!r}, which controls trials with several workers",
            remedy=f"start Ray on the head with --resources='{{\"{TRIAL_SLOT}\": 1000}}', as cluster/cluster.yaml does; or use "
            "--workers 1",
            asked=1, available=available,
        )
    return int(available)


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
            f"a trial needs {workers} workers of {cpus} CPU and {gpus:g} GPU, but only {slots} fit: a worker stays on one of "
            f"the {len(cluster.nodes)} machines, and the largest has {largest:g} CPU",
            remedy="use smaller or fewer workers", asked=workers, available=slots,
        )


def _whole_shares(total: float, each: float) -> int:
    return int((total + 1e-9) / each)


def _usable_cpus() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, _, period = quota.read_text(encoding="ascii").strip().partition(" ")
        if limit.isdigit() and period.isdigit():
            count = min(count, max(1, int(limit) // int(period)))
    return count
