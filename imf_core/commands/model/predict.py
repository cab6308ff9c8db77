"""`imf predict`: answer questions by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.commands.model.predict_file import predict_file
from imf_core.commands.terminal import terminal
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import ConfigError
from imf_core.predict import Answer


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble, for example results/<study>/best.")],
    relation: Annotated[str | None, typer.Option("--relation", "-r", help="Relation name.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="Head entity: asks for tails.")] = None,
    tail: Annotated[str | None, typer.Option("--tail", help="Tail entity: asks for heads.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of answers.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="Questions, one a line: head<TAB>relation<TAB>?, or ?<TAB>relation<TAB>tail.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Answers to --file: OUT.tsv or OUT.jsonl.")] = None,
) -> None:
    """Answer (head, relation, ?) or (?, relation, tail) by name; or a file of such questions.

    Example: imf predict results/demo/best --head "LATIN SMALL LETTER E WITH ACUTE" -r canonical_base
    """
    if file is not None or out is not None:
        if file is None or out is None or relation is not None or head is not None or tail is not None:
            remedy = "write --file QUESTIONS.tsv --out ANSWERS.tsv"
            raise ConfigError("--file needs --out and nothing else to ask", remedy=remedy)
        count = predict_file(open_predictor(checkpoint), file, out, k)
        terminal().print(f"{count:,} questions answered: {out}", soft_wrap=True)
        return
    if relation is None:
        raise ConfigError("no relation to ask about", remedy="give --relation, or questions in a file: --file and --out")
    if (head is None) == (tail is None):
        raise ConfigError("give either --head or --tail", remedy="--head asks for tails, --tail asks for heads")
    predictor = open_predictor(checkpoint)
    answers = predictor.tails(head, relation, k) if head is not None else predictor.heads(str(tail), relation, k)
    if as_json:
        print(json.dumps([vars(answer) for answer in answers], indent=1))
        return
    question = f"({head}, {relation}, ?)" if head is not None else f"(?, {relation}, {tail})"
    terminal().print(_answers_table(question, answers))


def _answers_table(question: str, answers: list[Answer]) -> Table:
    table = Table(title=question)
    table.add_column("answer")
    table.add_column("probability", justify="right")
    for branch, weight in answers[0].weights.items():
        table.add_column(f"{branch} ({weight:.2f})", justify="right")
    for answer in answers:
        table.add_row(answer.entity, f"{answer.score:.4f}", *(f"{score:.4f}" for score in answer.branch_scores.values()))
    return table
