"""The results of a study for reading: the closing table on the terminal, and `report.md`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from imf_core.files.atomic import atomic_write_text
from imf_core.files.markdown import one_line
from imf_core.files.programs import command_line, installed
from imf_core.files.visible import visible
from imf_core.tasks.registry import task_flags
from tune.durations import duration
from tune.report.formatting import (
    all_lines,
    cost_of,
    describe_duel,
    differing,
    fitting,
    plural,
    plus_minus,
    setting,
    settings_text,
)
from tune.report.judgement import STYLES, judgements
from tune.report.result import StudyResult, with_ranks
from tune.sources import search_command
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states
from tune.uris import sqlite_url

_SHOWN = 10  # trials and failures on the terminal; the leaderboard has all
_FRAME = 4  # columns that the panel takes
_MORE = 10  # trials, in the printed command that extends a study
_TITLES = {"valid": "validation", "test": "test"}


def next_commands(result: StudyResult) -> list[tuple[str, str]]:
    """Commands for a finished study, which run as they are printed: pairs of purpose and command line."""
    folder = result.folder.absolute()
    commands = []
    if result.checkpoint:
        if ask := result.kind.ask_command(result.checkpoint, result.example or ()):
            commands.append(("ask the winner", command_line(ask)))
        if result.pool is not None and (ask := result.kind.ask_command(folder / "pool", result.example or ())):
            commands.append(("ask the pool", command_line(ask)))
        elif result.test_pooled is not None:
            pool = command_line(["imf", "ensemble", f"{folder}-pool", str(folder)])
            commands.append(("combine the kept models into an ensemble", pool))
    if result.tracking_uri:
        uri = result.tracking_uri
        ui = uri if uri.startswith("http") else command_line(["mlflow", "ui", "--backend-store-uri", uri])
        commands.append(("compare the runs in MLflow", ui))
    if installed("optuna-dashboard"):
        dashboard = command_line(["optuna-dashboard", sqlite_url(folder / "optuna.db")])
        commands.append(("open it in Optuna's dashboard", dashboard))
    study = [*search_command(), "--storage", str(folder.parent), "--study", result.study]
    again = [*search_command(), *task_flags(result.task), "--data", result.data, "--warm-start", str(result.folder)]
    return [
        *commands,
        ("resume it after an interruption", command_line([*study, "--resume"])),
        (f"run {_MORE} more trials", command_line([*study, "--extend", str(_MORE)])),
        ("start a new search from its best points", command_line(again)),
    ]


def closing_table(console: Console, result: StudyResult) -> None:
    """Print the best trials, failures with their reasons, the winner compared with controls, and the next commands."""
    counts = ", ".join(f"{number} {state}" for state, number in count_states(result.records).items() if number)
    title = f"{result.study}: {len(result.records)} trials ({counts or 'none'}) in {duration(result.wall_seconds)}"
    console.print(Panel(Group(*_closing_parts(result, console)), title=Text(title), title_align="left"))
    for purpose, command in next_commands(result):
        console.print(Text(f"{purpose}:", style="bold"), Text(command), soft_wrap=True)


def write_report(result: StudyResult) -> Path:
    """Write `report.md` into the study's folder: the results, the next commands, and the audit of the data."""
    parts = [
        f"# {result.study}", "", f"    {shown(result.command)}", "", *(f"- {line}" for line in _lines(result)), "",
        "All trials: [leaderboard.md](leaderboard.md). All numbers: [summary.json](summary.json).", "",
        "![Search history](history.png)", "![Learning curves](curves.png)", "", "## Next steps", "",
        *(line for purpose, command in next_commands(result) for line in (f"{purpose}:", "", f"    {shown(command)}", "")),
    ]
    if result.audit is not None:
        parts.append(result.audit.markdown())
    return atomic_write_text(result.folder / "report.md", "\n".join(parts).rstrip() + "\n")


