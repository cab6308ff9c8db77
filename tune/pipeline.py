"""The search from end to end: plan -> study -> run -> finalise -> report."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from imf_core.errors import ConfigError, ImfError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.markdown import escaped
from imf_core.parts.registry import every
from imf_core.tasks.protocols import with_baseline
from tune.hosts.cluster import ray_cluster
from tune.hosts.joining import joined
from tune.hosts.nodes import check_nodes, common_interface
from tune.hosts.resources import ClusterResources
from tune.plan.disk import refuse_unwritable
from tune.plan.opening import AUDIT_FILE, OpenStudy, open_study, write_audit
from tune.plan.plan import Plan, make_plan
from tune.plan.show import show_plan, show_space
from tune.report.files import write_leaderboard, write_summary
from tune.report.html import HTML_FILE, write_html
from tune.report.metrics import description, study_metrics
from tune.report.pictures.plots import plots, save_picture
from tune.report.result import StudyResult
from tune.report.verdict import closing_table, write_report
from tune.runs.final_runs import rival_of
from tune.runs.finalise import Final, finalise
from tune.runs.interrupts import Interrupts
from tune.runs.runner import SearchInterrupted, run_search
from tune.runs.wandb_callback import wandb_callbacks
from tune.runs.within_budget import within_budget
from tune.settings import SearchConfig
from tune.sources import code_digest
from tune.space.objectives import COSTS
from tune.study.history import History
from tune.study.proposals import Proposals
from tune.study.race_search import search_of
from tune.study.records import TrialRecord, winner
from tune.study.sampler import export_study, importances, make_sampler, sampler_settings
from tune.study.searcher import StudySearch
from tune.tracking.registry import DATA, METRIC, SCORE, Registered
from tune.tracking.tracker import Tracker
from tune.uris import without_password

CARD_FILE = "model_card.md"
ARTIFACTS = (
    HTML_FILE, "report.md", CARD_FILE, AUDIT_FILE, "leaderboard.csv", "leaderboard.md", "summary.json", "history.png",
    "curves.png",
)


class Exit(IntEnum):
    """Exit status of the command."""

    DONE = 0
    NO_RESULT = 3  # every trial failed or diverged, or the winner could not be retrained
    HUNG_UP = 129  # 128 and the number of the signal, as in shells: SIGHUP, of a terminal that was closed
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM


@dataclass(frozen=True)
class Session:
    """A session of a study, ended; `tune.Study` reads what it left.

    Args:
        folder: of the study's files.
        exit: how the session ended.
    """

    folder: Path
    exit: Exit = Exit.DONE


def search(settings: SearchConfig, console: Console) -> Session:
    """Search on this machine, or on the Ray cluster named in the settings."""
    if not (settings.show_space or settings.dry_run):
        refuse_unwritable(settings.study_dir)
        wandb_callbacks(settings)  # refuses a missing key before anything is read
    if not settings.joins:
        return planned(settings, ClusterResources.local(), console)
    with joined(settings, console) as cluster:
        return planned(settings, cluster, console)


def planned(settings: SearchConfig, cluster: ClusterResources, console: Console) -> Session:
    """Plan for the available resources, show the plan, and run it, unless the settings ask for the plan only."""
    if settings.show_space:
        import_all(console)
    plan = make_plan(settings, cluster)
    if not settings.show_space:
        show_plan(console, plan)
    if settings.show_space or settings.dry_run:
        show_space(console, plan.space)
        return Session(settings.study_dir)
    with open_study(plan) as study:
        if settings.joins:
            packages = sorted({part.package for part in plan.parts if part.package})
            reports = check_nodes(plan.prepared, settings.study_dir, console, packages)
            plan = replace(plan, interface=common_interface(reports) if settings.workers > 1 else None)
        return run(plan, study, console)


def import_all(console: Console) -> None:
    """Import all parts of one's own, whose settings are shown too; one that fails is named."""
    for kind in ("scorer", "fusion", "regularizer", "loss"):
        for _, part in every(kind):
            if isinstance(part, ConfigError):
                console.print(f"[bold yellow]warning[/]: {escape(part.problem)}", highlight=False)


def run(plan: Plan, study: OpenStudy, console: Console) -> Session:
    """Run the remaining trials, finalise the winner, and report."""
    settings, search = plan.settings, searcher(plan, study)
    if text := study.describe():
        console.print(escape(text), highlight=False)
    tracker = open_tracker(plan, study)
    status, interrupts = "FAILED", Interrupts(console, lambda: study.journal.failure is not None)
    with interrupts:
        try:
            with ray_cluster(settings, plan.cluster, plan.resources, study.journal.lost):
                plan = within_budget(plan, study, console)
                records = run_search(plan, study, search, tracker, console, interrupts)
                final = finalised(plan, study, records, tracker, console, interrupts)
            states = {record.trial_id: record.state for record in records}
            export_study(search.study, settings.study_dir / "optuna.db", states)
            report(plan, study, search, records, final, tracker, console)
            status = "FINISHED" if final is not None else "FAILED"
        except (SearchInterrupted, KeyboardInterrupt) as interruption:
            status, told = "KILLED", str(interruption)
            if not isinstance(interruption, SearchInterrupted):  # outside Ray Tune's loop, or a second Ctrl-C
                if study.journal.failure is not None:
                    raise study.journal.failure from None
                told = f"continue with {settings.resume_command}"
            console.print(f"[bold yellow]interrupted[/]: {escape(told)}", highlight=False, soft_wrap=True)
            return Session(settings.study_dir, Exit(128 + interrupts.signal))
        finally:
            tracker.finish(status)
    return Session(settings.study_dir, Exit.DONE if final is not None else Exit.NO_RESULT)


