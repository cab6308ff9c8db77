"""What a study says at its end, in words: the closing table on the terminal, and `report.md`."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imf_core.files.atomic import atomic_write_text
from imf_core.files.markdown import escaped
from imf_core.tasks.registry import task_flags
from tune.durations import duration
from tune.report.files import cell, short
from tune.report.result import StudyResult
from tune.space.objectives import COSTS
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states, ranked

_SHOWN = 10  # trials and failures on the terminal; the leaderboard has all
_MORE = 10  # trials, in the printed command that extends a study
_WORDS = {"valid": "validation", "test": "test"}


def next_commands(result: StudyResult) -> list[tuple[str, str]]:
    """What to do with the study: pairs of purpose and command."""
    commands = []
    if result.checkpoint:
        if ask := result.kind.ask_command(result.checkpoint, result.example or ()):
            commands.append(("ask the winner", shlex.join(ask)))
        if result.test_pooled is not None:
            pool = ["imf", "ensemble", f"{result.folder.absolute()}-pool", str(result.folder.absolute())]
            commands.append(("the kept models that answer best together, as one", shlex.join(pool)))
    if result.tracking_uri:
        store = shlex.join(["mlflow", "ui", "--backend-store-uri", result.tracking_uri])
        commands.append(("see every run", result.tracking_uri if result.tracking_uri.startswith("http") else store))
    folder = result.folder.absolute()
    commands.append(("look at it in Optuna's dashboard", shlex.join(["optuna-dashboard", f"sqlite:///{folder / 'optuna.db'}"])))
    study = ["python", "tune/search.py", "--storage", str(folder.parent), "--study", result.study]
    commands.append(("go on where it was interrupted", shlex.join([*study, "--resume"])))
    commands.append((f"{_MORE} trials more", shlex.join([*study, "--extend", str(_MORE)])))
    again = ["python", "tune/search.py", *task_flags(result.task), "--data", result.data, "--warm-start", str(result.folder)]
    return [*commands, ("search on from here", shlex.join(again))]


def closing_table(console: Console, result: StudyResult) -> None:
    """Print what was tried, pruned, failed and why; the winner; its worth; and the next commands."""
    counts = ", ".join(f"{number} {state}" for state, number in count_states(result.records).items() if number)
    title = f"{result.study}: {len(result.records)} trials ({counts or 'none'}) in {duration(result.wall_seconds)}"
    console.print(Panel(Group(*_closing_parts(result)), title=Text(title), title_align="left"))
    for purpose, command in next_commands(result):
        console.print(Text(f"{purpose}:", style="bold"), Text(command), soft_wrap=True)


def write_report(result: StudyResult) -> Path:
    """Write `report.md` into the study's folder: what was found, what to do with it, and the audit of the data."""
    parts = [
        f"# {result.study}", "", f"`{result.command}`", "", *(f"- {line}" for line in _lines(result)), "",
        "Every trial: [leaderboard.md](leaderboard.md). All numbers: [summary.json](summary.json).", "",
        "![Search history](history.png)", "![Learning curves](curves.png)", "", "## What to do with it", "",
        *(line for purpose, command in next_commands(result) for line in (f"{purpose}:", "", f"    {command}", "")),
    ]
    if result.audit is not None:
        parts.append(result.audit.markdown())
    return atomic_write_text(result.folder / "report.md", "\n".join(parts).rstrip() + "\n")


def _lines(result: StudyResult) -> list[str]:
    """The verdict as plain lines, with what would be markup in Markdown escaped."""
    return [escaped(line.strip()) for text in _verdict(result) for line in text.plain.strip().split("\n")]