def shown(command: str) -> str:
    """A command on one line, without the control characters that a name in it may hold."""
    return visible(command.replace("\n", "\u240a").replace("\t", "\u2409"))


def _lines(result: StudyResult) -> list[str]:
    """The verdict as lines of Markdown."""
    return [one_line(line.strip()) for text in _verdict(result) for line in text.plain.strip().split("\n")]


def _closing_parts(result: StudyResult, console: Console) -> Iterable[Table | Text]:
    placed = [(rank, record) for rank, record in with_ranks(result.records) if rank is not None]
    if placed:
        names = differing([record.params for record in result.records], result.importance)
        yield from _leaderboard(placed[:_SHOWN], names, console)
    if len(placed) > _SHOWN:
        yield Text(f"and {len(placed) - _SHOWN} more in leaderboard.md", style="dim")
    lost = [record for record in result.records if not record.state.usable]
    for record in lost[:_SHOWN]:
        where = f" ({record.log_path})" if record.log_path else ""
        yield Text(f"trial {record.number} {record.state}: {record.reason}{where}", style="red")
    if len(lost) > _SHOWN:
        yield Text(f"and {len(lost) - _SHOWN} more lost trials in leaderboard.md", style="red")
    if pruned := [record for record in result.records if record.state is TrialState.PRUNED]:
        epochs = statistics.mean(record.epochs for record in pruned)
        yield Text(f"{plural(len(pruned), 'trial')} stopped early, after {epochs:.1f} epochs on average: others were ahead")
    yield from _verdict(result)


def _leaderboard(
    placed: Sequence[tuple[int, TrialRecord]], names: Mapping[str, str], console: Console
) -> Iterable[Table | Text]:
    """The best trials with as many of the settings `names` as the terminal has room for, and the names of the others."""

    def build(count: int) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("rank", "trial", "state", "valid MRR", "epochs", "time", *list(names.values())[:count]):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        for rank, record in placed:
            row = [str(rank), str(record.number), str(record.state), f"{record.best_mrr:.4f}", str(record.epochs)]
            params = [Text(setting(record.params.get(name))) for name in list(names)[:count]]
            table.add_row(*row, duration(record.seconds), *params, style="bold" if rank == 1 else None)
        return table

    table, count = fitting(build, len(names), console, console.width - _FRAME)
    yield table
    if rest := list(names.values())[count:]:
        yield Text(f"leaderboard.md also has {', '.join(rest)}", style="dim")


