"""What the benchmarks share: a file of finished runs, and the parts that all result pages have."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


class FinishedRuns:
    """The finished runs of a benchmark, one JSON line each, so that an interrupted benchmark continues where it stopped.

    Args:
        file: of the runs; it is created with the first one.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.runs: list[dict[str, Any]] = (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        )

    def find(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The first run with these values; None if there is none."""
        return next((run for run in self.runs if all(run[name] == value for name, value in facts.items())), None)

    def add(self, run: dict[str, Any]) -> dict[str, Any]:
        """Append a run to the file, and return it."""
        self.runs.append(run)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(run) + "\n")
        return run


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and sample standard deviation; a single value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def percent(values: Sequence[float]) -> str:
    """As `spread`, in percent with two decimals."""
    return spread([100 * value for value in values], digits=2)


def host_line(host: Mapping[str, Any]) -> str:
    """Processor, cores and version of torch, from `tune.report.files.machine`."""
    return f"{host['cpu']}, {host['cores']} cores, torch {host['torch']}"
