"""`imf predict --file`: questions from a file, answers to a file; all lines are checked before the first is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from imf_core.commands.outputs import new_file
from imf_core.errors import DataError, ImfError, VocabularyError
from imf_core.files.lines import read_lines
from imf_core.predict import Answer, Predictor, Question

OPEN = "?"  # stands for the end that is sought
_HEAD = ("head", "relation", "tail", "rank", "entity", "score")


def read_questions(path: Path, check: Callable[[Question], object]) -> list[Question]:
    """Read `head<TAB>relation<TAB>?` or `?<TAB>relation<TAB>tail`, one a line.

    Args:
        path: the file.
        check: raises an `ImfError` if a question cannot be answered, such as `Predictor.ids`.

    Raises:
        DataError: a line has not three columns, has both ends open or none, or an unknown name; or the file is empty.
    """
    questions = []
    for number, line in read_lines(path):
        columns = line.split("\t")
        remedy = f"write head<TAB>relation<TAB>{OPEN} or {OPEN}<TAB>relation<TAB>tail"
        if len(columns) != 3:
            raise DataError.at(path, number, f"{len(columns)} columns instead of 3", value=line, remedy=remedy)
        head, relation, tail = columns
        question = Question(None if head == OPEN else head, relation, None if tail == OPEN else tail)
        try:
            check(question)
        except VocabularyError as error:
            raise DataError.at(path, number, error.problem, remedy=error.remedy) from error
        except ImfError as error:
            raise DataError.at(path, number, error.problem, remedy=remedy) from error
        questions.append(question)
    if not questions:
        raise DataError.at(path, None, "holds no question", remedy=f"write head<TAB>relation<TAB>{OPEN}, one a line")
    return questions


def write_answers(path: Path, questions: Iterable[Question], answers: Iterable[list[Answer]]) -> int:
    """Write `.tsv` (one answer a line) or `.jsonl` (one question a line, with weights and the scores of the branches).

    Returns:
        Number of questions. The file appears when all are answered.

    Raises:
        DataError: the suffix is another one, or the file cannot be written.
    """
    if path.suffix not in (".tsv", ".jsonl"):
        remedy = "name it OUT.tsv or OUT.jsonl"
        raise DataError.at(path, None, "the answers are .tsv or .jsonl", value=path.suffix, remedy=remedy)
    count = 0
    with new_file(path) as scratch, scratch.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        if path.suffix == ".tsv":
            stream.write("\t".join(_HEAD) + "\n")
        for question, ranked in zip(questions, answers, strict=True):
            count += 1
            if path.suffix == ".tsv":
                head, tail = (OPEN if end is None else end for end in (question.head, question.tail))
                for rank, answer in enumerate(ranked, 1):
                    row = (head, question.relation, tail, str(rank), answer.entity, f"{answer.score:.6g}")
                    stream.write("\t".join(row) + "\n")  # names hold neither tab nor line feed
            else:
                stream.write(json.dumps({**vars(question), "answers": [vars(answer) for answer in ranked]}) + "\n")
    return count


def predict_file(predictor: Predictor, source: Path, out: Path, k: int) -> int:
    """Answer the questions of a file.

    Args:
        predictor: answers them.
        source: the questions, see `read_questions`.
        out: the answers, see `write_answers`.
        k: answers to each question, at least 1.

    Returns:
        Number of questions.

    Raises:
        DataError: a line is wrong, or `out` cannot be written.
    """
    questions = read_questions(source, predictor.ids)
    return write_answers(out, questions, predictor.answers(questions, k))