def _closing_parts(result: StudyResult) -> Iterable[Table | Text]:
    table = Table(box=None, header_style="bold", expand=True)
    for name in ("rank", "trial", "state", "valid MRR", "epochs", "time"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
    placed = [record for record in ranked(result.records) if record.state.usable and record.best_mrr is not None]
    for rank, record in enumerate(placed[:_SHOWN], start=1):
        row = [str(rank), str(record.number), str(record.state), f"{record.best_mrr:.4f}", str(record.epochs)]
        table.add_row(*row, duration(record.seconds), Text(_settings(record.params)), style="bold" if rank == 1 else None)
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
    for problem in result.audit.problems if result.audit is not None else ():
        yield Text(f"\nthe data has a problem: {problem}", style="bold red")
    best = result.winner
    if best is None:
        yield Text("no winner: no trial was evaluated to an end", style="bold red")
        return
    yield Text(f"\nwinner: trial {best.number}, epoch {best.best_epoch}, validation MRR {best.best_mrr:.4f}", style="bold")
    yield Text("  " + _settings(best.params).replace("  ", "\n  "))
    if result.costs:
        yield Text(f"no trial is better in MRR and {' and '.join(result.costs)} than these:")
        for record in result.front:
            paid = ", ".join(f"{cost_of(record, name)}" for name in result.costs)
            yield Text(f"  trial {record.number}: MRR {record.best_mrr:.4f}, {paid}")
    if (points := result.points_over_structure) is not None:
        worth = f"{_apart(points)} {result.control} ({result.structure_only_mrr:.4f}) with the same settings"
        if count := len(result.winner_seed_mrr):
            retrained = f"mean of {count} seeds" if count > 1 else "1 seed"
            worth += f"; retrained winner {plus_minus(result.winner_validation())}, {retrained}"
        yield Text(f"validation: {worth}", style="green" if points > 0 else "yellow")
    test = {name: value for name, value in result.test().items() if value["mean"] is not None}
    if test:
        numbers = ", ".join(f"{name} {plus_minus(value)}" for name, value in test.items())
        count = len(result.test_runs)
        yield Text(f"test ({count} seed{'s' if count > 1 else ', so no deviation'}): {numbers}")
        if result.test_pooled is not None and test.get("mrr"):
            pooled = result.test_pooled["mrr"]
            gain = 100 * (pooled - float(test["mrr"]["mean"] or 0.0))
            yield Text(f"test, the seeds together: mrr {pooled:.4f}, {_apart(gain)} one of them")
    yield from _without_training(result)


def _apart(points: float) -> str:
    """`3.5 points above`."""
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"


def _without_training(result: StudyResult) -> Iterable[Text]:
    """How the winner stands to the baseline that needs no training."""
    for split, rules in (result.audit.baseline if result.audit is not None else {}).items():
        points = result.points_over_baseline(split)
        line = f"{_WORDS[split]} without training ({result.rules}): MRR {rules.mrr:.4f}"
        if points is None:
            yield Text(line)
        elif points > 0:
            yield Text(f"{line}; the winner is {points:.1f} points above", style="green")
        else:
            below = f"{line}; the winner is {-points:.1f} points below: it has learned less than a table of counts"
            yield Text(below, style="bold red")


def cost_of(record: TrialRecord, name: str) -> str:
    """`12,345 trained parameters`, `0.71 ms time to answer a question`."""
    cost = COSTS[name]
    value = record.metrics[cost.metric]
    number = f"{value:,.0f}" if not cost.unit else f"{value:.3g} {cost.unit}"
    return f"{number} {cost.title}"


def plus_minus(value: Mapping[str, float | None]) -> str:
    """`0.4900 ± 0.0100`, or the mean alone; a mean rank has one digit."""
    digits = 1 if (value["mean"] or 0.0) > 1 else 4  # a mean rank, not a share
    spread = f" ± {value['std']:.{digits}f}" if value["std"] is not None else ""
    return f"{value['mean']:.{digits}f}{spread}"


def _settings(params: Mapping[str, Any]) -> str:
    texts = {name: short(value) if isinstance(value, float) else cell(value) for name, value in sorted(params.items())}
    return "  ".join(f"{name}={text}" for name, text in texts.items())
