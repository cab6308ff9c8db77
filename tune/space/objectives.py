"""Objectives of a search besides the validation MRR. Like `tune/settings.py`, this imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from imf_core.config_base import nearest
from imf_core.errors import ConfigError


@dataclass(frozen=True)
class Cost:
    """A quantity to minimise.

    Args:
        metric: its name in a trial's report.
        title: its name in tables.
        unit: unit of the values; empty for counts.
    """

    metric: str
    title: str
    unit: str = ""


QUALITY = "mrr"
COSTS = {
    "params": Cost("num_parameters", "trained parameters"),
    "latency": Cost("latency_ms", "time to answer a question", "ms"),
}


def parse_objective(text: str) -> tuple[str, ...]:
    """The costs of an objective: `mrr,params` -> `("params",)`.

    Raises:
        ConfigError: an unknown or repeated name, or the MRR is missing.
    """
    names = [name.strip() for name in text.split(",")]
    known = (QUALITY, *COSTS)
    for index, name in enumerate(names):
        if name not in known:
            problem = f"unknown objective {name!r}{nearest(name, known)}"
            remedy = f"choose from {', '.join(known)}, for example mrr,params"
            raise ConfigError(problem, remedy=remedy, key="objective", value=text)
        if name in names[:index]:
            raise ConfigError(f"the objective {name!r} is named twice", remedy="name it once", key="objective", value=text)
    if QUALITY not in names:
        remedy = f"write {','.join([QUALITY, *names])}"
        raise ConfigError(f"the objective {text!r} leaves out {QUALITY}", remedy=remedy, key="objective", value=text)
    return tuple(name for name in names if name != QUALITY)
