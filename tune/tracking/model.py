"""The registered MLflow model: a checkpoint folder of any task that answers by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from imf_core.answers import Known
from imf_core.checkpoint.checkpoint import read_description
from imf_core.checkpoint.described import DescribedParts, checked
from imf_core.parts.registry import find, load_file
from imf_core.tasks.protocols import Column
from imf_core.tasks.registry import task_of
from imf_core.tasks.task import AnyTask

_ANSWERS = 10  # default number of answers to a question


_PART = "part-"  # name of an artifact that is the file of a part


def parts_to_ship(checkpoint: Path) -> tuple[dict[str, str], list[str]]:
    """What the parts of a checkpoint need elsewhere: the files of those that no package brings, as artifacts, since they are
    code of the model; and the requirements of the others.
    """
    parts = checked(checkpoint / "config.json", DescribedParts, read_description(checkpoint)).parts
    here = [find(part.kind, part.name) for part in parts if not part.package]
    files = {f"{_PART}{Path(part.file).stem}": part.file for part in here if part is not None and part.file}
    return files, sorted({f"{part.package}=={part.version}" for part in parts if part.package})


class ImfPyfunc(PythonModel):
    """The registered model."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint that MLflow has downloaded."""
        for name, file in context.artifacts.items():
            if name.startswith(_PART):
                load_file(file)
        checkpoint = context.artifacts["checkpoint"]
        self.task = task_of(checkpoint)
        self.predictor = self.task.open_predictor(checkpoint)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer questions, see `answer_table`; `params` may set `k`, the number of answers to each, and `known`."""
        given = {"k": _ANSWERS, "known": Known.DROP, **(params or {})}
        return answer_table(self.task, self.predictor, model_input, int(given["k"]), str(given["known"]))


def answer_table(
    task: AnyTask, predictor: Any, questions: pd.DataFrame, k: int, known: str = Known.DROP
) -> pd.DataFrame:
    """Answer questions in a table with one row per answer and the columns `task.answers`.

    Args:
        task: the task; its `questions` are the columns of the questions.
        predictor: from `task.open_predictor`.
        questions: one per row.
        k: number of answers to each, >= 1.
        known: what becomes of known facts, see `Task.answer`.

    Raises:
        DataError: a row is not a valid question.
    """
    rows = task.answer(predictor, questions.to_dict("records"), k, known)
    return pd.DataFrame(rows, columns=[column.name for column in task.answers])


def signature(task: AnyTask) -> ModelSignature:
    """The columns of questions and answers, and the parameters `k` and `known`."""
    params = ParamSchema([ParamSpec("k", "long", _ANSWERS), ParamSpec("known", "string", Known.DROP.value)])
    return ModelSignature(_schema(task.questions), _schema(task.answers), params)


def _schema(columns: tuple[Column, ...]) -> Schema:
    return Schema([ColSpec(column.kind, column.name, required=column.required) for column in columns])
