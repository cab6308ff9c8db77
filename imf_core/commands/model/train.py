"""`imf train`: train one model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imf_core.checkpoint.checkpoint import Checkpoint, load_checkpoint
from imf_core.commands.model.graph import DataOption
from imf_core.commands.terminal import SIGNALS, terminal
from imf_core.config import Config, preset
from imf_core.config_base import parse_overrides
from imf_core.ensemble.ensemble import Ensemble, open_model
from imf_core.errors import ConfigError
from imf_core.interface.models import RULES, check_teacher, configuration
from imf_core.interface.models import train as train_model
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.train.estimate import estimate_of
from imf_core.train.progress import EpochReport

SetOption = Annotated[list[str] | None, typer.Option("--set", help="A setting, for example train.lr=0.001. Repeatable.")]


def train(
    out: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    data: DataOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML settings; default: those of --preset.")] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", metavar="paper|published", help="Built-in settings; default: paper, or --distil's own.")
    ] = "",
    start: Annotated[Path | None, typer.Option("--from", help="Continue this checkpoint; the graph may have changed.")] = None,
    distil: Annotated[Path | None, typer.Option("--distil", help="Learn from this checkpoint or ensemble too.")] = None,
    preferences: Annotated[str | None, typer.Option(
        "--preferences", metavar="FOLDER|rules", help="Learn which hard negatives a model, or the one-step rules, would prefer."
    )] = None,
    add_modality: Annotated[list[str] | None, typer.Option(
        "--add-modality", help="Add this modality to --from; left out where validation does not gain. Repeatable."
    )] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained and its memory, and stop.")] = False,
    settings: SetOption = None,
) -> None:
    """Train one model; the best validation epoch is kept.

    Example: imf train results/mine --data mygraph --set train.lr=0.002
    """
    console = terminal()
    loaded = load_checkpoint(start) if start is not None else None
    teacher = open_model(distil) if distil is not None else None
    preferred = open_model(preferences) if preferences not in (None, RULES) else preferences
    chosen = _configuration(config, preset_name, loaded, data, settings, teacher)
    # A continued model has its own vectors, so no structure table is needed.
    ready = prepare(chosen.data, chosen.structure if loaded is None else None, progress=True)
    _describe(console, ready)
    memory = estimate_of(chosen, ready)
    console.print(f"  memory: {memory.describe()}")
    if shortage := memory.shortage():
        console.print(f"  warning: {shortage}", style="yellow")
    for other in (teacher, preferred):
        if isinstance(other, Checkpoint | Ensemble):
            check_teacher(other, ready.graph)  # a dry run says so too
    if dry_run:
        return

    def show(report: EpochReport) -> None:
        console.print(
            f"epoch {report.epoch:3d}  loss {report.train_loss:.4f}  validation MRR {report.metrics.mrr:.4f}"
            f"  best {report.best_mrr:.4f}  {report.seconds:.1f} s"
        )

    trained = train_model(
        ready, chosen, start=loaded, teacher=teacher, preferences=preferred, add=add_modality or (), on_epoch=show,
        say=lambda line: console.print(line, soft_wrap=True), progress=True,
    )
    mrr, epoch = trained.metrics["validation"]["mrr"], trained.metrics["best_epoch"]
    told = f"best validation MRR {mrr:.4f} in epoch {epoch} ({trained.ended}); checkpoint: {trained.save(out)}"
    console.print(told, soft_wrap=True)
    if SIGNALS.received is not None:
        console.print(f"go on from its weights with: imf train NEW --from {shlex.quote(str(out))}", soft_wrap=True)


def _configuration(
    config: Path | None, preset_name: str, start: Checkpoint | None, data: str | None, settings: list[str] | None,
    teacher: Checkpoint | Ensemble | None,
) -> Config:
    """The settings: of --from, else of --config or --preset, else of the teacher (--distil), else the default; then --set."""
    if start is not None and config is not None:
        raise ConfigError(
            "--config and --from exclude each other", remedy="--from brings its own settings; change them by --set"
        )
    overrides = parse_overrides(settings or [])
    if data is not None:
        overrides["data.path"] = data
    base = None
    if start is None and (config is not None or preset_name != "" or teacher is None):
        base = Config.load(config) if config is not None else preset(preset_name or "paper")
    return configuration(base, overrides, start, teacher if base is None else None, source="--set")


def _describe(console: Console, data: LinkData) -> None:
    console.print(data.graph.describe())
    for note in data.describe():
        console.print(f"  {note}")
