"""`imf audit`: what is wrong, or worth knowing, about a graph; a repaired copy where something is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from imf_core.commands.recommender.train import print_audit
from imf_core.commands.terminal import terminal
from imf_core.data.audit.repair import SEED, repair
from imf_core.data.audit.report import AuditReport
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.readers import read_raw
from imf_core.data.formats.writers import REPAIR_RECORD, check_place, write_graph
from imf_core.errors import ConfigError
from imf_core.prepare.entity_files import EntityFiles
from imf_core.prepare.link_data import audited, resolve
from imf_core.recommend.config import InteractionConfig
from imf_core.recommend.data.atomic_files import is_atomic_folder

_SHOWN = 8  # columns that fit 80 characters; the lines below the table have the others


def audit_command(
    data: Annotated[
        str | None, typer.Argument(metavar="DIR", help="Graph folder, RecBole's folder, or the bundled data set `unicode`.")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Training triples, instead of the file in DIR.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Validation triples, instead of the file in DIR.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test triples, instead of the file in DIR.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 where there is a problem.")] = False,
    repaired_copy: Annotated[
        Path | None, typer.Option("--repair", metavar="OUT", help="Write a repaired copy into this new folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which triples --repair moves to validation.")] = SEED,
    size: Annotated[
        int | None, typer.Option("--valid-size", min=1, help="Validation triples after --repair; default: as many as test.")
    ] = None,
) -> None:
    """Count, compare the splits, find relations that say the same, and rank a baseline without training.

    A problem is what a search should not start with: splits that share triples, no training triple, a split file without
    triples, a modality that cannot be used. They are printed in any case; with --strict they make the status 1.
    A folder of RecBole's atomic files (.inter, .item, .kg, .link) is audited as interactions, as `imf recommender audit` does;
    its graph as triples: --train NAME.kg.
    --repair takes repeats and overlaps out, test excepted, and fills up validation from train; it changes nothing in DIR.

    Example: imf audit mygraph --strict --repair mygraph-repaired
    """
    if data is None and train is None:
        raise ConfigError("there is no graph to audit", remedy="give a graph folder, or --train FILE", key="DIR")
    folder = resolve(data) if data is not None else None
    if folder is not None and not (train or valid or test) and is_atomic_folder(folder):
        if repaired_copy is not None:
            raise ConfigError(f"{folder} holds interactions, no graph to repair", remedy="leave --repair out", key="repair")
        print_audit(InteractionConfig(path=str(folder)), as_json=as_json, strict=strict)
        return
    if repaired_copy is not None:
        check_place(repaired_copy, folder)  # before the work
    raw = read_raw(GraphFiles(folder, train, valid, test), test=True)
    report = audited(raw, EntityFiles(folder) if folder is not None else None)
    done: list[str] = []
    facts = report.to_json()
    if repaired_copy is not None:
        mended = repair(raw, seed, size)
        copied = write_graph(
            repaired_copy, folder, raw.entities, raw.relations, mended.splits, REPAIR_RECORD, mended.facts
        )
        done = [*mended.lines(), f"copied: {', '.join(copied) or 'nothing else'}", f"repaired copy: {repaired_copy}"]
        facts["repair"] = {**mended.facts, "copied": copied}
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        show_audit(terminal(), report)
        for line in done:
            terminal().print(Text("Repair ", style="bold green"), line, sep="", soft_wrap=True)
    if strict and report.problems:
        raise typer.Exit(1)


def show_audit(console: Console, report: AuditReport) -> None:
    """Tables, then a fact a line, then warnings and problems."""
    console.print(f"{report.source}: {report.entities:,} entities, {report.relations:,} relations", soft_wrap=True)
    columns, rows = report.split_rows()
    console.print(_table(columns[:_SHOWN], [row[:_SHOWN] for row in rows]))
    console.print(_table(*report.category_rows()))
    for line in report.lines():
        console.print(line, soft_wrap=True)
    for title, style, entries in (("Warning ", "bold yellow", report.warnings), ("Problem ", "bold red", report.problems)):
        for entry in entries:
            console.print(Text(title, style=style), entry, sep="", soft_wrap=True)


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