def _verdict(result: StudyResult) -> Iterable[Text]:
    for problem in result.audit.problems if result.audit is not None else ():
        yield Text(f"\nthe data has a problem: {problem}", style="bold red")
    best = result.winner
    if best is None:
        yield Text("no winner: no trial has a validation MRR", style="bold red")
        return
    reached = f"validation MRR {best.best_mrr:.4f}{all_lines(best.metrics.get('mrr_all_lines'))}"
    yield Text(f"\nwinner: trial {best.number}, epoch {best.best_epoch}, {reached}", style="bold")
    if result.duel is not None:
        yield Text(describe_duel(result.duel))
    for told in result.overlaps.values():
        yield Text(told, style="yellow")
    yield Text("  " + settings_text(best.params).replace("  ", "\n  "))
    if result.costs:
        yield Text(f"Pareto front of MRR and {' and '.join(result.costs)}:")
        for record in result.pareto_front:
            costs = ", ".join(cost_of(record, name) for name in result.costs)
            yield Text(f"  trial {record.number}: MRR {record.best_mrr:.4f}, {costs}")
    if (points := result.points_over_structure) is not None:
        comparison = f"{_difference(points)} {result.control} ({result.structure_only_mrr:.4f}) with the same settings"
        if count := len(result.winner_seed_mrr):
            seeds = f"mean of {count} seeds" if count > 1 else "1 seed"
            comparison += f"; retrained winner {plus_minus(result.winner_validation())}, {seeds}"
        yield Text(f"validation: {comparison}", style="green" if points > 0 else "bold red")
    for name, (mrr, told) in result.without_named.items():
        points = result.points_over(mrr)
        behind = f", {_difference(-points)} the retrained winner" if points is not None else ""
        yield Text(f"validation {name}: {mrr:.4f}{behind} ({told})")
    test = {name: value for name, value in result.test().items() if value["mean"] is not None}
    if test:
        numbers = ", ".join(f"{name} {plus_minus(value)}" for name, value in test.items())
        count = len(result.test_runs)
        yield Text(f"test ({plural(count, 'seed')}{'' if count > 1 else ', so no deviation'}): {numbers}")
        yield Text(result.kind.split_note, style="dim")
        if result.test_pooled is not None and test.get("mrr"):
            pooled = result.test_pooled["mrr"]
            gain = 100 * (pooled - float(test["mrr"]["mean"] or 0.0))
            yield Text(f"test, ensemble of the seeds: mrr {pooled:.4f}, {_difference(gain)} the mean of single seeds")
    yield from _pool(result)
    for split, baseline in result.baseline.items():
        line = f"{_TITLES[split]} without training ({result.kind.baseline_name}): MRR {baseline.mrr:.4f}"
        line += all_lines(baseline.as_dict().get("mrr_all_lines"))
        ahead = result.points_over_baseline(split)
        if ahead is None:
            yield Text(line)
        elif ahead > 0:
            yield Text(f"{line}; the winner is {ahead:.1f} points above", style="green")
        else:
            below = f"{line}; the winner is {-ahead:.1f} points below: it has learned less than a table of counts"
            yield Text(below, style="bold red")
    for judgement in judgements(result):
        yield Text(f"{judgement.subject}: {judgement.text}", style=STYLES[judgement.kind])


def _pool(result: StudyResult) -> Iterable[Text]:
    """What the pool answers better than the best model alone, what both cost, and whether more seeds would have done more."""
    sizes = {name: _footprint(footprint) for name, footprint in result.footprints.items()}
    if result.pool is None:
        if "best" in sizes:
            yield Text(f"best/: {sizes['best']}")
        return
    pool, test = result.pool, result.pool.get("test")
    gain = 100 * (pool["held_back_mrr"] - pool["held_back_mrr_of_single"])
    chosen = f"{len(pool['members'])} of {plural(pool['candidates'], 'model')}"
    yield Text(
        f"pool/: {chosen} answer together: validation MRR {pool['validation']['mrr']:.4f}; on triples that they were not "
        f"chosen on, {_difference(gain)} the best single model", style="green" if gain > 0 else "yellow",
    )
    single = result.test()["mrr"]["mean"]
    if test is not None and single is not None:
        yield Text(f"test, pool/: mrr {test['mrr']:.4f}, {_difference(100 * (test['mrr'] - single))} the mean of single seeds")
    if len(sizes) > 1:
        yield Text(f"best/: {sizes['best']}; pool/: {sizes['pool']}")
    if test is not None and result.test_pooled is not None and result.test_pooled["mrr"] > test["mrr"]:
        seeds = f"the seeds of the winner together ({result.test_pooled['mrr']:.4f}) answer better than pool/"
        yield Text(f"{seeds}: more of them (--seeds {2 * len(result.seeds)}) would have been the better buy", style="yellow")


def _footprint(footprint: Mapping[str, float]) -> str:
    """`1.2 million parameters, 4.7 MB, 1.3 ms an answer`."""
    parts = [f"{footprint['parameters'] / 1e6:.2g} million parameters"] if "parameters" in footprint else []
    parts.append(f"{footprint['bytes'] / 1e6:.1f} MB")
    if "latency_ms" in footprint:
        parts.append(f"{footprint['latency_ms']:.1f} ms an answer")
    return ", ".join(parts)


def _difference(points: float) -> str:
    """`3.5 points above`, `1.0 points below`."""
    return f"{abs(points):.1f} points {'above' if points >= 0 else 'below'}"
