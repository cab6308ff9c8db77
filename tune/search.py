"""The search, from the command line to the report. Run it as `python tune/search.py`, or by `ray submit`."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: sys.path[0] is this folder; the repository root (if this is one) belongs there instead
    _root = Path(__file__).resolve().parents[1]
    if (_root / "imf_core").is_dir():
        sys.path[0] = str(_root)

import shlex
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from imf_core.config import parse_overrides
from imf_core.errors import ImfError
from tune.settings import SearchConfig, environment

environment()  # before anything imports ray

from tune.finalise import Final, finalise
from tune.plan import Plan, make_plan, show_plan, show_space, write_prepared
from tune.records import TrialRecord, winner
from tune.report import StudyResult, closing_table, plots, write_leaderboard, write_summary
from tune.resources import ClusterResources
from tune.runner import ray_cluster, run_search
from tune.study import StudySearch, export_study, load_points, sampler_settings
from tune.tracking import Tracker

EXIT_NO_RESULT = 3


def search(settings: SearchConfig, console: Console) -> int:
    """plan -> study -> run -> finalise -> report; returns the exit status."""
    started = time.monotonic()
    plan = make_plan(settings, ClusterResources.local())
    if settings.show_space:
        show_space(console, plan.space)
        return 0
    show_plan(console, plan)
    if settings.dry_run:
        show_space(console, plan.space)
        return 0
    write_prepared(plan)
    points = load_points(settings.warm_start, plan.space) if settings.warm_start else []
    study = StudySearch(plan.space, seed=settings.seed, points=points, name=settings.study)
    tracker = open_tracker(plan)
    status = "FAILED"
    try:
        with ray_cluster(settings, plan.resources):
            records = run_search(plan, study, tracker, console)
            best = winner(records)
            final = finalise(plan, best, tracker, console) if best is not None else None
        export_study(study, settings.study_dir / "optuna.db", {record.trial_id: record.state for record in records})
        report(plan, records, final, tracker, time.monotonic() - started, console)
        status = "FINISHED" if final is not None else "FAILED"
    finally:
        tracker.finish(status)
    return 0 if final is not None else EXIT_NO_RESULT


def open_tracker(plan: Plan) -> Tracker:
    """The study's runs in MLflow, made before any trial."""
    settings = plan.settings
    described = {
        **settings.model_dump(mode="json", exclude={"overrides", "dry_run", "show_space"}), **plan.base.flat(),
        **{f"sampler.{key}": value for key, value in sampler_settings(settings.seed, concurrency=plan.resources.concurrency).items()},
        "data_fingerprint": plan.data.graph.fingerprint, "space_fingerprint": plan.space.fingerprint,
    }
    return Tracker.open(settings.tracking_uri, "imf-search", settings.storage / "mlartifacts", settings.study, described)


def report(plan: Plan, records: list[TrialRecord], final: Final | None, tracker: Tracker, seconds: float, console: Console) -> None:
    """Leaderboard, plots, summary, MLflow, closing table."""
    settings = plan.settings
    result = StudyResult(
        study=settings.study, folder=settings.study_dir, data=settings.data, data_fingerprint=plan.data.graph.fingerprint,
        records=tuple(records), wall_seconds=seconds, command=shlex.join(["python", *sys.argv]), tracking_uri=settings.tracking_uri,
        **({} if final is None else {
            "structure_only_mrr": final.structure_only, "test_runs": final.test, "seeds": final.seeds, "checkpoint": final.checkpoint,
            "example": final.example,
        }),
    )
    write_leaderboard(records, settings.study_dir)
    plots(records, settings.study_dir)
    write_summary(result)
    for name in ("leaderboard.csv", "leaderboard.md", "summary.json", "history.png", "curves.png"):
        if (settings.study_dir / name).exists():
            tracker.log_artifact(settings.study_dir / name)
    if final is not None:
        tracker.register_model(final.checkpoint, settings.study)
    closing_table(console, result)


