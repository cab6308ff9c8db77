"""How numbers, settings and lists are written in all reports of a study."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from rich.console import Console
from rich.table import Table

from tune.space.objectives import COSTS
from tune.study.records import TrialRecord

NONE = "–"  # stands for a missing value
LEARNING_RATE = "train.lr"


def all_lines(value: Any) -> str:
    """` (all lines 0.6720)`, behind the figure of the clean triples where a split shares some with an earlier one; or empty."""
    return f" (all lines {value:.4f})" if usable(value) else ""


def cell(value: Any) -> str:
    """A setting or number in full: strings as they are, None as an empty string, everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def short(value: float) -> str:
    """A number with four significant digits, without an exponent if it is large."""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def setting(value: Any) -> str:
    """As `cell`, but decimal numbers have four significant digits."""
    return short(value) if isinstance(value, float) and math.isfinite(value) else cell(value)


def settings_text(params: Mapping[str, Any]) -> str:
    """All settings of a trial on one line, separated by two blanks."""
    return "  ".join(f"{name}={setting(value)}" for name, value in sorted(params.items()))


def differing(trials: Iterable[Mapping[str, Any]], importance: Mapping[str, float] | None = None) -> dict[str, str]:
    """The settings that tell trials apart: name -> short name, its last part where no other setting ends like it.

    The learning rate goes first wherever it is searched; then the others, the most important first.

    Args:
        trials: settings of each trial, by name.
        importance: share of each setting, 0..1; settings without one go last, by name.
    """
    trials, importance = list(trials), importance or {}
    names = sorted({name for params in trials for name in params})
    values = {name: {cell(params.get(name, ...)) for params in trials} for name in names}
    shown = [name for name in names if len(values[name]) > 1 or name == LEARNING_RATE]
    shown.sort(key=lambda name: (name != LEARNING_RATE, -importance.get(name, 0.0)))
    ends = Counter(name.rpartition(".")[2] for name in names)
    return {name: last if ends[last := name.rpartition(".")[2]] == 1 else name for name in shown}


def fitting(build: Callable[[int], Table], most: int, console: Console, room: int) -> tuple[Table, int]:
    """The table with as many of its last columns as have room, no cell cut.

    Args:
        build: makes the table with so many of them.
        most: all of them.
        console: where it is printed.
        room: characters.

    Returns:
        the table and the number of those columns.
    """
    wide = console.options.update(max_width=10**6)  # a table is never measured as wider than this
    for count in range(most, 0, -1):
        table = build(count)
        if console.measure(table, options=wide).maximum <= room:
            return table, count
    return build(0), 0


def usable(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def mrr(value: Any) -> str:
    """A metric within 0..1 with four decimals."""
    return f"{value:.4f}" if usable(value) else NONE


def metric(name: str, value: Any) -> str:
    """A metric by its name: a mean rank has one decimal, all others are within 0..1."""
    if name != "mean_rank":
        return mrr(value)
    return f"{value:,.1f}" if usable(value) else NONE


def points(value: float | None) -> str:
    """A difference in points (hundredths), with its sign."""
    return f"{value:+.1f}" if usable(value) else NONE


def plus_minus(value: Mapping[str, float | None]) -> str:
    """`0.4900 ± 0.0100`, or the mean alone if there is no standard deviation."""
    digits = 1 if (value["mean"] or 0.0) > 1 else 4  # above 1 it is a mean rank
    spread = f" ± {value['std']:.{digits}f}" if value["std"] is not None else ""
    return f"{value['mean']:.{digits}f}{spread}"


def cost_of(record: TrialRecord, name: str) -> str:
    """A cost of a trial with its title: `12,345 trained parameters`, `0.71 ms time to answer a question`."""
    cost = COSTS[name]
    value = record.metrics[cost.metric]
    number = f"{value:,.0f}" if not cost.unit else f"{value:.3g} {cost.unit}"
    return f"{number} {cost.title}"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(numbers: Sequence[int], most: int = 20) -> str:
    """`1, 2, 3 and 4 more`."""
    shown = ", ".join(map(str, numbers[:most]))
    return shown + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def describe_duel(duel: Mapping[str, Any]) -> str:
    """A line for the terminal and the report."""
    first, second = duel["mrr"]
    kept = "stays ahead of" if duel["winner"] == duel["first"] else "falls behind"
    return f"with seed {duel['seed']} too, {duel['first']} {kept} {duel['second']}: mean MRR {first:.4f} and {second:.4f}"
