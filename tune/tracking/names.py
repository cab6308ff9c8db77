"""Helpers of tracking that do not import MLflow: names and values that it accepts, URIs, the lock of its database."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from imf_core.files.locks import locked
from tune.uris import database_of

MAX_PARAM, MAX_NAME, MAX_BATCH, MAX_METRICS, MAX_DIGEST = 6000, 250, 100, 900, 36  # MLflow's own limits
MODEL_CODE = "import mlflow\n\nfrom tune.tracking import ImfPyfunc\n\nmlflow.models.set_model(ImfPyfunc())\n"
_PINNED = ("mlflow", "numpy", "pandas", "pydantic", "PyYAML", "ray", "safetensors", "scikit-learn", "torch")


def safe_name(name: str) -> str:
    """The nearest name that MLflow accepts for a metric, parameter or tag.

    `@` becomes `_at_` (`hits@10` -> `hits_at_10`); any character but letters, digits, blanks and `_ - . : /` becomes `_`; the
    path components `.`, `..` and empty ones are dropped; at most 250 characters are kept.
    """
    legal = re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))
    return "/".join(part for part in legal.split("/") if part not in ("", ".", ".."))[:MAX_NAME].rstrip("/") or "_"


def param_text(value: Any) -> str:
    """A setting as text: a string as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def config_text(params: Mapping[str, Any]) -> str:
    """The content of the artifact `config.json`: all settings, untruncated."""
    return json.dumps(dict(params), indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def cut(text: str) -> str:
    """A text shortened to the length that MLflow stores, with `...` at the end if it was."""
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 3] + "..."


def quoted(value: str) -> str:
    """A string literal in MLflow's filter language, which has no escapes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def short(error: BaseException) -> str:
    """The first line of an error message, at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def as_uri(location: str | None) -> str | None:
    """A folder as a `file:` URI, in which blanks and `#` are escaped; a URI as it is."""
    return location if location is None or "://" in location else Path(location).as_uri()


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock next to a SQLite database: two processes that migrate a new database at the same time corrupt it."""
    if not uri.startswith("sqlite"):
        yield
        return
    database = Path(database_of(uri))
    with locked(database.parent / f".{database.name}.lock"):
        yield


def requirements() -> list[str]:
    """The exact requirements of a registered model, so that MLflow does not have to run the model to infer them."""
    installed = {item.name.lower(): item.version.partition("+")[0] for item in metadata.distributions() if item.name}
    return [f"{name}=={installed[name.lower()]}" for name in _PINNED if name.lower() in installed]
