"""`imf train`: train one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from imf_core.checkpoint.carry_over import carry_over
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, load_checkpoint, load_state, save_checkpoint
from imf_core.commands.model.graph import DataOption
from imf_core.commands.terminal import terminal
from imf_core.config import Config, preset
from imf_core.config_base import parse_overrides
from imf_core.ensemble.ensemble import Ensemble, answers_of, names_of, open_model, strongest
from imf_core.errors import CheckpointError, ConfigError
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model, fit
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be trained and its memory, and stop.")] = False,
    settings: SetOption = None,
) -> None:
    """Train one model; the best validation epoch is kept.

    Example: imf train results/mine --data mygraph --set train.lr=0.002
    """
    console = terminal()
    loaded = load_checkpoint(start) if start is not None else None
    teacher_model = open_model(distil) if distil is not None else None
    chosen = _configuration(config, preset_name, loaded, data, settings, teacher_model)
    # A continued model has its own vectors, so no structure table is needed.
    ready = prepare(chosen.data, chosen.structure if loaded is None else None, progress=True)
    _describe(console, ready)
    memory = estimate_of(chosen, ready)
    console.print(f"  memory: {memory.describe()}")
    if shortage := memory.shortage():
        console.print(f"  warning: {shortage}", style="yellow")
    if teacher_model is not None:
        check_vocabulary(names_of(teacher_model).description, ready.graph.entities, ready.graph.relations, teacher_model.path)
    if dry_run:
        return
    model = build_model(chosen, ready)
    if loaded is not None:
        names = ready.graph.entities.names, ready.graph.relations.names
        if (loaded.entities.names, loaded.relations.names) == names:
            load_state(model, loaded.model.state_dict(), loaded.path)
        else:
            console.print(f"from {loaded.path}: {carry_over(model, loaded, ready).describe()}", soft_wrap=True)
    console.print(f"{model.num_parameters:,} parameters; branches {', '.join(model.branches)}")

    def show(report: EpochReport) -> None:
        console.print(
            f"epoch {report.epoch:3d}  loss {report.train_loss:.4f}  validation MRR {report.metrics.mrr:.4f}"
            f"  best {report.best_mrr:.4f}  {report.seconds:.1f} s"
        )

    teacher = None
    if teacher_model is not None:
        teacher = answers_of(teacher_model, ready.graph)
        console.print(f"taught by {distil}: {teacher.answers.shape[1]} answers to each of {len(teacher.answers):,} queries")
    result = fit(model, ready, chosen, show, progress=True, teacher=teacher)
    for note in result.notes:
        console.print(f"  {note}")
    metrics = {"validation": result.metrics.as_dict(), "best_epoch": result.best_epoch, "fingerprint": ready.graph.fingerprint}
    if distil is not None:
        metrics["teacher"] = str(distil.resolve())
    save_checkpoint(out, model, chosen, ready.graph, metrics)
    console.print(
        f"best validation MRR {result.best_mrr:.4f} in epoch {result.best_epoch} ({result.reason}); checkpoint: {out}"
    )


def _configuration(
    config: Path | None, preset_name: str, start: Checkpoint | None, data: str | None, settings: list[str] | None,
    teacher_model: Checkpoint | Ensemble | None,
) -> Config:
    """The settings: of --from, else of --config or --preset, else of the teacher (--distil), else the default; then --set."""
    if start is not None:
        if config is not None:
            raise ConfigError(
                "--config and --from exclude each other", remedy="--from brings its own settings; change them by --set"
            )
        chosen = start.config
    elif teacher_model is not None and config is None and preset_name == "":
        chosen = strongest(teacher_model).config
    else:
        chosen = Config.load(config) if config is not None else preset(preset_name or "paper")
    overrides = parse_overrides(settings or [])
    if data is not None:
        overrides["data.path"] = data
    changed = [key for key in overrides if key.startswith("model.") and overrides[key] != chosen.flat().get(key)]
    if start is not None and changed:
        raise CheckpointError(
            f"{changed[0]} cannot change when weights are continued", remedy="leave it out, or train without --from"
        )
    chosen = chosen.updated(overrides, source="--set")
    return chosen.model_copy(update={"data": chosen.data.absolute()})


def _describe(console: Console, data: LinkData) -> None:
    console.print(data.graph.describe())
    for note in data.describe():
        console.print(f"  {note}")
