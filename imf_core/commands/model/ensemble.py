"""`imf ensemble`: the trained models that answer best together, chosen on validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.commands.terminal import terminal
from imf_core.data.graph.graph import split_notes
from imf_core.ensemble.ensemble import ENSEMBLE_FILE
from imf_core.ensemble.pool import Pool, distinct
from imf_core.ensemble.selection import ROUNDS, Selection
from imf_core.errors import ConfigError
from imf_core.interface.models import graph_for
from imf_core.study_reader import StudyFolder


def ensemble(
    out: Annotated[Path, typer.Argument(help="Where the ensemble goes.")],
    sources: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Checkpoints, or studies: all that they keep.")
    ],
    data: Annotated[str | None, typer.Option("--data", help="Graph folder; default: that of the first checkpoint.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Models taken at most, repeats counted.")] = ROUNDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Choose from several checkpoints the pool with the best validation MRR, greedily, and keep it as one folder.

    What takes a checkpoint takes the ensemble too: imf predict, evaluate, compare, serve. Test is not opened.

    Example: imf ensemble results/pool results/mystudy
    """
    folders = found_checkpoints(sources)
    graph = graph_for(load_checkpoint(folders[0]), data)
    pool = Pool.choose(folders, graph, rounds)
    notes = split_notes(graph, "valid", graph.valid)
    for note in notes:
        terminal(stderr=True).print(f"note: {note}", soft_wrap=True)
    singles = [pool.ranked([index], [1.0]).mrr for index in range(len(folders))]
    figures = {**pool.figures(), "best_single_mrr": max(singles), "notes": notes}
    pool.save(out, figures)
    if as_json:
        weights = pool.selection.weights
        members = [{"folder": str(folders[index]), "weight": weights[index], "mrr": singles[index]} for index in pool.kept]
        print(json.dumps({"ensemble": str(out), **figures, "members": members}, indent=1))
        return
    console = terminal()
    console.print(_table(folders, pool.selection, singles))
    for line in lines(figures, len(pool.kept), out):
        console.print(line, soft_wrap=True)


def lines(figures: dict[str, Any], kept: int, out: Path) -> list[str]:
    """What an ensemble of `kept` members gains, in words."""
    gain = figures["held_back_mrr"] - figures["held_back_mrr_of_single"]
    verdict = "it helps" if gain > 0 else "it does not help: the best single model is as good"
    return [
        f"{kept} of {figures['candidates']} models; validation MRR {figures['validation']['mrr']:.4f}, "
        f"the best single one {figures['best_single_mrr']:.4f}",
        f"chosen on one half, measured on the other: {figures['held_back_mrr']:.4f} against "
        f"{figures['held_back_mrr_of_single']:.4f} ({gain:+.4f}); {verdict}",
        f"ensemble: {out}",
    ]


def found_checkpoints(sources: list[Path]) -> list[Path]:
    """The checkpoints in some folders: checkpoints themselves, members of ensembles, kept trials and final seeds of studies.

    Of checkpoints with equal weights only the first counts.

    Raises:
        ConfigError: a folder holds no checkpoint, or there are fewer than two different models.
    """
    folders: list[Path] = []
    for source in sources:
        if (source / ENSEMBLE_FILE).is_file():
            folders += sorted((source / "members").iterdir())
        elif (source / "config.json").is_file():
            folders.append(source)
        else:
            study = StudyFolder(source)
            kept = [*study.trial_checkpoints(), *study.final_checkpoints()]
            if not kept:
                raise ConfigError(
                    f"{source} is neither a checkpoint nor a study that keeps any", key="source", value=str(source),
                    remedy="give folders with a config.json, or a study's folder such as results/mystudy",
                )
            folders += kept
    chosen = distinct(folders)
    if len(chosen) < 2:
        raise ConfigError(
            f"{len(chosen)} model is no ensemble: {', '.join(map(str, chosen))}", key="source",
            remedy="give several checkpoints, or a study that was searched with --keep 3",
        )
    return chosen


def _table(folders: list[Path], chosen: Selection, singles: list[float]) -> Table:
    table = Table(title="validation")
    table.add_column("checkpoint", overflow="fold")
    table.add_column("MRR", justify="right")
    table.add_column("weight", justify="right")
    order = sorted(range(len(folders)), key=lambda index: (-chosen.weights[index], -singles[index]))
    for index in order:
        weight = f"{chosen.weights[index]:.2f}" if chosen.weights[index] else ""
        table.add_row(str(folders[index]), f"{singles[index]:.4f}", weight)
    return table
