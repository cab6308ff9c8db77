"""The search, from the command line to the report. Run it as `python tune/search.py`, or by `ray submit`."""

# ruff: noqa: E402 (the path and the environment are set before the imports that depend on them)
from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn


def _find_packages() -> None:
    """Put the source tree first on the path where this file is run by itself: from the tree, or as the copy of `ray submit`.

    A copy in a home folder finds the tree by IMF_HOME, as an installed package, in ~/imf, or in the folder it is run from.
    """
    own = Path(__file__).resolve()
    named, installed = os.environ.get("IMF_HOME"), find_spec("imf_core")
    places = [own.parent.parent, *([Path(named).expanduser()] if named else [])]
    places += [Path(installed.origin).parents[1]] if installed is not None and installed.origin else []
    places += [Path("~/imf").expanduser(), Path.cwd()]
    root = next((place for place in places if (place / "imf_core" / "__init__.py").is_file()), None)
    if root is None:
        _refuse(
            f"{own} does not find the packages imf_core and tune (looked in {', '.join(map(str, places))})",
            "set IMF_HOME to the root of the repository on this machine, or mount it at ~/imf as cluster/cluster.yaml does",
        )
    script = root / "tune" / "search.py"
    if own != script.resolve() and own.read_bytes() != script.read_bytes():
        _refuse(f"{own} is older or newer than the code in {root}", "bring that up to date: ray rsync-up cluster.yaml")
    sys.path[0] = str(root)


def _refuse(problem: str, remedy: str) -> NoReturn:
    print(f"Error: {problem}\n  What to do: {remedy}", file=sys.stderr)
    sys.exit(2)


if not __package__:
    _find_packages()

from rich.console import Console
from rich.markup import escape

from imf_core.errors import ImfError
from imf_core.prepare.link_data import LinkData
from tune.environment import asked_address, environment
from tune.settings import SearchConfig

environment(asked_address(sys.argv))  # before anything imports ray

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.commands.card.card import model_card, read_study
from imf_core.files.atomic import atomic_write_text
from tune import options
from tune.data_check import with_baseline
from tune.hosts.cluster import ray_cluster
from tune.hosts.joining import joined
from tune.hosts.nodes import check_nodes, common_interface
from tune.hosts.resources import ClusterResources
from tune.plan.opening import AUDIT_FILE, OpenStudy, open_study, write_audit
from tune.plan.plan import Plan, make_plan
from tune.plan.show import show_plan, show_space
from tune.report.files import write_leaderboard, write_summary
from tune.report.html import HTML_FILE, write_html
from tune.report.plots import plots, save_picture
from tune.report.result import StudyResult
from tune.report.verdict import closing_table, write_report
from tune.report.winner import relation_counts
from tune.runs.finalise import Final, final_runs, finalise
from tune.runs.runner import SearchInterrupted, run_search
from tune.sources import code_digest
from tune.space.objectives import COSTS
from tune.study.history import History
from tune.study.records import TrialRecord, winner
from tune.study.sampler import export_study, importances, sampler_settings
from tune.study.searcher import StudySearch
from tune.tracking.tracker import Tracker

EXIT_NO_RESULT = 3  # every trial failed or diverged, or the winner could not be retrained
EXIT_INTERRUPTED = 130  # as a shell says of Ctrl-C
CARD_FILE = "model_card.md"
ARTIFACTS = (
    HTML_FILE, "report.md", CARD_FILE, AUDIT_FILE, "leaderboard.csv", "leaderboard.md", "summary.json", "history.png",
    "curves.png",
)


def search(settings: SearchConfig, console: Console) -> int:
    """plan -> study -> run -> finalise -> report, on this machine or on the cluster that is joined; returns the exit status."""
    if not settings.joins:
        return planned(settings, ClusterResources.local(), console)
    with joined(settings, console) as cluster:
        return planned(settings, cluster, console)


def planned(settings: SearchConfig, cluster: ClusterResources, console: Console) -> int:
    """Plan the search for what there is, show it, and run it unless only the plan was asked for."""
    plan = make_plan(settings, cluster)
    if settings.show_space:
        show_space(console, plan.space)
        return 0
    show_plan(console, plan)
    if settings.dry_run:
        show_space(console, plan.space)
        return 0
    with open_study(plan) as study:
        if settings.joins:
            reports = check_nodes(plan.prepared, settings.study_dir, console)
            plan = replace(plan, interface=common_interface(reports) if settings.workers > 1 else None)
        return run(plan, study, console)


