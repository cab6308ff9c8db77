"""What a study says at its end: leaderboard, `summary.json`, the closing table on the terminal, two plots."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tune.records import TrialRecord, TrialState, atomic_write_text, count_states, ranked, winner
from tune.report_plots import plots, save_picture

__all__ = [
    "StudyResult", "closing_table", "machine", "next_commands", "plots", "save_picture", "summary", "write_leaderboard",
    "write_summary",
]

TEST_METRICS = ("mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank")
_SHOWN = 10  # trials and failures on the terminal; the leaderboard has all


@dataclass(frozen=True)
class StudyResult:
    """Everything that is known when a study has ended.

    Args:
        study: its name.
        folder: where its files lie.
        data: path or name of the data set.
        data_fingerprint: of the graph and its features.
        records: one a trial.
        wall_seconds: of the whole command.
        command: as typed, to repeat it.
        structure_only_mrr: validation MRR of the winner's settings without any modality; None if not run.
        test_runs: test metrics of the retrained winner, one mapping a seed.
        seeds: of those runs.
        checkpoint: folder of the best checkpoint; None if nothing was trained to an end.
        tracking_uri: MLflow's.
        example: a head and a relation to ask about in the printed command.
        winner_seed_mrr: best validation MRR of the winner retrained with each seed.
        test_opened: how often the test file was read.
        budget_seconds: time allowed for the trials; None for no limit.
        settings: of the search, as plain values.
    """

    study: str
    folder: Path
    data: str
    data_fingerprint: str
    records: tuple[TrialRecord, ...]
    wall_seconds: float
    command: str
    structure_only_mrr: float | None = None
    test_runs: tuple[Mapping[str, float], ...] = ()
    seeds: tuple[int, ...] = ()
    checkpoint: Path | None = None
    tracking_uri: str | None = None
    example: tuple[str, str] | None = None
    winner_seed_mrr: tuple[float, ...] = ()
    test_opened: int = 0
    budget_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def winner(self) -> TrialRecord | None:
        """The trial with the best validation MRR."""
        return winner(self.records)

    @property
    def points_over_structure(self) -> float | None:
        """Validation MRR of the winner above structure alone, in points (hundredths); None where unknown.

        Like against like: the retrained winners ran as many epochs as the structure-only run, so their mean stands for the
        winner where there are any. The trial's own best is the highest of many and would flatter it.
        """
        fused, alone = self.winner_validation()["mean"], self.structure_only_mrr
        if not self.winner_seed_mrr:
            fused = self.winner.best_mrr if self.winner else None
        if fused is None or alone is None or not math.isfinite(alone):
            return None
        return 100 * (fused - alone)

    def winner_validation(self) -> dict[str, float | None]:
        """Mean and sample deviation of the retrained winner's best validation MRR over the seeds."""
        return _mean_std(self.winner_seed_mrr)

    def test(self) -> dict[str, dict[str, float | None]]:
        """Mean and sample deviation (n - 1) over the seeds; None where unknown: no test, or one seed has no deviation."""
        return {name: _mean_std([run[name] for run in self.test_runs if name in run]) for name in TEST_METRICS}


def write_leaderboard(records: Sequence[TrialRecord], folder: Path | str) -> tuple[Path, Path]:
    """Write `leaderboard.csv` (full values) and `leaderboard.md` (for reading), best validation MRR first.

    A trial without a usable value (failed, diverged, never evaluated) has no rank and stands at the end with its reason.
    """
    names = sorted({name for record in records for name in record.params})
    head = ["rank", "trial", "state", "best_validation_mrr", "epochs", "best_epoch", "seconds", "retries", *names, "reason"]
    rows = []
    for rank, record in enumerate(ranked(records), start=1):
        placed = record.state.usable and record.best_mrr is not None
        settings = [_cell(record.params.get(name)) for name in names]
        rows.append([
            str(rank) if placed else "", str(record.number), str(record.state), _cell(record.best_mrr), str(record.epochs),
            _cell(record.best_epoch), f"{record.seconds:.1f}", str(record.retries), *settings, record.reason,
        ])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([head, *rows])
    lines = ["| " + " | ".join(map(_markdown, row)) + " |" for row in (head, ["---"] * len(head), *map(_rounded, rows))]
    csv_path = atomic_write_text(Path(folder) / "leaderboard.csv", table.getvalue())
    return csv_path, atomic_write_text(Path(folder) / "leaderboard.md", "\n".join(["# Leaderboard", "", *lines, ""]))


def machine() -> dict[str, Any]:
    """Processor, usable cores and the versions that decide about time and numbers."""
    return {
        "cpu": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(), "torch": metadata.version("torch"), "ray": metadata.version("ray"),
    }


