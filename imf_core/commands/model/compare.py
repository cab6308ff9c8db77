"""`imf compare`: whether one checkpoint ranks better than another, or whether the difference may be chance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary
from imf_core.commands.terminal import terminal
from imf_core.data.graph.graph import TEST_WORDS, KnowledgeGraph, KnownAnswers, Vocabulary, open_split
from imf_core.ensemble.ensemble import Ensemble, names_of, open_model, rank_with
from imf_core.errors import VocabularyError
from imf_core.evaluate.paired import LEVEL, Comparison, Part, compare_ranks
from imf_core.evaluate.ranking import slices
from imf_core.prepare.link_data import graph_of

SEED_WORDS = (
    "This is about these two trained models on these triples. Another seed gives another model: the mean of several seeds of "
    "each would say more about their settings."
)
_LISTED = 3


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint or ensemble.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same entities and relations.")],
    data: Annotated[str | None, typer.Option("--data", help="Graph folder, or a bundled data set; default: that of A.")] = None,
    split: Annotated[str, typer.Option(help=f"valid or test. {TEST_WORDS}")] = "valid",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank the same triples with two checkpoints and test whether the difference in MRR is real.

    A paired permutation test over triples (both directions of a triple go together) and a bootstrap interval, with fixed seeds.

    Example: imf compare results/new/best results/old/best
    """
    models = open_model(first), open_model(second)
    a, b = map(names_of, models)
    check_same_names(a, b)
    graph = graph_of(a.config.data if data is None else a.config.data.elsewhere(data))
    check_vocabulary(a.description, graph.entities, graph.relations, first)
    triples, known = open_split(graph, split)
    warnings = [*([TEST_WORDS] if split == "test" else []), *_other_triples(graph, a, b)]
    for warning in warnings:
        terminal(stderr=True).print(f"warning: {warning}", style="yellow", soft_wrap=True)
    own, other = (_ranks(model, graph, triples, known) for model in models)
    found = compare_ranks(own, other, slices(graph, triples))
    if as_json:
        print(json.dumps({"a": str(first), "b": str(second), "split": split, **facts(found), "warnings": warnings}, indent=1))
        return
    console = terminal()
    console.print(f"A: {first}", f"B: {second}", sep="\n", soft_wrap=True)
    console.print(_table(found, split))
    for line in lines(found):
        console.print(line, soft_wrap=True)


def check_same_names(a: Checkpoint, b: Checkpoint) -> None:
    """Refuse models of other entities or relations: their ranks are among other candidates.

    Raises:
        VocabularyError: what differs, by name.
    """
    for kind, own, other in (("entities", a.entities, b.entities), ("relations", a.relations, b.relations)):
        if own.names != other.names:
            raise VocabularyError(
                f"{a.path} and {b.path} have different {kind}: {_difference(own, other)}",
                remedy="compare models that were trained on the same graph",
            )


def facts(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values."""
    return {
        "triples": found.all.count // 2, **_part(found.all), "interval": list(found.interval), "p": found.p,
        "exact": found.exact, "draws": found.draws, "least_p": found.least, "level": LEVEL, "real": found.real,
        "slices": {name: _part(part) for name, part in found.slices.items()},
    }


def lines(found: Comparison) -> list[str]:
    """The verdict in words."""
    part, (low, high) = found.all, found.interval
    verdict = "is real" if found.real else "may be chance"
    few = f"so few triples differ that p cannot be below {found.least:.2g}: rank more triples"
    return [
        f"A - B: {part.difference:+.4f} MRR, 95 % interval {low:+.4f} to {high:+.4f}",
        f"A ranks {part.better:,} of {part.count:,} queries higher than B, {part.equal:,} the same, {part.worse:,} lower",
        f"the difference {verdict} (p = {found.p:.2g})",
        *([few] if found.least >= LEVEL and part.better + part.worse else []),
        SEED_WORDS,
    ]


def _part(part: Part) -> dict[str, Any]:
    return {
        "queries": part.count, "mrr": [part.first, part.second], "difference": part.difference,
        "better": part.better, "equal": part.equal, "worse": part.worse,
    }


def _difference(own: Vocabulary, other: Vocabulary) -> str:
    """`only in A: 'x', 'y' and 3 more; only in B: 'z'`, or where the order differs first."""
    parts = []
    for side, names, index in (("A", own.names, other.index), ("B", other.names, own.index)):
        alone = [name for name in names if name not in index]
        if alone:
            more = f" and {len(alone) - _LISTED:,} more" if len(alone) > _LISTED else ""
            parts.append(f"only in {side}: {', '.join(map(repr, alone[:_LISTED]))}{more}")
    if parts:
        return "; ".join(parts)
    place = next(number for number, pair in enumerate(zip(own.names, other.names, strict=True)) if pair[0] != pair[1])
    return f"the same names in another order; id {place} is {own.names[place]!r} in A and {other.names[place]!r} in B"


def _other_triples(graph: KnowledgeGraph, a: Checkpoint, b: Checkpoint) -> list[str]:
    """What to say of a model that was trained on other triples than the graph's: it may have seen the ones to be ranked."""
    known = ((side, model.path, model.metrics.get("fingerprint")) for side, model in (("A", a), ("B", b)))
    return [
        f"{side} ({path}) was not trained on these triples ({str(found)[:12]}, not {graph.fingerprint[:12]}): it may have seen "
        "what is ranked here"
        for side, path, found in known if found is not None and found != graph.fingerprint
    ]


def _ranks(model: Checkpoint | Ensemble, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers) -> np.ndarray:
    """(2T,) ranks, tails first."""
    found = rank_with(model, graph, triples, known)
    return np.concatenate([found.tail_ranks, found.head_ranks])


def _table(found: Comparison, split: str) -> Table:
    table = Table(title=f"{split}: MRR, and queries that A ranks higher, the same, lower")
    for column in ("slice", "queries", "A", "B", "A - B", "higher", "same", "lower"):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for name, part in {"all": found.all, **found.slices}.items():
        if part.count:
            figures = f"{part.first:.4f}", f"{part.second:.4f}", f"{part.difference:+.4f}"
            counts = (f"{number:,}" for number in (part.better, part.equal, part.worse))
            table.add_row(name, f"{part.count:,}", *figures, *counts)
    return table
