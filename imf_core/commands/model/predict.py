"""`imf predict`: answer questions by name, and score triples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from imf_core.answers import Answer, Known, Question, left_out_line
from imf_core.commands.model.graph import DataOption
from imf_core.commands.model.predict_file import SCORED, predict_file, read_triples, scored_cells, write_scored, yes_or_no
from imf_core.commands.terminal import terminal
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import ConfigError
from imf_core.evaluate.certainty import LEAST_FACTS
from imf_core.predict import Predictor


def predict(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint or ensemble, for example results/<study>/best.")],
    relation: Annotated[str | None, typer.Option("--relation", "-r", help="Relation name.")] = None,
    head: Annotated[str | None, typer.Option("--head", help="Head entity: asks for tails.")] = None,
    tail: Annotated[str | None, typer.Option("--tail", help="Tail entity: asks for heads.")] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of answers.")] = 5,
    known: Annotated[
        Known, typer.Option(help="Known facts, the triples of train and validation: leave out, mark, or show alone.")
    ] = Known.DROP,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", help="Questions, one a line: head<TAB>relation<TAB>?, or ?<TAB>relation<TAB>tail.")
    ] = None,
    score: Annotated[
        Path | None, typer.Option("--score", help="Triples to judge, one a line: head<TAB>relation<TAB>tail.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Answers to --file: OUT.tsv or OUT.jsonl; to --score: OUT.tsv.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Answer (head, relation, ?) or (?, relation, tail) by name; or a file of such questions; or score a file of triples.

    Known facts come from the checkpoint; --data takes them from a graph folder, for checkpoints that hold none.

    Example: imf predict results/<study>/best --head "LATIN SMALL LETTER E WITH ACUTE" -r canonical_base
    """
    asked = (relation, head, tail)
    if score is not None:
        if file is not None or any(part is not None for part in asked):
            remedy = "write --score TRIPLES.tsv, with --out OUT.tsv or without"
            raise ConfigError("--score needs nothing else to ask", remedy=remedy)
        _score(open_predictor(checkpoint, data), score, out, as_json)
    elif file is not None or out is not None:
        if file is None or out is None or any(part is not None for part in asked):
            remedy = "write --file QUESTIONS.tsv --out ANSWERS.tsv"
            raise ConfigError("--file needs --out and nothing else to ask", remedy=remedy)
        count, left_out = predict_file(open_predictor(checkpoint, data), file, out, k, known)
        terminal().print(f"{count:,} questions answered: {out}", soft_wrap=True)
        _say(left_out_line(left_out))
    elif relation is None:
        raise ConfigError("no relation to ask about", remedy="give --relation, or questions in a file: --file and --out")
    elif (head is None) == (tail is None):
        raise ConfigError("give either --head or --tail", remedy="--head asks for tails, --tail asks for heads")
    else:
        _answer(open_predictor(checkpoint, data), Question(head, relation, tail), k, known, as_json)


def _answer(predictor: Predictor, question: Question, k: int, known: Known, as_json: bool) -> None:
    answers = next(predictor.answers([question], k, known))
    if as_json:
        print(json.dumps([vars(answer) for answer in answers], indent=1))
    elif answers:
        terminal().print(_answers_table(question, answers, known))
    else:
        terminal().print(f"no answer: every candidate is {'new' if known is Known.ONLY else 'a known fact'}", soft_wrap=True)
    if known is Known.DROP:
        _say(left_out_line(sum(predictor.num_known([question]))), stderr=as_json)


def _answers_table(question: Question, answers: list[Answer], known: Known) -> Table:
    head, tail = ("?" if end is None else end for end in (question.head, question.tail))
    table = Table(title=f"({head}, {question.relation}, {tail})")
    table.add_column("answer")
    if known is Known.MARK:
        table.add_column("known")
    table.add_column("share", justify="right")
    for branch, weight in answers[0].weights.items():
        table.add_column(f"{branch} ({weight:.2f})", justify="right")
    for answer in answers:
        mark = (yes_or_no(answer.known),) if known is Known.MARK else ()
        numbers = (f"{score:.4f}" for score in (answer.score, *answer.branch_scores.values()))
        table.add_row(answer.entity, *mark, *numbers)
    return table


def _score(predictor: Predictor, source: Path, out: Path | None, as_json: bool) -> None:
    scored = predictor.score(read_triples(source, predictor.triple_ids))
    if as_json:
        print(json.dumps([vars(triple) for triple in scored], indent=1))
    elif out is None:
        table = Table(title=str(source))
        for column in SCORED:
            table.add_column(column)
        for triple in scored:
            table.add_row(*scored_cells(triple))
        terminal().print(table)
    if out is not None:
        write_scored(out, scored)
        terminal(stderr=as_json).print(f"{len(scored):,} triples scored: {out}", soft_wrap=True)
    _say(probability_line(predictor), stderr=as_json)


def probability_line(predictor: Predictor) -> str:
    """What the probabilities mean and how reliable they are, or why there are none and what helps."""
    calibration = predictor.calibration
    if calibration is not None:
        return calibration.describe()
    return (
        f"no probability: {len(predictor.graph.valid):,} validation facts are too few to fit one; train with at least "
        f"{LEAST_FACTS} of them (imf split makes a validation split)"
    )


def _say(line: str, stderr: bool = False) -> None:
    if line:
        terminal(stderr).print(line, soft_wrap=True)
