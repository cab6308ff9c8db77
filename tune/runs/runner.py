"""Running trials under Ray Tune: those of a search, and runs named in advance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune as ray_tune
from pyarrow.fs import LocalFileSystem
from rich.console import Console

from imf_core.config_base import Settings
from imf_core.errors import ImfError, ResourceError
from tune.budget.deadline import Deadline
from tune.plan.opening import OpenStudy
from tune.plan.plan import Plan
from tune.runs.interrupts import Interrupts
from tune.runs.ledger import Ledger
from tune.runs.mlflow_callback import MlflowCallback
from tune.runs.reuse import continue_stopped, reuse_trials
from tune.runs.terminal import LiveTable, TrialLines
from tune.runs.trial_folders import TrialFolders
from tune.runs.wandb_callback import wandb_callbacks
from tune.runs.within_budget import reserve_of
from tune.settings import RACE
from tune.sources import code_digest
from tune.study.history import History
from tune.study.journal import Journal
from tune.study.outcome import TrialState, name_of
from tune.study.race_search import RaceSearch
from tune.study.records import TrialRecord, TrialsFile
from tune.study.schedule import ASHA_REDUCTION, FiniteFifo, make_scheduler
from tune.study.searcher import NamedRuns, RecordingSearcher, StudySearch
from tune.tracking.tracker import Tracker
from tune.trial.trial import TrialSpec, trainable


class SearchInterrupted(ImfError):
    """The search was ended (Ctrl-C) before its trials; it can go on. Facts: ended, trials."""


def run_search(
    plan: Plan, study: OpenStudy, search: StudySearch, tracker: Tracker, console: Console, interrupts: Interrupts, *,
    finalises: bool = True,
) -> list[TrialRecord]:
    """Run the searched trials that the study still lacks; returns one record a trial, whatever became of it.

    Args:
        interrupts: may end it.
        finalises: the winner is finalised afterwards, for which time is left of the budget.

    Raises:
        SearchInterrupted: it was ended from outside.
        ImfError: the journal cannot be written, or Ray has ended.
    """
    settings, max_epochs, journal = plan.settings, plan.base.train.max_epochs, study.journal
    deadline = Deadline(
        study.remaining(), reserve := reserve_of(plan, study) if finalises else None,
        has_result=lambda: any(trial.value is not None for trial in journal.trials.values()),
    )
    ledger = Ledger(
        settings.study_dir, journal, max_epochs, TrialFolders(settings.trials_dir, settings.keep), deadline,
        TrialsFile(settings.study_dir).read(),
    )
    callback = MlflowCallback(tracker, ledger, settings.track_seconds)
    callback.settle()
    missing = study.trials - len(ledger.records)
    search.left = max(0, missing)
    if isinstance(search, RaceSearch) and plan.race is not None:
        search.race = plan.race  # the budget may have shortened the trials
    if missing > 0 and study.seconds_left != 0.0 and not search.idle:
        spec = _spec(
            plan, settings.trials_dir, space=plan.space, keep=settings.keep > 0, scores=True,
            latency="latency" in settings.costs,
        )
        if reserve is not None and reserve.pace is not None:
            one_epoch = reserve.pace.run(1)
            search.too_late = lambda: bool(journal.trials) and (deadline.seconds_left or 0.0) < one_epoch
        kind = "none" if settings.scheduler == RACE else settings.scheduler
        reduction = settings.reduction_factor or ASHA_REDUCTION
        scheduler = make_scheduler(kind, max_epochs, settings.grace_epochs, reduction, journal)
        with interrupts.end(deadline, finishes=True):
            _run(plan, spec, search, scheduler, callback, journal, console, missing)
        over = not deadline.stopping and (deadline.over or search.exhausted or search.closed)
        if not over and (search.open or not search.idle or len(ledger.records) < study.trials):
            raise SearchInterrupted(
                f"the search was ended with {sum(record.state is not TrialState.STOPPED for record in ledger.records)} of "
                f"{study.trials} trials at their end; nothing is lost",
                remedy=f"go on with: {settings.resume_command}",
            )
    search.end_unfinished()
    records = ledger.end([])
    if search.exhausted:
        every = "all" if search.settings is None else f"{len(search.settings):,} of {len(search.settings):,}"
        console.print(f"{every} settings of the space were tried ({study.trials} trials asked)", highlight=False)
    elif len(records) < study.trials:
        why = "the search was ended" if deadline.finishing else "the budget was over"
        never = f"{study.trials - len(records)} of {study.trials} trials never began: {why}"
        console.print(f"[yellow]{never}[/]", highlight=False)
    return records


def run_variants(
    plan: Plan, study: OpenStudy, variants: Mapping[str, Settings], folder: Path, tracker: Tracker, console: Console,
    interrupts: Interrupts, *, winners: Mapping[str, TrialRecord] | None = None, seconds: float | None = None,
) -> dict[str, tuple[TrialRecord, Path]]:
    """Run whole configurations by name, each to its own end, and keep the best epoch's checkpoint of each.

    Those that an earlier session has run are not run again.

    Args:
        winners: searched trials with the very settings of the run of that name; they are not run again either, or go on
            from where the time budget had ended them.
        seconds: after which the runs are ended, and those that are not done left out; None: no limit.

    Returns:
        record and checkpoint folder (`<folder>/<name>/best`) by name; a failed run has no checkpoint there.

    Raises:
        SearchInterrupted: it was ended from outside.
    """
    numbers = {name: number for number, name in enumerate(variants)}
    max_epochs = max(config.train.max_epochs for config in variants.values())
    done = [
        replace(record, number=numbers[record.trial_id])  # a duel ran others, in another order
        for record in TrialsFile(folder).read() if record.trial_id in variants and _is_done(record, folder)
    ]
    deadline = Deadline(seconds)
    ledger = Ledger(folder, History(), max_epochs, TrialFolders(folder), deadline, records=done)
    callback = MlflowCallback(tracker, ledger, plan.settings.track_seconds)
    callback.settle()
    for name in reuse_trials(winners or {}, numbers, study.journal, plan.settings.trials_dir, ledger, callback):
        console.print(f"  {name}: the winning trial is reused", highlight=False)
    for name in continue_stopped(winners or {}, plan.settings.trials_dir, folder):
        console.print(f"  {name}: the winning trial goes on", highlight=False)
    recorded = {record.trial_id for record in ledger.records}
    left = {name: number for name, number in numbers.items() if name not in recorded}
    if left:
        spec = _spec(plan, folder, variants={name: config.model_dump() for name, config in variants.items()}, keep=True)
        runs, scheduler = NamedRuns(ledger.history, left), make_scheduler("none", max_epochs)
        with interrupts.end(deadline, finishes=False):
            _run(plan, spec, runs, scheduler, callback, study.journal, console, len(left))
        ended = not deadline.stopping and deadline.over
        if not ended and (
            any(record.state is TrialState.STOPPED for record in ledger.records) or len(ledger.records) < len(variants)
        ):
            raise SearchInterrupted(
                "finalising was ended before its runs; nothing is lost", remedy=f"go on with: {plan.settings.resume_command}",
            )
    return {
        record.trial_id: (record, folder / record.trial_id / "best") for record in ledger.records
        if record.state is not TrialState.STOPPED
    }


def _is_done(record: TrialRecord, folder: Path) -> bool:
    usable = record.state.usable and record.state is not TrialState.STOPPED
    return usable and (folder / record.trial_id / "best").is_dir()


def _run(
    plan: Plan, spec: TrialSpec, searcher: RecordingSearcher, scheduler: FiniteFifo, callback: MlflowCallback, journal: Journal,
    console: Console, missing: int,
) -> None:
    """Run Ray Tune to its end.

    Args:
        callback: with the ledger of the trials.
        journal: of the study.
        missing: trials to run.

    Raises:
        ImfError: the journal could not be written, or Ray is gone; instead of Ray's own traceback of it.
    """
    ledger, resources = callback.ledger, plan.resources
    searcher.left = missing
    folder, total = ledger.folders.path, len(ledger.records) + missing
    needs, others = _needs(plan), wandb_callbacks(plan.settings, journal)
    live = LiveTable(
        console, ledger, total, needs, finals=isinstance(searcher, NamedRuns), shared=plan.settings.joins
    )
    tuner = ray_tune.Tuner(
        trainable(spec, resources.trial_bundle),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher, num_samples=-1, scheduler=scheduler, max_concurrent_trials=resources.concurrency,
            reuse_actors=resources.workers == 1, trial_dirname_creator=name_of, trial_name_creator=name_of,
        ),
        run_config=ray_tune.RunConfig(
            name=folder.name, storage_path=str(folder.parent), verbose=0, stop=ledger.deadline,
            storage_filesystem=LocalFileSystem(),  # else a path with a `?` is taken for a URI
            callbacks=[ledger, callback, TrialLines(console, ledger, total, needs.get("GPU", 0.0)), live, *others],
            failure_config=ray_tune.FailureConfig(max_failures=plan.settings.max_failures),
        ),
    )
    try:
        with live:
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


def _spec(plan: Plan, folder: Path, **own: Any) -> TrialSpec:
    return TrialSpec(
        prepared=str(plan.prepared), folder=str(folder), workers=plan.resources.workers,
        threads=plan.resources.cpus_per_worker, gpus=plan.resources.gpus_per_worker,
        save_seconds=plan.settings.save_seconds, code=code_digest(), interface=plan.interface, task=plan.task,
        parts=tuple(part for part in plan.parts if not part.package), **own,
    )