GROUP_WHAT, GROUP_HOW, GROUP_WHERE = "What to search", "How to search", "Where to run and keep it"


def command(
    data: Annotated[str | None, typer.Option(help="Graph folder, or the bundled data set `unicode`.", rich_help_panel=GROUP_WHAT)] = None,
    space: Annotated[Path | None, typer.Option(help="YAML file of the search space.", rich_help_panel=GROUP_WHAT)] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Fix a setting: train.lr=0.001. Repeatable.", rich_help_panel=GROUP_WHAT)] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of the settings that are not searched.", rich_help_panel=GROUP_WHAT)] = None,
    preset: Annotated[str | None, typer.Option(help="Base settings: paper or published.", rich_help_panel=GROUP_WHAT)] = None,
    warm_start: Annotated[Path | None, typer.Option(help="Folder of an earlier study: its best points first.", rich_help_panel=GROUP_WHAT)] = None,
    trials: Annotated[int, typer.Option(help="Settings to try.", rich_help_panel=GROUP_HOW)] = 12,
    budget: Annotated[str | None, typer.Option(help="Wall time of the trials: 90s, 20m, 1h30m.", rich_help_panel=GROUP_HOW)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampler and the trials.", rich_help_panel=GROUP_HOW)] = 0,
    seeds: Annotated[int, typer.Option(help="Repeats of the winner before test is opened.", rich_help_panel=GROUP_HOW)] = 3,
    scheduler: Annotated[str, typer.Option(help="asha stops weak trials early; none.", rich_help_panel=GROUP_HOW)] = "asha",
    grace: Annotated[int | None, typer.Option(help="Epochs before a trial may be stopped.", rich_help_panel=GROUP_HOW)] = None,
    reduction: Annotated[float, typer.Option(help="One in so many trials passes each rung.", rich_help_panel=GROUP_HOW)] = 3.0,
    workers: Annotated[int, typer.Option(help="Processes that train one trial together (DDP).", rich_help_panel=GROUP_WHERE)] = 1,
    cpus_per_worker: Annotated[int | None, typer.Option(help="CPUs of each worker.", rich_help_panel=GROUP_WHERE)] = None,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs of each worker.", rich_help_panel=GROUP_WHERE)] = 0.0,
    concurrency: Annotated[int | None, typer.Option(help="Trials at a time; default: as many as fit.", rich_help_panel=GROUP_WHERE)] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study.", rich_help_panel=GROUP_WHERE)] = None,
    storage: Annotated[Path | None, typer.Option(help="Folder of the studies.", rich_help_panel=GROUP_WHERE)] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow store.", rich_help_panel=GROUP_WHERE)] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join: auto or host:port.", rich_help_panel=GROUP_WHERE)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    show_space: Annotated[bool, typer.Option("--show-space", help="Print every parameter that can be tuned and stop.")] = False,
) -> None:
    """Search hyperparameters of a multimodal link predictor. Without options it searches the bundled data.

    Example: python tune/search.py --data mygraph --trials 20 --budget 30m --set model.dim=128
    """
    given = {
        "data": data, "space": space, "overrides": parse_overrides(settings or []), "config": config, "preset": preset,
        "warm_start": warm_start, "trials": trials, "budget_seconds": budget, "seed": seed, "seeds": seeds, "scheduler": scheduler,
        "grace_epochs": grace, "reduction_factor": reduction, "workers": workers, "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker, "concurrency": concurrency, "study": study, "storage": storage,
        "tracking_uri": tracking_uri, "address": address, "dry_run": dry_run, "show_space": show_space,
    }
    raise typer.Exit(search(SearchConfig.build(given), Console()))


def main() -> None:
    """Entry point: errors of the user's making are shown without a traceback, exit status 2."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app()
    except ImfError as error:
        Console(stderr=True).print(f"[bold red]Error[/] {type(error).__name__}:", escape(str(error)), highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
