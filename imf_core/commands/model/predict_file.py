"""`imf predict --file` and `--score`: questions or triples from a file; all lines are checked before the first is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from imf_core.answers import Answer, Known, Question, ScoredTriple
from imf_core.commands.outputs import new_file
from imf_core.errors import DataError, ImfError, VocabularyError
from imf_core.evaluate.certainty import shown
from imf_core.files.lines import read_lines
from imf_core.predict import Predictor

OPEN = "?"  # stands for the end that is sought
_HEAD = ("head", "relation", "tail", "rank", "entity", "score")
SCORED = ("head", "relation", "tail", "score", "tail_rank", "head_rank", "probability", "known")
_QUESTION = f"write head<TAB>relation<TAB>{OPEN} or {OPEN}<TAB>relation<TAB>tail, one a line"
_TRIPLE = "write head<TAB>relation<TAB>tail, one a line"

RowT = TypeVar("RowT")


def read_questions(path: Path, check: Callable[[Question], object]) -> list[Question]:
    """Read `head<TAB>relation<TAB>?` or `?<TAB>relation<TAB>tail`, one a line.

    Args:
        path: the file.
        check: raises an `ImfError` if a question cannot be answered, such as `Predictor.ids`.

    Raises:
        DataError: a line has not three columns, has both ends open or none, or an unknown name; or the file is empty.
    """
    def question(head: str, relation: str, tail: str) -> Question:
        asked = Question(None if head == OPEN else head, relation, None if tail == OPEN else tail)
        check(asked)
        return asked

    return _read(path, question, _QUESTION)


def read_triples(path: Path, check: Callable[[str, str, str], object]) -> list[tuple[str, str, str]]:
    """Read `head<TAB>relation<TAB>tail`, one a line.

    Args:
        path: the file.
        check: raises an `ImfError` at an unknown name, such as `Predictor.triple_ids`.

    Raises:
        DataError: a line has not three columns, or an unknown name; or the file is empty.
    """
    def triple(head: str, relation: str, tail: str) -> tuple[str, str, str]:
        check(head, relation, tail)
        return head, relation, tail

    return _read(path, triple, _TRIPLE)


def _read(path: Path, row: Callable[[str, str, str], RowT], remedy: str) -> list[RowT]:
    rows = []
    for number, line in read_lines(path):
        columns = line.split("\t")
        if len(columns) != 3:
            raise DataError.at(path, number, f"{len(columns)} columns instead of 3", value=line, remedy=remedy)
        try:
            rows.append(row(*columns))
        except VocabularyError as error:
            raise DataError.at(path, number, error.problem, remedy=error.remedy) from error
        except ImfError as error:
            raise DataError.at(path, number, error.problem, remedy=remedy) from error
    if not rows:
        raise DataError.at(path, None, "holds no line", remedy=remedy)
    return rows


def write_answers(
    path: Path, questions: Iterable[Question], answers: Iterable[list[Answer]], known: Known = Known.DROP
) -> int:
    """Write `.tsv` (one answer a line) or `.jsonl` (one question a line, with weights and the scores of the branches).

    Args:
        path: the file; it appears when all are answered.
        questions, answers: in the same order.
        known: with `mark`, the `.tsv` has a column `known`, yes or no; the `.jsonl` always says so.

    Returns:
        Number of questions.

    Raises:
        DataError: the suffix is another one, or the file cannot be written.
    """
    if path.suffix not in (".tsv", ".jsonl"):
        remedy = "name it OUT.tsv or OUT.jsonl"
        raise DataError.at(path, None, "the answers are .tsv or .jsonl", value=path.suffix, remedy=remedy)
    marked = known is Known.MARK
    count = 0
    with new_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        if path.suffix == ".tsv":
            stream.write("\t".join((*_HEAD, "known") if marked else _HEAD) + "\n")
        for question, ranked in zip(questions, answers, strict=True):
            count += 1
            if path.suffix == ".tsv":
                head, tail = (OPEN if end is None else end for end in (question.head, question.tail))
                for rank, answer in enumerate(ranked, 1):
                    row = (head, question.relation, tail, str(rank), answer.entity, f"{answer.score:.6g}")
                    mark = (yes_or_no(answer.known),) if marked else ()
                    stream.write("\t".join((*row, *mark)) + "\n")  # names hold neither tab nor line feed
            else:
                stream.write(json.dumps({**vars(question), "answers": [vars(answer) for answer in ranked]}) + "\n")
    return count


def predict_file(predictor: Predictor, source: Path, out: Path, k: int, known: Known = Known.DROP) -> tuple[int, int]:
    """Answer the questions of a file.

    Args:
        predictor: answers them.
        source: the questions, see `read_questions`.
        out: the answers, see `write_answers`.
        k: answers to each question, at least 1.
        known: see `Predictor.answers`.

    Returns:
        Number of questions, and of known facts that were left out.

    Raises:
        DataError: a line is wrong, or `out` cannot be written.
    """
    questions = read_questions(source, predictor.ids)
    left_out = sum(predictor.num_known(questions)) if known is Known.DROP else 0
    return write_answers(out, questions, predictor.answers(questions, k, known), known), left_out


def write_scored(path: Path, triples: Sequence[ScoredTriple]) -> None:
    """Write scored triples as `.tsv`, with an empty probability where there is none.

    Raises:
        DataError: the suffix is another one, or the file cannot be written.
    """
    if path.suffix != ".tsv":
        raise DataError.at(path, None, "scored triples are .tsv", value=path.suffix, remedy="name it OUT.tsv")
    with new_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        stream.writelines("\t".join(row) + "\n" for row in (SCORED, *map(scored_cells, triples)))


def scored_cells(triple: ScoredTriple) -> tuple[str, ...]:
    """The columns `SCORED` of a triple."""
    return (
        triple.head, triple.relation, triple.tail, f"{triple.score:.4f}", f"{triple.tail_rank:g}", f"{triple.head_rank:g}",
        "" if triple.probability is None else f"{shown(triple.probability, 4):.4f}", yes_or_no(triple.known),
    )


def yes_or_no(value: bool) -> str:
    """A truth value in a table."""
    return "yes" if value else "no"
