"""`imf compare`: does one checkpoint rank better than another, or may the difference be chance?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from imf_core.checkpoint.checkpoint import Checkpoint
from imf_core.commands.model.graph import SplitOption
from imf_core.commands.terminal import terminal
from imf_core.data.graph.graph import (
    ALL_LINES,
    TEST_WORDS,
    KnowledgeGraph,
    Vocabulary,
    counted_title,
    counted_triples,
    open_split,
    split_notes,
)
from imf_core.ensemble.ensemble import names_of, open_model, rank_split
from imf_core.errors import VocabularyError
from imf_core.evaluate.paired import LEVEL, Comparison, Part, compare_ranks
from imf_core.evaluate.ranking import slices
from imf_core.evaluate.test_once import OWN
from imf_core.interface.models import graph_for

SEED_WORDS = (
    "This is about these two trained models on these triples. Another seed gives another model: the mean of several seeds of "
    "each would say more about their settings."
)
_LISTED = 3


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint or ensemble.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same entities and relations.")],
    data: Annotated[str | None, typer.Option("--data", help="Graph folder, or a bundled data set; default: that of A.")] = None,
    split: SplitOption = "valid",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank the same triples with two checkpoints and test whether the difference in MRR is real.

    A paired permutation test over triples (both directions of a triple go together) and a bootstrap interval, with fixed seeds.
    Figures are those of imf evaluate.

    Example: imf compare results/new/best results/old/best
    """
    models = open_model(first), open_model(second)
    a, b = map(names_of, models)
    check_same_names(a, b)
    graph = graph_for(models[0], data)
    triples, known = open_split(graph, split)
    warnings = [*([TEST_WORDS] if split == "test" else []), *_other_triples(graph, a, b)]
    notes = split_notes(graph, split, triples)
    for note in notes:
        terminal(stderr=True).print(f"note: {note}", soft_wrap=True)
    for warning in warnings:
        terminal(stderr=True).print(f"warning: {warning}", style="yellow", soft_wrap=True)
    ranks_a, ranks_b = (rank_split(model, graph, split, triples, known)[OWN].ranks for model in models)
    masks, counted, whole = slices(graph, triples), counted_triples(graph, split, triples), {}
    if counted is not None:
        both = np.tile(counted, 2)
        whole = {ALL_LINES: Part.of(ranks_a, ranks_b)}
        ranks_a, ranks_b, masks = ranks_a[both], ranks_b[both], {name: mask[both] for name, mask in masks.items()}
    result = compare_ranks(ranks_a, ranks_b, masks)
    result = replace(result, slices={**whole, **result.slices})
    if as_json:
        said = {"warnings": warnings, "notes": notes}
        named = {"a": str(first), "b": str(second), "split": split}
        print(json.dumps({**named, **facts(result), **said}, indent=1))
        return
    console = terminal()
    console.print(f"A: {first}", f"B: {second}", sep="\n", soft_wrap=True)
    console.print(_table(result, split))
    for line in lines(result):
        console.print(line, soft_wrap=True)


def check_same_names(a: Checkpoint, b: Checkpoint) -> None:
    """Refuse models of different entities or relations: their ranks are among different candidates.

    Raises:
        VocabularyError: names what differs.
    """
    for kind, names_a, names_b in (("entities", a.entities, b.entities), ("relations", a.relations, b.relations)):
        if names_a.names != names_b.names:
            raise VocabularyError(
                f"{a.path} and {b.path} have different {kind}: {_difference(names_a, names_b)}",
                remedy="compare models that were trained on the same graph",
            )


def facts(result: Comparison) -> dict[str, Any]:
    """A comparison as JSON values."""
    whole = result.slices.get(ALL_LINES)
    return {
        "triples": result.all.count // 2, **_part(result.all),
        **({"mrr_all_lines": [whole.first, whole.second]} if whole is not None else {}),
        "interval": list(result.interval), "p": result.p, "exact": result.exact, "draws": result.draws,
        "least_p": result.least, "level": LEVEL, "real": result.real,
        "slices": {name: _part(part) for name, part in result.slices.items()},
    }


def lines(result: Comparison) -> list[str]:
    """The verdict of a comparison in words."""
    part, (low, high) = result.all, result.interval
    verdict = "is real" if result.real else "may be chance"
    few = f"so few triples differ that p cannot be below {result.least:.2g}: rank more triples"
    return [
        f"A - B: {part.difference:+.4f} MRR, 95 % interval {low:+.4f} to {high:+.4f}",
        f"A ranks {part.better:,} of {part.count:,} queries higher than B, {part.equal:,} the same, {part.worse:,} lower",
        f"the difference {verdict} (p = {result.p:.2g})",
        *([few] if result.least >= LEVEL and part.better + part.worse else []),
        SEED_WORDS,
    ]


def _part(part: Part) -> dict[str, Any]:
    return {
        "queries": part.count, "mrr": [part.first, part.second], "difference": part.difference,
        "better": part.better, "equal": part.equal, "worse": part.worse,
    }


def _difference(a: Vocabulary, b: Vocabulary) -> str:
    """`only in A: 'x', 'y' and 3 more; only in B: 'z'`, or the first id whose names differ."""
    parts = []
    for side, names, index in (("A", a.names, b.index), ("B", b.names, a.index)):
        alone = [name for name in names if name not in index]
        if alone:
            more = f" and {len(alone) - _LISTED:,} more" if len(alone) > _LISTED else ""
            parts.append(f"only in {side}: {', '.join(map(repr, alone[:_LISTED]))}{more}")
    if parts:
        return "; ".join(parts)
    first = next(number for number, pair in enumerate(zip(a.names, b.names, strict=True)) if pair[0] != pair[1])
    return f"the same names in another order; id {first} is {a.names[first]!r} in A and {b.names[first]!r} in B"


def _other_triples(graph: KnowledgeGraph, a: Checkpoint, b: Checkpoint) -> list[str]:
    """A warning for each model that was trained on other triples than the graph's: it may have seen those to be ranked."""
    trained = ((side, model.path, model.metrics.get("fingerprint")) for side, model in (("A", a), ("B", b)))
    return [
        f"{side} ({path}) was not trained on these triples ({str(given)[:12]}, not {graph.fingerprint[:12]}): it may have seen "
        "what is ranked here"
        for side, path, given in trained if given is not None and given != graph.fingerprint
    ]


def _table(result: Comparison, split: str) -> Table:
    table = Table(title=f"{split}: MRR, and queries that A ranks higher, the same, lower")
    for column in ("slice", "queries", "A", "B", "A - B", "higher", "same", "lower"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    whole = result.slices.get(ALL_LINES)
    first = counted_title(result.all.count, whole.count if whole is not None else None)
    for name, part in {first: result.all, **result.slices}.items():
        if part.count:
            figures = f"{part.first:.4f}", f"{part.second:.4f}", f"{part.difference:+.4f}"
            counts = (f"{number:,}" for number in (part.better, part.equal, part.worse))
            table.add_row(name, f"{part.count:,}", *figures, *counts)
    return table
