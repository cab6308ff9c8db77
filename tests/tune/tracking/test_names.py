"""Helpers of tracking: names and values that MLflow accepts, the questions of a registered model, the database's lock."""

from __future__ import annotations

import fcntl
import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from imf_core.errors import DataError
from imf_core.tasks.link import LINK
from tune.tracking.model import answer_table
from tune.tracking.names import is_loopback, one_at_a_time, param_text, safe_name


def test_names_that_mlflow_accepts() -> None:
    assert safe_name("hits@10") == "hits_at_10"
    assert safe_name("model.dim") == "model.dim"
    assert safe_name("loss (train)%") == "loss _train__"
    assert safe_name("/a/../b//") == "a/b"
    assert safe_name("..") == "_"
    assert len(safe_name("x" * 300)) == 250
    assert list(map(param_text, (1, 0.002, True, None, "ce", ["text"]))) == ["1", "0.002", "true", "null", "ce", '["text"]']
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "::1")))
    assert not any(map(is_loopback, ("10.0.0.4", "tracker.example", "")))


class Fixed:
    """Answers every question with the same entities."""

    def __init__(self, *entities: str) -> None:
        self.entities = entities

    def tails(self, head: str, relation: str, k: int, known: str = "drop") -> list[SimpleNamespace]:
        return [SimpleNamespace(entity=entity, score=0.5, known=False) for entity in self.entities[:k]]

    def heads(self, tail: str, relation: str, k: int, known: str = "drop") -> list[SimpleNamespace]:
        return self.tails(tail, relation, k)[::-1]


def test_invalid_questions_are_refused() -> None:
    predictor = Fixed("a")
    for row in ({"relation": "r"}, {"relation": "r", "head": "x", "tail": "y"}, {"head": "x"}, {"head": "x", "relation": None}):
        with pytest.raises(DataError, match="question 1 is not a query"):
            answer_table(LINK, predictor, pd.DataFrame([row]), 3)
    assert answer_table(LINK, predictor, pd.DataFrame({"head": [], "relation": []}), 3).empty
    mixed = pd.DataFrame({"head": ["x", None], "tail": [None, "y"], "relation": ["r", "r"], "k": [1, math.nan]})
    assert answer_table(LINK, Fixed("a", "b"), mixed, 2)["head"].tolist() == ["x", "b", "a"]


def test_a_lock_is_held_beside_the_database(tmp_path: Path) -> None:
    database, lock_file = tmp_path / "new" / "mlflow.db", tmp_path / "new" / ".mlflow.db.lock"
    with one_at_a_time(f"sqlite:///{database}"), lock_file.open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with one_at_a_time("http://127.0.0.1:5000"):
        pass