def searcher(plan: Plan, study: OpenStudy) -> StudySearch:
    """The searcher of the study: it tries the base settings, the warm start and the start points before it samples."""
    settings = plan.settings
    return search_of(
        plan.space, study.journal, plan.race,
        Proposals(plan.space, settings.seed, settings.sampler, plan.startup, study.known),
        sampler=make_sampler(settings.seed, plan.startup, settings.sampler), base=settings.first != "drawn",
        points=[*study.points, *plan.start_points], known=study.known, costs=[COSTS[name].metric for name in settings.costs],
    )


def finalised(
    plan: Plan, study: OpenStudy, records: Sequence[TrialRecord], tracker: Tracker, console: Console, interrupts: Interrupts
) -> Final | None:
    """Finalise the winner; None if there is none or finalising failed, so that the trials are still reported."""
    best = winner(records)
    if best is None:
        return None
    try:
        return finalise(plan, study, best, tracker, console, interrupts, rival_of(best, records))
    except SearchInterrupted:
        raise
    except ImfError as error:
        if study.journal.failure is not None:
            raise
        console.print(f"[bold red]finalising failed[/]: {escape(str(error))}", highlight=False)
        return None


def flat_settings(plan: Plan) -> dict[str, object]:
    """All settings of a study, flat, with the fingerprints of data, space and code."""
    settings = plan.settings
    sampler = sampler_settings(settings.seed, plan.startup, plan.resources.concurrency, settings.sampler)
    return {
        **settings.model_dump(mode="json", exclude={"overrides", "dry_run", "show_space", "resume", "extend"}),
        **plan.base.flat(),
        **{f"sampler.{key}": value for key, value in sampler.items()},
        "data_fingerprint": plan.data.fingerprint, "space_fingerprint": plan.space.fingerprint,
        "data_problems": len(plan.audit.problems), "code": code_digest(),
        "tracking_uri": without_password(settings.tracking_uri),
    }


def open_tracker(plan: Plan, study: OpenStudy) -> Tracker:
    """Open the study's parent run in MLflow, before any trial runs."""
    settings, size = plan.settings, plan.audit.size
    note = escaped(f"Search of {study.trials} trials on {settings.data} ({size}), without results so far.")
    tracker = Tracker.open(
        settings.tracking_uri, "imf-search", settings.storage / "mlartifacts", settings.study, flat_settings(plan),
        {"mlflow.note.content": note}, resume=study.resumed,
    )
    tracker.log_data(settings.data, plan.data.fingerprint, plan.audit.counts or {"size": size})
    return tracker


def report(
    plan: Plan, study: OpenStudy, search: StudySearch, records: Sequence[TrialRecord], final: Final | None, tracker: Tracker,
    console: Console,
) -> StudyResult:
    """Write leaderboard, plots, summary, page and model card, log them to MLflow, and print the closing table."""
    settings, audit, folder = plan.settings, plan.audit, plan.settings.study_dir
    if final is not None and final.test_baseline is not None:
        audit = with_baseline(audit, "test", final.test_baseline)
    command = shlex.join(["python", *sys.argv]) if Path(sys.argv[0]).name == "search.py" else settings.call
    result = StudyResult(
        study=settings.study, folder=folder, data=settings.data, data_fingerprint=plan.data.fingerprint,
        records=tuple(records), wall_seconds=seconds_so_far(study), command=command,
        tracking_uri=without_password(settings.tracking_uri), budget_seconds=settings.budget_seconds,
        settings=flat_settings(plan), audit=audit, task=settings.task, importance=importances(search.study),
        **(final.for_report() if final is not None else {}),
    )
    write_leaderboard(records, folder)
    plots(records, folder)
    write_summary(result)
    write_audit(audit, folder)
    write_report(result)
    write_html(
        result, space=plan.space.describe(), relation_counts=plan.task.training_counts(plan.data),
        examples=plan.task.examples(final.checkpoint, plan.base, plan.data) if final is not None else None,
    )
    if final is not None and (card := plan.task.card(final.checkpoint)) is not None:
        atomic_write_text(folder / CARD_FILE, card)
    for file in (folder / name for name in ARTIFACTS):
        if file.exists():
            tracker.log_artifact(file)
    tracker.log_results(study_metrics(result), description(result))
    if (model := register(result, settings.model_name, tracker)) is not None:
        console.print(escape(model.champion), highlight=False, soft_wrap=True)
    closing_table(console, result)
    save_picture(partial(closing_table, result=result), console.width, folder / "terminal.svg", result.command)
    return result


def register(result: StudyResult, name: str, tracker: Tracker) -> Registered | None:
    """Register the winner's best checkpoint as a version of the data set's model; None without one, or if MLflow failed."""
    if result.checkpoint is None or result.winner is None:
        return None
    scores = {SCORE: result.winner_validation()["mean"], "test_mrr": result.test()["mrr"]["mean"]}
    tags = {METRIC: f"validation MRR, task {result.task}", DATA: result.data_fingerprint, "winner": result.winner.trial_id}
    tags |= {tag: str(value) for tag, value in scores.items() if value is not None}
    return tracker.register_model(result.checkpoint, name, tags)


def seconds_so_far(study: OpenStudy) -> float:
    """Seconds of all sessions of a study: each from its beginning to its last event, the present one until now."""
    now = {"event": "now", "at": time.time()}
    return History.of([*study.journal.events, now]).seconds()
