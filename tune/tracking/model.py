"""The registered MLflow model: a checkpoint folder of any task that answers by name."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from imf_core.tasks.protocols import Column
from imf_core.tasks.registry import task_of
from imf_core.tasks.task import AnyTask

_ANSWERS = 10  # to each question, where the caller does not say


class ImfPyfunc(PythonModel):
    """The registered model."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint that MLflow has fetched."""
        checkpoint = context.artifacts["checkpoint"]
        self.task = task_of(checkpoint)
        self.predictor = self.task.open_predictor(checkpoint)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer questions; see `answer_table`. `params` may hold `k`, the number of answers to each."""
        return answer_table(self.task, self.predictor, model_input, int((params or {}).get("k", _ANSWERS)))


def answer_table(task: AnyTask, predictor: Any, questions: pd.DataFrame, k: int) -> pd.DataFrame:
    """One row an answer, with the columns `task.answers`.

    Args:
        task: whose `questions` name the columns.
        predictor: of `task.open_predictor`.
        questions: one a row.
        k: answers to each.

    Raises:
        DataError: a row is no question.
    """
    rows = task.answer(predictor, questions.to_dict("records"), k)
    return pd.DataFrame(rows, columns=[column.name for column in task.answers])


def signature(task: AnyTask) -> ModelSignature:
    """Columns of questions and answers, and the parameter `k`."""
    return ModelSignature(_schema(task.questions), _schema(task.answers), ParamSchema([ParamSpec("k", "long", _ANSWERS)]))


def _schema(columns: tuple[Column, ...]) -> Schema:
    return Schema([ColSpec(column.kind, column.name, required=column.required) for column in columns])
