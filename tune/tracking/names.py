"""What tracking needs and what knows nothing of MLflow: names and values it accepts, address checks, tables of answers."""

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

MAX_PARAM, MAX_NAME, MAX_BATCH, MAX_METRICS = 6000, 250, 100, 900  # MLflow's own limits
MODEL_CODE = "import mlflow\n\nfrom tune.tracking import ImfPyfunc\n\nmlflow.models.set_model(ImfPyfunc())\n"
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
    with locked(database.parent / f".{database.name}.lock"):
        yield


def requirements() -> list[str]:
    """Exact versions of what a registered model needs, so that MLflow does not have to find out by running it."""
    installed = {item.name.lower(): item.version.partition("+")[0] for item in metadata.distributions() if item.name}
    return [f"{name}=={installed[name.lower()]}" for name in _PINNED if name.lower() in installed]