def run(plan: Plan, study: OpenStudy, console: Console) -> int:
    """Run what the study still lacks; returns the exit status."""
    settings, search = plan.settings, searcher(plan, study)
    if said := study.describe():
        console.print(escape(said), highlight=False)
    search.replay(study.history)
    tracker = open_tracker(plan, study)
    status = "FAILED"
    try:
        with ray_cluster(settings, plan.resources, study.journal.lost):
            records = run_search(plan, study, search, tracker, console, finals=final_runs(plan))
            final = finalised(plan, study, records, tracker, console)
        export_study(search.study, settings.study_dir / "optuna.db", {record.trial_id: record.state for record in records})
        report(plan, study, search, records, final, tracker, console)
        status = "FINISHED" if final is not None else "FAILED"
    except SearchInterrupted as interruption:
        status = "KILLED"
        console.print(f"[bold yellow]interrupted[/]: {escape(str(interruption))}", highlight=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:  # outside of Tune, or for the second time
        if study.journal.failure is not None:
            raise study.journal.failure from None
        status = "KILLED"
        console.print(f"[bold yellow]interrupted[/]: go on with {escape(settings.resume_command)}", highlight=False)
        return EXIT_INTERRUPTED
    finally:
        tracker.finish(status)
    return 0 if final is not None else EXIT_NO_RESULT


def searcher(plan: Plan, study: OpenStudy) -> StudySearch:
    """What draws the settings of the study's trials: first the base, the points of a warm start, those that are shipped."""
    settings = plan.settings
    return StudySearch(
        plan.space, seed=settings.seed, startup=plan.startup, kind=settings.sampler, base=settings.first != "drawn",
        points=[*study.points, *plan.start_points], known=study.known, name=settings.study,
        journal=study.journal, trials=settings.trials_dir,
        costs=[COSTS[name].metric for name in settings.costs],
    )


def finalised(
    plan: Plan, study: OpenStudy, records: list[TrialRecord], tracker: Tracker, console: Console
) -> Final | None:
    """Finalise the winner; whatever goes wrong there, the trials are reported."""
    best = winner(records)
    if best is None:
        return None
    try:
        return finalise(plan, study, best, tracker, console)
    except SearchInterrupted:
        raise
    except ImfError as error:
        if study.journal.failure is not None:
            raise
        console.print(f"[bold red]finalising failed[/]: {escape(str(error))}", highlight=False)
        return None


def described(plan: Plan) -> dict[str, object]:
    """All settings of a study, flat, with what it is tied to."""
    settings = plan.settings
    sampler = sampler_settings(settings.seed, plan.startup, plan.resources.concurrency, settings.sampler)
    return {
        **settings.model_dump(mode="json", exclude={"overrides", "dry_run", "show_space", "resume", "extend"}),
        **plan.base.flat(),
        **{f"sampler.{key}": value for key, value in sampler.items()},
        "data_fingerprint": plan.data.graph.fingerprint, "space_fingerprint": plan.space.fingerprint,
        "data_problems": len(plan.audit.problems), "code": code_digest(),
    }


def open_tracker(plan: Plan, study: OpenStudy) -> Tracker:
    """The study's runs in MLflow, made before any trial."""
    settings = plan.settings
    return Tracker.open(
        settings.tracking_uri, "imf-search", settings.storage / "mlartifacts", settings.study, described(plan),
        resume=study.resumed,
    )


def report(
    plan: Plan, study: OpenStudy, search: StudySearch, records: list[TrialRecord], final: Final | None, tracker: Tracker,
    console: Console,
) -> None:
    """Leaderboard, plots, summary, page, MLflow, closing table."""
    settings = plan.settings
    audit = plan.audit
    if final is not None and final.test_baseline is not None:
        audit = with_baseline(audit, "test", final.test_baseline)
    result = StudyResult(
        study=settings.study, folder=settings.study_dir, data=settings.data, data_fingerprint=plan.data.graph.fingerprint,
        records=tuple(records), wall_seconds=time_of(study), command=shlex.join(["python", *sys.argv]),
        tracking_uri=settings.tracking_uri, budget_seconds=settings.budget_seconds, settings=described(plan), audit=audit,
        task=settings.task, **(final.for_report() if final is not None else {}),
    )
    write_leaderboard(records, settings.study_dir)
    plots(records, settings.study_dir)
    write_summary(result)
    write_audit(audit, settings.study_dir)
    write_report(result)
    counts = relation_counts(plan.data.graph) if isinstance(plan.data, LinkData) else {}
    write_html(result, space=plan.space.describe(), importance=importances(search.study), relation_counts=counts)
    if final is not None and settings.task == "link":
        card = model_card(load_checkpoint(final.checkpoint), read_study(final.checkpoint))
        atomic_write_text(settings.study_dir / CARD_FILE, card)
    for file in (settings.study_dir / name for name in ARTIFACTS):
        if file.exists():
            tracker.log_artifact(file)
    if final is not None:
        tracker.register_model(final.checkpoint, settings.study)
    closing_table(console, result)
    save_picture(console, settings.study_dir / "terminal.svg", result.command)


def time_of(study: OpenStudy) -> float:
    """Seconds of all sessions of a study, from the beginning of each to its last event; of this one until now."""
    now = {"event": "now", "at": time.time()}
    return History.of([*study.journal.events, now]).seconds()


if __name__ == "__main__":
    options.run(search)
