"""`imf evaluate`: rank a split with a checkpoint or an ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.commands.model.graph import DataOption, SplitOption, graph_for
from imf_core.commands.terminal import terminal
from imf_core.data.audit.report import certain_hits
from imf_core.data.graph.graph import open_split
from imf_core.ensemble.ensemble import Ensemble, names_of, open_model, rank_with
from imf_core.errors import ConfigError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.ranking import evaluate_decisions
from imf_core.model.decision import alternatives
from imf_core.runtime import MemoryBudget


def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble.")],
    data: DataOption = None,
    split: SplitOption = "valid",
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Also the plain mean, each branch alone and all but one, from the same scores.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Filtered ranking of a split: MRR, mean rank, Hits@1/3/10, with all slices."""
    opened = open_model(checkpoint)
    loaded = names_of(opened)
    if decisions and isinstance(opened, Ensemble):
        raise ConfigError("an ensemble has no branches to decide by", remedy="leave out --decisions, or name a member's folder")
    graph = graph_for(loaded, data, checkpoint)
    triples, known = open_split(graph, split)
    by_decision = {}
    if decisions:
        current = loaded.model.decision
        memory = MemoryBudget.of(loaded.config.train.memory_budget_mb)
        variants = {current.mode: current, **alternatives(current)}
        by_decision = evaluate_decisions(loaded.model, graph, triples, known, variants, memory=memory)
        metrics = by_decision[current.mode].metrics
    else:
        metrics = rank_with(opened, graph, triples, known).metrics
    if as_json:
        others = {name: ranked.metrics.flat() for name, ranked in by_decision.items()}
        print(json.dumps(metrics.as_dict() | ({"decisions": others} if decisions else {}), indent=1))
        return
    terminal().print(_metrics_table({"all": metrics, **metrics.slices}, f"{checkpoint}: {split}"))
    if decisions:
        rows = {name: ranked.metrics for name, ranked in by_decision.items()}
        terminal().print(_metrics_table(rows, "decisions", "decision"))
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
