"""Running trials under Ray Tune: a cluster of our own or a given one, the searched trials, and runs named in advance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.tune as ray_tune
from rich.console import Console
from rich.markup import escape

from imf_core.config import Config
from tune.plan import Plan
from tune.records import Ledger, TrialRecord
from tune.resources import ClusterResources, ResourcePlan
from tune.schedule import make_scheduler
from tune.settings import SearchConfig, environment
from tune.study import StudySearch
from tune.tracking import MlflowCallback, Tracker
from tune.trial import TrialSpec, trainable


@contextmanager
def ray_cluster(settings: SearchConfig, resources: ResourcePlan) -> Iterator[None]:
    """Ray for the length of the block: the cluster at `settings.address`, or one of our own with the planned resources.

    The dashboard process runs with worker groups only: Ray Train gives the resources of an early-stopped group back through
    its state API, and without it the next trial would wait for ever. It listens on loopback.
    """
    variables = environment(settings.address)
    arguments: dict[str, Any] = {"address": settings.address}
    if settings.address in (None, "local"):
        arguments = {
            "address": "local", "num_cpus": int(ClusterResources.local().cpus), "include_dashboard": settings.workers > 1,
            "resources": resources.custom_resources,
        }
    ray.init(**arguments, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


class TrialLines(ray_tune.Callback):
    """One line on the terminal for each trial that ends; also readable in a log file.

    Args:
        console: where to print.
        ledger: knows how each trial ended; must come before this callback.
        total: trials of the run.
    """

    def __init__(self, console: Console, ledger: Ledger, total: int) -> None:
        self.console, self.ledger, self.total = console, ledger, total
        self._shown: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a console does not go into Tune's snapshots

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line."""
        self._show()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line."""
        self._show()

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Print those that the end of the search has ended."""
        self._show()

    def _show(self) -> None:
        for record in self.ledger.records:
            if record.trial_id not in self._shown:
                self._shown.add(record.trial_id)
                self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def _line(self, record: TrialRecord) -> str:
        name = str(record.params["run"]) if "run" in record.params else f"trial {record.number}"
        score = f"MRR {record.best_mrr:.4f} in epoch {record.best_epoch}" if record.best_mrr is not None else "no score"
        best = max((item.best_mrr for item in self.ledger.records if item.best_mrr is not None), default=None)
        ahead = f"; best so far {best:.4f}" if best is not None and "run" not in record.params else ""
        why = f" ({record.reason})" if not record.state.usable else ""
        done = f"{len(self._shown)} of {self.total}"
        spent = f"{record.epochs} epoch{'s' if record.epochs != 1 else ''}, {record.seconds:.0f} s"
        return f"  {done}: {name} {record.state} after {spent}: {score}{ahead}{escape(why)}"


def run_search(plan: Plan, search: StudySearch, tracker: Tracker, console: Console) -> list[TrialRecord]:
    """Run the searched trials; returns one record a trial, whatever became of it."""
    settings, max_epochs = plan.settings, plan.base.train.max_epochs
    ledger = Ledger(settings.study_dir, max_epochs, settings.budget_seconds, trials=settings.trials_dir)
    spec = _spec(plan, settings.trials_dir, space=plan.space)
    tuner = _tuner(
        plan, spec, settings.trials_dir,
        [ledger, MlflowCallback(tracker, ledger), TrialLines(console, ledger, settings.trials)],
        search_alg=search, num_samples=settings.trials, time_budget_s=settings.budget_seconds,
        scheduler=make_scheduler(settings.scheduler, max_epochs, plan.grace, settings.reduction_factor),
    )
    tuner.fit()
    search.fail_unfinished()
    return ledger.records


def run_variants(
    plan: Plan, variants: Mapping[str, Config], folder: Path, tracker: Tracker, console: Console
) -> dict[str, tuple[TrialRecord, Path]]:
    """Run whole configurations by name, each to its own end, and keep the best epoch's checkpoint of each.

    Returns:
        record and checkpoint folder (`<folder>/<trial id>/best`) by name; a failed run has no checkpoint there.
    """
    longest = max(config.train.max_epochs for config in variants.values())
    ledger = Ledger(folder, longest, trials=folder)
    spec = _spec(plan, folder, variants={name: config.model_dump() for name, config in variants.items()}, keep=True)
    tuner = _tuner(
        plan, spec, folder, [ledger, MlflowCallback(tracker, ledger), TrialLines(console, ledger, len(variants))],
        param_space={"run": ray_tune.grid_search(list(variants))}, scheduler=make_scheduler("none", longest),
    )
    tuner.fit()
    return {str(record.params["run"]): (record, folder / record.trial_id / "best") for record in ledger.records}


def _spec(plan: Plan, folder: Path, **own: Any) -> TrialSpec:
    return TrialSpec(
        prepared=str(plan.prepared), folder=str(folder), workers=plan.resources.workers,
        threads=plan.resources.threads_per_worker, gpus=plan.resources.gpus_per_worker,
        save_seconds=plan.settings.save_seconds, **own,
    )


def _tuner(
    plan: Plan, spec: TrialSpec, folder: Path, callbacks: list[ray_tune.Callback], *,
    param_space: dict[str, Any] | None = None, **tune: Any,
) -> ray_tune.Tuner:
    return ray_tune.Tuner(
        trainable(spec, plan.resources.trial_bundle),
        param_space=param_space,
        tune_config=ray_tune.TuneConfig(
            max_concurrent_trials=plan.resources.concurrency, reuse_actors=plan.resources.workers == 1,
            trial_dirname_creator=folder_of, **tune,
        ),
        run_config=ray_tune.RunConfig(
            name=folder.name, storage_path=str(folder.parent), callbacks=callbacks, verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=plan.settings.max_failures),
        ),
    )


def folder_of(trial: Any) -> str:
    """A trial's folder is its id."""
    return str(trial.trial_id)
