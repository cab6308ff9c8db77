"""`imf evaluate`: rank a split with a checkpoint or an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.commands.model.graph import DataOption, SplitOption
from imf_core.commands.terminal import terminal
from imf_core.data.audit.report import certain_hits
from imf_core.data.graph.graph import ALL_LINES, counted_title, open_split, split_notes
from imf_core.ensemble.ensemble import Ensemble, names_of, open_model, rank_split
from imf_core.errors import ConfigError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.test_once import OWN
from imf_core.interface.models import graph_for
from imf_core.model.decision import alternatives


def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble.")],
    data: DataOption = None,
    split: SplitOption = "valid",
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Also the plain mean, each branch alone and all but one, from the same scores.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Filtered ranking of a split: MRR, mean rank, Hits@1/3/10, with all slices.

    Decision weights that were fitted to validation are fitted crosswise for its figures, as while training: each half of the
    triples is ranked with weights that saw the other half alone.
    """
    opened = open_model(checkpoint)
    loaded = names_of(opened)
    if decisions and isinstance(opened, Ensemble):
        raise ConfigError("an ensemble has no branches to decide by", remedy="leave out --decisions, or name a member's folder")
    graph = graph_for(opened, data)
    triples, known = open_split(graph, split)
    current = loaded.model.decision
    ranked = rank_split(opened, graph, split, triples, known, alternatives(current) if decisions else None)
    metrics = ranked[OWN].metrics
    by_decision = {current.mode if name == OWN else name: one.metrics for name, one in ranked.items()}
    notes = split_notes(graph, split, triples)
    for note in notes:
        terminal(stderr=True).print(f"note: {note}", soft_wrap=True)
    if as_json:
        others = {"decisions": {name: part.flat() for name, part in by_decision.items()}} if decisions else {}
        print(json.dumps({**metrics.as_dict(), **others, "notes": notes}, indent=1))
        return
    whole = metrics.slices.get(ALL_LINES)
    first = counted_title(metrics.count, whole.count if whole is not None else None)
    terminal().print(_metrics_table({first: metrics, **metrics.slices}, f"{checkpoint}: {split}"))
    if decisions:
        terminal().print(_metrics_table(by_decision, "decisions", "decision"))
    if certain := certain_hits(graph.num_entities):
        terminal().print(certain)


def _metrics_table(rows: Mapping[str, RankingMetrics], title: str, first: str = "slice") -> Table:
    table = Table(title=title)
    for column in (first, "ranks", "MRR", "MR", "H@1", "H@3", "H@10"):
        table.add_column(column, justify="left" if column == first else "right")
    for name, part in rows.items():
        if part.count:
            hits = (f"{part.hits_at(k):.4f}" for k in (1, 3, 10))
            table.add_row(name, f"{part.count:,}", f"{part.mrr:.4f}", f"{part.mean_rank:.1f}", *hits)
    return table
