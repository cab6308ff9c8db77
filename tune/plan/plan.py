"""The plan of a search: data, space, resources and memory. Every problem that can be foreseen is reported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.config_base import Settings
from imf_core.data.audit.report import Audit
from imf_core.parts.registry import Part, named
from imf_core.parts.sections import choosers, mentioned_parts
from imf_core.tasks.protocols import StudyData
from imf_core.tasks.registry import task_named
from imf_core.tasks.task import AnyTask
from imf_core.train.estimate import MemoryEstimate
from tune.hosts.resources import ClusterResources, ResourcePlan, plan_resources
from tune.plan.disk import DiskEstimate, disk_estimate
from tune.settings import RACE, SearchConfig
from tune.space.space import SearchSpace
from tune.space.start_points import start_points
from tune.study.race import MOST_PAUSED, REDUCTION, Race, rungs_of
from tune.study.sampler import STARTUP
from tune.study.schedule import default_grace


@dataclass(frozen=True)
class Plan:
    """A search that is ready to run.

    Args:
        settings: of the search.
        base: settings of a trial before any is searched.
        data: what the trials train on, without test examples.
        audit: findings about the data, with the baseline on validation.
        branches: the model's branches.
        space: the search space.
        resources: number of concurrent trials and the resources of each.
        memory: peak memory of one worker.
        cluster: what the resources were taken from.
        interface: network interface of trials whose workers span nodes; None: determined by host name.
        without: graphs whose start points are left out, so that a benchmark on them is fair.
        portfolio: settings that are tried instead of the shipped start points; None: those.
    """

    settings: SearchConfig
    base: Settings
    data: StudyData
    audit: Audit
    branches: tuple[str, ...]
    space: SearchSpace
    resources: ResourcePlan
    memory: MemoryEstimate
    cluster: ClusterResources
    interface: str | None = None
    without: tuple[str, ...] = ()
    portfolio: tuple[dict[str, Any], ...] | None = None

    @property
    def task(self) -> AnyTask:
        """The task that is trained."""
        return task_named(self.settings.task)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of one's own that a trial may use: of the base, of the choices of the space, and the task."""
        found = mentioned_parts(self.base)
        for section, marks in choosers(type(self.base)).items():
            for name, mark in marks.items():
                searched = [parameter for parameter in self.space.parameters if parameter.name == f"{section}.{name}"]
                found += [part for one in searched for choice in one.choices if (part := mark.own(choice)) is not None]
        found += [part for part in [named("task", self.settings.task)] if part.own]
        return tuple({(part.kind, part.name): part for part in found}.values())

    @property
    def disk(self) -> DiskEstimate:
        """Peak disk usage of the study."""
        settings, race = self.settings, self.race
        return disk_estimate(
            self.data, self.task.score_cache_bytes(self.data), self.memory, self.resources.concurrency, settings.seeds,
            settings.trials, settings.keep, settings.storage, min(race.most_paused, settings.trials) if race is not None else 0,
        )

    @property
    def prepared(self) -> Path:
        """Folder of the prepared data, which holds no test examples."""
        return self.settings.study_dir / "data"

    @property
    def start_points(self) -> list[dict[str, Any]]:
        """Points from earlier searches that are tried after the base; none unless `--first shipped`."""
        if self.settings.first != "shipped":
            return []
        if self.portfolio is not None:
            return [self.space.near(values) for values in self.portfolio]
        return start_points(self.space, self.settings.task, self.without)

    @property
    def startup(self) -> int:
        """Number of random draws before TPE models the results; half as many if good points are tried first."""
        return STARTUP // 2 if self.start_points or self.settings.warm_start else STARTUP

    @property
    def grace(self) -> int:
        """Epochs before a trial is judged first, unless ASHA lowers them after the study's learning curves."""
        if (race := self.race) is not None:
            return race.rungs[0]
        return self.settings.grace_epochs or default_grace(self.base.train.max_epochs)

    @property
    def race(self) -> Race | None:
        """What lets trials go on, where `--scheduler race` does; it depends on the epochs that a time budget leaves."""
        settings, train = self.settings, self.base.train
        if settings.scheduler != RACE:
            return None
        rungs = rungs_of(train.max_epochs, settings.grace_epochs, eval_every=getattr(train, "eval_every", 1))
        return Race(rungs, settings.reduction_factor or REDUCTION, max(MOST_PAUSED, 2 * self.resources.concurrency))


def make_plan(settings: SearchConfig, cluster: ClusterResources) -> Plan:
    """Read the data, build the space, fit the request to the cluster.

    Raises:
        ImfError: invalid settings or data, or resources that the cluster does not have.
    """
    task, base = task_named(settings.task), settings.base_config()
    data, audit = task.read(base, strict=settings.strict)
    branches = task.branches(base, data)
    if isinstance(settings.space, dict):
        space = SearchSpace.from_values(settings.space, base, branches, settings.overrides)
    elif settings.space is not None:
        space = SearchSpace.load(settings.space, base, branches, settings.overrides)
    else:
        space = SearchSpace.default(base, branches, settings.overrides)
    memory = task.estimate(space.base, data, settings.workers)
    resources = plan_resources(
        settings.workers, settings.cpus_per_worker, settings.requested_gpus, settings.concurrency, settings.trials, cluster,
        memory.total,
    )
    return Plan(settings, space.base, data, audit, branches, space, resources, memory, cluster)
