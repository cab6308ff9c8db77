"""What a search weighs besides the validation MRR. Nothing here imports ray, see `tune/settings.py`."""

from __future__ import annotations

from dataclasses import dataclass

from imf_core.config_base import nearest
from imf_core.errors import ConfigError


@dataclass(frozen=True)
class Cost:
    """What is to be small.

    Args:
        metric: the number that a trial reports.
        title: for tables.
        unit: of the number, empty for counts.
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
    """`mrr,params` -> the costs besides the MRR: `("params",)`.

    Raises:
        ConfigError: an unknown or repeated name, or the MRR is missing.
    """
    names = [name.strip() for name in text.split(",")]
    known = (QUALITY, *COSTS)
    for place, name in enumerate(names):
        if name not in known:
            problem = f"unknown objective {name!r}{nearest(name, known)}"
            remedy = f"choose from {', '.join(known)}, for example mrr,params"
            raise ConfigError(problem, remedy=remedy, key="objective", value=text)
        if name in names[:place]:
            raise ConfigError(f"the objective {name!r} is named twice", remedy="name it once", key="objective", value=text)
    if QUALITY not in names:
        remedy = f"write {','.join([QUALITY, *names])}"
        raise ConfigError(f"the objective {text!r} leaves out {QUALITY}", remedy=remedy, key="objective", value=text)
    return tuple(name for name in names if name != QUALITY)
