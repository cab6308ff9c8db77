"""The registered MLflow model."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from imf_core.errors import DataError


class ImfPyfunc(PythonModel):
    """The registered model: a checkpoint folder that answers by name."""

    def load_context(self, context: Any) -> None:
        from imf_core.predict import Predictor
        from imf_core.recommend.answers import ItemRecommender
        from imf_core.recommend.checkpoint import is_recommender

        place = context.artifacts["checkpoint"]
        self.recommends = is_recommender(place)
        self.predictor: Any = ItemRecommender.load(place) if self.recommends else Predictor.load(place)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One row an answer (head, relation, tail, rank, score) for rows of relation and head or tail; see `answer_table`.

        Of a recommender: (user, rank, item, score) for rows of users.
        """
        if self.recommends:
            return recommendation_table(self.predictor, model_input, int((params or {}).get("k", 10)))
        return answer_table(self.predictor, model_input, int((params or {}).get("k", 10)))


def _signature(recommends: bool) -> ModelSignature:
    if recommends:
        asked: list[ColSpec | TensorSpec] = [ColSpec("string", "user")]
        proposed: list[ColSpec | TensorSpec] = [
            ColSpec("string", "user"), ColSpec("long", "rank"), ColSpec("string", "item"), ColSpec("double", "score")
        ]
        return ModelSignature(Schema(asked), Schema(proposed), ParamSchema([ParamSpec("k", "long", 10)]))
    asked = [ColSpec("string", "relation"), ColSpec("long", "k", required=False)]
    asked += [ColSpec("string", name, required=False) for name in ("head", "tail")]
    answers: list[ColSpec | TensorSpec] = [ColSpec("string", name) for name in ("head", "relation", "tail")]
    answers += [ColSpec("long", "rank"), ColSpec("double", "score")]
    return ModelSignature(Schema(asked), Schema(answers), ParamSchema([ParamSpec("k", "long", 10)]))


def answer_table(predictor: Any, questions: pd.DataFrame, k: int) -> pd.DataFrame:
    """Ask a predictor by name.

    Args:
        predictor: has `tails(head, relation, k)` and `heads(tail, relation, k)`, which return answers with entity and score.
        questions: columns `relation` and `head` or `tail`; a column `k` overrules `k` for its row.
        k: answers per question.

    Returns:
        one row an answer: head, relation, tail, rank (from 1), score.

    Raises:
        DataError: a row names no relation, or not exactly one of head and tail.
    """
    columns = ["head", "relation", "tail", "rank", "score"]
    rows: list[tuple[Any, ...]] = []
    for number, row in enumerate(questions.to_dict("records"), start=1):
        head, relation, tail = (row.get(name) if isinstance(row.get(name), str) else None for name in columns[:3])
        if not relation or bool(head) == bool(tail):
            remedy = "give relation and either head (asks for tails) or tail (asks for heads)"
            raise DataError(f"question {number} is not a query: {row!r}", remedy=remedy, line=number, value=row)
        own = row.get("k")
        limit = k if own is None or (isinstance(own, float) and math.isnan(own)) else int(own)
        answers = predictor.tails(head, relation, limit) if head else predictor.heads(tail, relation, limit)
        for rank, answer in enumerate(answers, start=1):
            triple = (head, relation, answer.entity) if head else (answer.entity, relation, tail)
            rows.append((*triple, rank, float(answer.score)))
    return pd.DataFrame(rows, columns=columns)


def recommendation_table(recommender: Any, questions: pd.DataFrame, k: int) -> pd.DataFrame:
    """Ask a recommender by name.

    Args:
        recommender: has `recommend_all(users, k)`, which returns items with their scores.
        questions: column `user`.
        k: items for each user.

    Returns:
        one row an item: user, rank (from 1), item, score.
    """
    users = [str(user) for user in questions["user"]]
    rows = [
        (user, rank, answer.item, float(answer.score))
        for user, answers in zip(users, recommender.recommend_all(users, k), strict=True)
        for rank, answer in enumerate(answers, start=1)
    ]
    return pd.DataFrame(rows, columns=["user", "rank", "item", "score"])
