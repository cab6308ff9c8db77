"""Running trials under Ray Tune: a cluster of our own or a given one, the searched trials, and runs named in advance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.tune as ray_tune
from rich.console import Console

from imf_core.config_base import Settings
from imf_core.errors import ImfError, ResourceError
from imf_core.study_reader import TRIALS_FILE
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.budget import Deadline, Reserve
from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.runs.reuse import take_over
from tune.runs.terminal import LiveTable, TrialLines
from tune.sources import code_digest
from tune.study.journal import Journal
from tune.study.outcome import TrialState, name_of
from tune.study.records import TrialRecord, load_records
from tune.study.schedule import FiniteAsha, make_scheduler
from tune.study.searcher import StudySearch
from tune.tracking.tracker import Tracker
from tune.trial.trial import TrialSpec, trainable


class SearchInterrupted(ImfError):
    """The search was ended (Ctrl-C) before its trials; it can go on. Facts: ended, trials."""


def run_search(
    plan: Plan, study: OpenStudy, search: StudySearch, tracker: Tracker, console: Console, *, finals: int = 0
) -> list[TrialRecord]:
    """Run the searched trials that the study still lacks; returns one record a trial, whatever became of it.

    Args:
        finals: runs of finalising, for which time is left of the budget; 0: it is not finalised.

    Raises:
        SearchInterrupted: it was ended from outside.
        ImfError: the journal cannot be written, or Ray has ended.
    """
    settings, max_epochs, history = plan.settings, plan.base.train.max_epochs, study.history
    earlier = load_records(settings.study_dir) if (settings.study_dir / TRIALS_FILE).exists() else ()
    ledger = Ledger(
        settings.study_dir, max_epochs, study.seconds_left, earlier, settings.trials_dir, history, study.journal,
        settings.keep, _reserve(plan, study, finals),
    )
    tracker.settle(ledger.records)
    missing = study.trials - len(ledger.records)
    if missing > 0 and study.seconds_left != 0.0:
        scheduler = make_scheduler(settings.scheduler, max_epochs, settings.grace_epochs, settings.reduction_factor)
        if isinstance(scheduler, FiniteAsha):
            scheduler.replay(history)
        spec = _spec(
            plan, settings.trials_dir, space=plan.space, keep=settings.keep > 0, scores=True,
            latency="latency" in settings.costs,
        )
        live = LiveTable(console, ledger, study.trials, _needs(plan))
        tuner = _tuner(
            plan, spec, settings.trials_dir,
            [
                ledger, MlflowCallback(tracker, ledger, settings.track_seconds, history.trials),
                TrialLines(console, ledger, study.trials), live,
            ], Deadline(ledger),
            search_alg=search, num_samples=missing, scheduler=scheduler,
        )
        with live:
            _fit(tuner, study.journal)
        over = ledger.over or search.exhausted
        if not over and (search.open or len(ledger.records) < study.trials):
            raise SearchInterrupted(
                f"the search was ended with {sum(record.state is not TrialState.STOPPED for record in ledger.records)} of "
                f"{study.trials} trials at their end; nothing is lost",
                remedy=f"go on with: {settings.resume_command}",
            )
    search.end_unfinished()
    return ledger.end([])


def run_variants(
    plan: Plan, study: OpenStudy, variants: Mapping[str, Settings], folder: Path, tracker: Tracker, console: Console,
    taken: Mapping[str, TrialRecord] | None = None,
) -> dict[str, tuple[TrialRecord, Path]]:
    """Run whole configurations by name, each to its own end, and keep the best epoch's checkpoint of each.

    Those that an earlier session has run are not run again.

    Args:
        taken: searched trials with the very settings of the run of that name; they are not run again either.

    Returns:
        record and checkpoint folder (`<folder>/<name>/best`) by name; a failed run has no checkpoint there.

    Raises:
        SearchInterrupted: it was ended from outside.
    """
    longest = max(config.train.max_epochs for config in variants.values())
    earlier = load_records(folder) if (folder / TRIALS_FILE).exists() else []
    done = [record for record in earlier if _kept(record, folder) and record.trial_id in variants]
    tracker.settle(done)
    ledger = Ledger(folder, longest, records=done, trials=folder)
    follow = MlflowCallback(tracker, ledger, plan.settings.track_seconds)
    for name in take_over(taken or {}, plan.settings.trials_dir, folder, study, ledger, follow):
        console.print(f"  {name}: the trial itself is taken over", highlight=False)
    there = {record.trial_id for record in ledger.records}
    left = [name for name in variants if name not in there]
    if left:
        spec = _spec(plan, folder, variants={name: config.model_dump() for name, config in variants.items()}, keep=True)
        live = LiveTable(console, ledger, len(variants), _needs(plan))
        tuner = _tuner(
            plan, spec, folder,
            [ledger, follow, TrialLines(console, ledger, len(variants)), live],
            param_space={"run": ray_tune.grid_search(left)}, scheduler=make_scheduler("none", longest),
        )
        with live:
            _fit(tuner, study.journal)
        if any(record.state is TrialState.STOPPED for record in ledger.records) or len(ledger.records) < len(variants):
            raise SearchInterrupted(
                "finalising was ended before its runs; nothing is lost", remedy=f"go on with: {plan.settings.resume_command}",
            )
    return {record.trial_id: (record, folder / record.trial_id / "best") for record in ledger.records}


def _kept(record: TrialRecord, folder: Path) -> bool:
    usable = record.state.usable and record.state is not TrialState.STOPPED
    return usable and (folder / record.trial_id / "best").is_dir()


def _fit(tuner: ray_tune.Tuner, journal: Journal) -> None:
    """Run Tune to its end.

    Raises:
        ImfError: the journal could not be written, or Ray is gone; instead of Ray's own traceback of it.
    """
    try:
        tuner.fit()
    except (ray_tune.TuneError, ray.exceptions.RayError, ConnectionError) as error:
        if journal.failure is not None:
            raise journal.failure from error
        gist = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ResourceError(
            f"Ray has ended the search: {gist}", remedy="run the same command again: it goes on from the last epoch"
        ) from error
    if journal.failure is not None:
        raise journal.failure


def _needs(plan: Plan) -> dict[str, float]:
    """CPUs and GPUs that a trial and its workers take together."""
    return {name: plan.resources.workers * amount for name, amount in plan.resources.worker_bundle.items()}


def _reserve(plan: Plan, study: OpenStudy, finals: int) -> Reserve | None:
    """What finalising takes of the time budget; None where there is none."""
    if study.seconds_left is None or not finals:
        return None
    return Reserve(
        finals, plan.resources.concurrency, plan.base.train.max_epochs,
        plan.settings.budget_seconds or study.seconds_left, plan.settings.trials_dir,
    )


def _spec(plan: Plan, folder: Path, **own: Any) -> TrialSpec:
    return TrialSpec(
        prepared=str(plan.prepared), folder=str(folder), workers=plan.resources.workers,
        threads=plan.resources.cpus_per_worker, gpus=plan.resources.gpus_per_worker,
        save_seconds=plan.settings.save_seconds, code=code_digest(), interface=plan.interface, task=plan.task, **own,
    )


def _tuner(
    plan: Plan, spec: TrialSpec, folder: Path, callbacks: list[ray_tune.Callback],
    stop: ray_tune.Stopper | None = None, *, param_space: dict[str, Any] | None = None, **tune: Any,
) -> ray_tune.Tuner:
    return ray_tune.Tuner(
        trainable(spec, plan.resources.trial_bundle),
        param_space=param_space,
        tune_config=ray_tune.TuneConfig(
            max_concurrent_trials=plan.resources.concurrency, reuse_actors=plan.resources.workers == 1,
            trial_dirname_creator=folder_of, **tune,
        ),
        run_config=ray_tune.RunConfig(
            name=folder.name, storage_path=str(folder.parent), callbacks=callbacks, stop=stop, verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=plan.settings.max_failures),
        ),
    )


def folder_of(trial: Any) -> str:
    """A trial's folder is its name."""
    return name_of(trial)