def summary(result: StudyResult) -> dict[str, Any]:
    """The study in numbers, ready for JSON."""
    best = result.winner
    won = {"trial": best.number, "epoch": best.best_epoch, "params": best.params, "metrics": best.metrics} if best else None
    return {
        "study": result.study, "data": result.data, "data_fingerprint": result.data_fingerprint,
        "trials": count_states(result.records), "best_validation_mrr": best.best_mrr if best else None,
        "structure_only_validation_mrr": result.structure_only_mrr, "points_over_structure_only": result.points_over_structure,
        "winner": won,
        "winner_validation_mrr": {"by_seed": list(result.winner_seed_mrr), **result.winner_validation()},
        "test": result.test(), "test_opened": result.test_opened, "seeds": list(result.seeds),
        "settings": dict(result.settings), "budget_seconds": result.budget_seconds,
        "wall_seconds": round(result.wall_seconds, 1),
        "checkpoint": str(result.checkpoint) if result.checkpoint else None, "command": result.command, "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_summary(result: StudyResult) -> Path:
    """Write `summary.json` into the study's folder."""
    text = json.dumps(_finite(summary(result)), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return atomic_write_text(result.folder / "summary.json", text + "\n")


def next_commands(result: StudyResult) -> list[tuple[str, str]]:
    """What to do with the study: pairs of purpose and command."""
    commands = []
    if result.checkpoint:
        head, relation = result.example or ("NAME", "RELATION")
        ask = ["imf", "predict", str(result.checkpoint), "--head", head, "--relation", relation]
        commands.append(("ask the winner", shlex.join(ask)))
    if result.tracking_uri:
        store = shlex.join(["mlflow", "ui", "--backend-store-uri", result.tracking_uri])
        commands.append(("see every run", result.tracking_uri if result.tracking_uri.startswith("http") else store))
    again = ["python", "tune/search.py", "--data", result.data, "--warm-start", str(result.folder)]
    return [*commands, ("search on from here", shlex.join(again))]


def closing_table(console: Console, result: StudyResult) -> None:
    """Print what was tried, pruned, failed and why; the winner; its worth; and the next commands."""
    counts = ", ".join(f"{number} {state}" for state, number in count_states(result.records).items() if number)
    title = f"{result.study}: {len(result.records)} trials ({counts or 'none'}) in {_duration(result.wall_seconds)}"
    console.print(Panel(Group(*_closing_parts(result)), title=Text(title), title_align="left"))
    for purpose, command in next_commands(result):
        console.print(Text(f"{purpose}:", style="bold"), Text(command), soft_wrap=True)


def _closing_parts(result: StudyResult) -> Iterable[Table | Text]:
    table = Table(box=None, header_style="bold", expand=True)
    for name in ("rank", "trial", "state", "valid MRR", "epochs", "time"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
    placed = [record for record in ranked(result.records) if record.state.usable and record.best_mrr is not None]
    for rank, record in enumerate(placed[:_SHOWN], start=1):
        row = [str(rank), str(record.number), str(record.state), f"{record.best_mrr:.4f}", str(record.epochs)]
        table.add_row(*row, _duration(record.seconds), Text(_settings(record.params)), style="bold" if rank == 1 else None)
    if placed:
        yield table
    if len(placed) > _SHOWN:
        yield Text(f"and {len(placed) - _SHOWN} more in leaderboard.md", style="dim")
    lost = [record for record in result.records if not record.state.usable]
    for record in lost[:_SHOWN]:
        where = f" ({record.log_path})" if record.log_path else ""
        yield Text(f"trial {record.number} {record.state}: {record.reason}{where}", style="red")
    if len(lost) > _SHOWN:
        yield Text(f"and {len(lost) - _SHOWN} more lost trials in leaderboard.md", style="red")
    if pruned := [record for record in result.records if record.state is TrialState.PRUNED]:
        saved = statistics.mean(record.epochs for record in pruned)
        yield Text(f"stopped early because others were ahead: {len(pruned)}, after {saved:.1f} epochs on average")
    yield from _verdict(result)


def _verdict(result: StudyResult) -> Iterable[Text]:
    best = result.winner
    if best is None:
        yield Text("no winner: no trial was evaluated to an end", style="bold red")
        return
    yield Text(f"\nwinner: trial {best.number}, epoch {best.best_epoch}, validation MRR {best.best_mrr:.4f}", style="bold")
    yield Text("  " + _settings(best.params).replace("  ", "\n  "))
    if (points := result.points_over_structure) is not None:
        word = "above" if points >= 0 else "below"
        worth = f"{abs(points):.1f} points {word} structure alone ({result.structure_only_mrr:.4f}) with the same settings"
        if count := len(result.winner_seed_mrr):
            retrained = f"mean of {count} seeds" if count > 1 else "1 seed"
            worth += f"; retrained winner {_plus_minus(result.winner_validation())}, {retrained}"
        yield Text(f"validation: {worth}", style="green" if points > 0 else "yellow")
    test = {name: value for name, value in result.test().items() if value["mean"] is not None}
    if test:
        numbers = ", ".join(f"{name} {_plus_minus(value)}" for name, value in test.items())
        count = len(result.test_runs)
        yield Text(f"test ({count} seed{'s' if count > 1 else ', so no deviation'}): {numbers}")


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(finite), "std": statistics.stdev(finite) if len(finite) > 1 else None}


def _plus_minus(value: Mapping[str, float | None]) -> str:
    digits = 1 if (value["mean"] or 0.0) > 1 else 4  # a mean rank, not a share
    spread = f" ± {value['std']:.{digits}f}" if value["std"] is not None else ""
    return f"{value['mean']:.{digits}f}{spread}"


def _finite(value: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _rounded(row: Sequence[str]) -> list[str]:
    """Decimal numbers with four digits (without an exponent where they are large), everything else as it is."""
    return [_short(float(cell)) if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", cell) else cell for cell in row]


def _short(value: float) -> str:
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def _markdown(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _settings(params: Mapping[str, Any]) -> str:
    short = {name: _short(value) if isinstance(value, float) else _cell(value) for name, value in sorted(params.items())}
    return "  ".join(f"{name}={value}" for name, value in short.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
