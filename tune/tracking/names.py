"""What tracking needs and what knows nothing of MLflow: names and values it accepts, address checks, tables of answers."""

from __future__ import annotations

import fcntl
import ipaddress
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imf_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MAX_PARAM, MAX_NAME, MAX_BATCH, MAX_METRICS = 6000, 250, 100, 900  # MLflow's own limits
MODEL_CODE = "import mlflow\n\nfrom tune.tracking.tracker import ImfPyfunc\n\nmlflow.models.set_model(ImfPyfunc())\n"
_PINNED = ("mlflow", "numpy", "pandas", "pydantic", "PyYAML", "ray", "safetensors", "scikit-learn", "torch")


def safe_name(name: str) -> str:
    """A name that MLflow accepts for a metric, parameter or tag, as near to the given one as it can be.

    `@` becomes `_at_` (`hits@10` -> `hits_at_10`); another character than letters, digits and `_ - . : /` or blank becomes `_`;
    parts of a path that lead nowhere (`..`, empty) are left out; 250 characters are kept.
    """
    legal = re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))
    return "/".join(part for part in legal.split("/") if part not in ("", ".", ".."))[:MAX_NAME].rstrip("/") or "_"


def param_text(value: Any) -> str:
    """The one written form of a setting: numbers as Python writes them, `true`, `false`, `null`, JSON for lists."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def config_text(params: Mapping[str, Any]) -> str:
    """The exact text of the artifact `config.json`: every setting in full."""
    return json.dumps(dict(params), indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def cut(text: str) -> str:
    """At most as long as MLflow keeps a value; what is cut ends in `...`."""
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 3] + "..."


def quoted(value: str) -> str:
    """A text as a literal of MLflow's filter language, which has no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def short(error: BaseException) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def as_uri(place: str | None) -> str | None:
    """A folder as a `file:` URI, so that blanks and `#` in it survive; a URI as it is."""
    return place if place is None or "://" in place else Path(place).as_uri()


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock beside a SQLite database: two processes that migrate one fresh database at a time break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def requirements() -> list[str]:
    """Exact versions of what a registered model needs, so that MLflow does not have to find out by running it."""
    installed = {item.name.lower(): item.version.partition("+")[0] for item in metadata.distributions() if item.name}
    return [f"{name}=={installed[name.lower()]}" for name in _PINNED if name.lower() in installed]


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
    import pandas as pd

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
    import pandas as pd

    users = [str(user) for user in questions["user"]]
    rows = [
        (user, rank, answer.item, float(answer.score))
        for user, answers in zip(users, recommender.recommend_all(users, k), strict=True)
        for rank, answer in enumerate(answers, start=1)
    ]
    return pd.DataFrame(rows, columns=["user", "rank", "item", "score"])
