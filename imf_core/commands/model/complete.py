"""`imf complete`: the most certain new facts of the whole graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.commands.model.graph import DataOption
from imf_core.commands.model.predict import probability_line
from imf_core.commands.outputs import new_file
from imf_core.commands.terminal import terminal
from imf_core.complete.complete import Completion, NewFact, complete
from imf_core.complete.page import completion_page
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import DataError
from imf_core.evaluate.certainty import shown

_HEAD = ("head", "relation", "tail", "score", "probability", "asked", "share", "branch")


def complete_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble, for example results/<study>/best.")],
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of facts.")] = 200,
    relation: Annotated[str | None, typer.Option("--relation", "-r", help="Only facts of this relation.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The facts as OUT.tsv, with the share of each branch.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="The facts as PAGE.html: texts, pictures, branches, nearest training facts.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Propose the most certain new facts of the whole graph: none is in train or validation.

    An entity is asked a relation that it has in training, or that at least half of those have with which it shares another one;
    any entity may be the answer. Where a relation has one answer, as a rule, and that is known, no second one is proposed.

    Example: imf complete results/demo/best --top 200 --page new.html
    """
    for path, suffix in ((out, ".tsv"), (page, ".html")):
        if path is not None and path.suffix != suffix:
            raise DataError.at(path, None, f"the file is {suffix}", value=path.suffix, remedy=f"name it {path.stem}{suffix}")
    predictor = open_predictor(checkpoint, data)
    completion = complete(predictor, top, relation)
    meaning = probability_line(predictor)
    if out is not None:
        _write(out, completion)
    if page is not None:
        with new_file(page) as scratch:
            scratch.write_text(completion_page(predictor, completion, meaning), encoding="utf-8")
    console = terminal()
    if out is None and page is None:
        console.print(_table(completion))
    console.print(f"{len(completion.facts):,} new facts, from {completion.questions:,} questions that make sense and are open")
    for path in (out, page):
        if path is not None:
            console.print(str(path), soft_wrap=True)
    console.print(meaning, soft_wrap=True)


def _write(path: Path, completion: Completion) -> None:
    branches = tuple(completion.facts[0].branch_shares) if completion.facts else ()
    with new_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        stream.write("\t".join((*_HEAD, *branches)) + "\n")
        for fact in completion.facts:
            shares = (f"{share:.6g}" for share in fact.branch_shares.values())
            stream.write("\t".join((*_cells(fact), *shares)) + "\n")  # names hold neither tab nor line feed


def _cells(fact: NewFact) -> tuple[str, ...]:
    probability = "" if fact.probability is None else f"{shown(fact.probability, 4):.4f}"
    return (
        fact.head, fact.relation, fact.tail, f"{fact.score:.4f}", probability, fact.asked, f"{fact.share:.6g}", fact.branch
    )


def _table(completion: Completion) -> Table:
    table = Table(title="new facts")
    for column in _HEAD:
        table.add_column(column)
    for fact in completion.facts:
        table.add_row(*_cells(fact))
    return table
