"""What a study found as one page, `report.html`: nothing in it is fetched and nothing runs, so it can be mailed and kept.

The page is `templates/report.html`, filled by Jinja2, which escapes all text: names of entities and relations, settings and
reasons come from data. Only the pictures are markup, and those are drawn here (`tune/report/svg.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import imf_core
from imf_core.files.atomic import atomic_write_text
from imf_core.tasks.protocols import Inspection
from tune.durations import duration
from tune.report.files import machine
from tune.report.result import StudyResult
from tune.report.svg import curves, history
from tune.report.tables import NONE, Column, Share, Table, listed, mrr, points, printable, setting
from tune.report.verdict import cost_of, next_commands, plus_minus
from tune.report.winner import comparison, figures_on_test, look_inside, otherwise_on_test, settings_table
from tune.space.objectives import COSTS
from tune.space.space import Row
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states, ranked

HTML_FILE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGES = ("optuna", "mlflow", "numpy")  # beside those of `machine`
_LOST = (TrialState.FAILED, TrialState.DIVERGED, TrialState.STOPPED)
_PURPOSES = {  # what a command of `next_commands` needs said beside it
    "look at it in Optuna's dashboard": "optuna-dashboard is a package of its own",
    "search on from here": "a new study that begins with the best points of this one",
}


def write_html(
    result: StudyResult,
    *,
    space: Sequence[Row] = (),
    importance: Mapping[str, float] | None = None,
    relation_counts: Mapping[str, int] | None = None,
) -> Path:
    """Write `report.html` into the study's folder. Equal results give equal files.

    Args:
        result: of the study.
        space: every parameter that can be tuned, as `SearchSpace.describe` lists them; empty where it is not known.
        importance: share of each parameter, 0..1, the largest first (`tune.study.sampler.importances`).
        relation_counts: training triples of each relation, by its name; they say which are the most frequent.
    """
    page = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(HTML_FILE).render(_content(result, space, importance or {}, relation_counts or {}))
    return atomic_write_text(result.folder / HTML_FILE, printable(page))


def _content(
    result: StudyResult, space: Sequence[Row], importance: Mapping[str, float], relation_counts: Mapping[str, int]
) -> dict[str, Any]:
    """All that the template shows."""
    records = result.records
    compared = comparison(result)
    return {
        "result": result, "cards": _cards(result), "time": _times(result), "machine": _machine(),
        "space": _space_table(space), "unsearched": _unsearched_table(space), "audit": result.audit,
        "audit_tables": _audit_tables(result),
        "settings": _settings_table(result),
        "winner": result.winner, "winner_settings": settings_table(result), "test": figures_on_test(result),
        "otherwise": otherwise_on_test(result),
        "retrained": plus_minus(result.winner_validation()) if result.winner_validation()["mean"] is not None else "",
        "comparison": compared[0] if compared else None, "comparison_picture": compared[1] if compared else "",
        "importance": _importance_table(importance),
        "pictures": {
            "time": history(records, timed=True) if all(record.ended is not None for record in records) else "",
            "trials": history(records, timed=False), "curves": curves(records),
        },
        "counts": {state: number for state, number in count_states(records).items() if number},
        "pruned": _pruned(records), "leaderboard": _leaderboard(records),
        "front": _front(result),
        "inside": look_inside(_inspection(result), relation_counts),
        "failures": _failures(records), "recovered": _recovered(records),
        "commands": [(purpose, command, _PURPOSES.get(purpose, "")) for purpose, command in next_commands(result)],
    }


def _inspection(result: StudyResult) -> Inspection | None:
    if result.checkpoint is None or result.winner is None:
        return None
    return result.kind.inspect(result.checkpoint)


def _cards(result: StudyResult) -> Iterator[tuple[str, str, str]]:
    """The figures at the top: title, figure, what it is of."""
    best, test = result.winner, result.test()["mrr"]
    if best is not None:
        yield "best validation MRR", mrr(best.best_mrr), f"trial {best.number}, epoch {best.best_epoch}"
    if test["mean"] is not None:
        seeds = len(result.test_runs)
        yield "test MRR", plus_minus(test), f"{seeds} seeds" if seeds > 1 else "1 seed, no deviation"
    if result.points_over_structure is not None:
        yield f"above {result.control}", f"{points(result.points_over_structure)} points", "validation MRR, same settings"
    split = "test" if result.points_over_baseline("test") is not None else "valid"
    if result.points_over_baseline(split) is not None:
        on = "test" if split == "test" else "validation"
        yield "above no training", f"{points(result.points_over_baseline(split))} points", f"{on} MRR, {result.rules}"
    lost = sum(not record.state.usable for record in result.records)
    yield "trials", str(len(result.records)), f"{lost} failed or diverged" if lost else "none failed"
    yield "time", duration(result.wall_seconds), "of the whole command"


def _times(result: StudyResult) -> list[tuple[str, str]]:
    """When it was, from the trials; how long, and of how much."""
    began = min((record.started for record in result.records if record.started is not None), default=None)
    ended = max((record.ended for record in result.records if record.ended is not None), default=None)
    budget = duration(result.budget_seconds) if result.budget_seconds is not None else "none"
    said = [("first trial began", began), ("last trial ended", ended)]
    lines = [(name, f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC") for name, at in said if at is not None]
    trained = duration(sum(record.seconds for record in result.records))
    return [*lines, ("whole command", duration(result.wall_seconds)), ("all trials together", trained), ("time budget", budget)]


def _machine() -> list[tuple[str, str]]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    found = {"imf-search": imf_core.__version__, **machine(), **versions}
    return [(name, str(value)) for name, value in found.items()]


def _space_table(space: Sequence[Row]) -> Table:
    rows = [[row.name, row.kind, row.range, setting(row.default), row.condition or "always"] for row in space if row.searched]
    columns = (
        Column("parameter", "code"), Column("kind"), Column("range"), Column("first value", "code"), Column("only where"),
    )
    return Table("space", "searched parameters", columns, rows)


def _unsearched_table(space: Sequence[Row]) -> Table:
    columns = (Column("parameter", "code"), Column("value", "code"), Column("range, if it were searched"))
    rows = [[row.name, setting(row.default), row.range] for row in space if not row.searched]
    return Table("unsearched", "parameters that were held at one value", columns, rows)


def _settings_table(result: StudyResult) -> Table:
    rows = [[name, setting(value)] for name, value in sorted(result.settings.items())]
    return Table("settings", "settings of the study", (Column("setting", "code"), Column("value", "code")), rows)


def _audit_tables(result: StudyResult) -> list[Table]:
    if result.audit is None:
        return []
    return [
        Table(name, caption, (Column(columns[0]), *(Column(title, "number") for title in columns[1:])), rows)
        for name, (caption, (columns, rows)) in result.audit.tables().items()
    ]


def _importance_table(importance: Mapping[str, float]) -> Table:
    rows = [[name, Share(f"{100 * share:.1f} %", share)] for name, share in importance.items()]
    return Table("importances", "importance of the parameters", (Column("parameter", "code"), Column("share", "share")), rows)


def _pruned(records: Sequence[TrialRecord]) -> list[str]:
    """`at epoch 2: trials 3, 7`."""
    found: dict[int, list[int]] = {}
    for record in records:
        if record.state is TrialState.PRUNED:
            found.setdefault(record.epochs, []).append(record.number)
    return [
        f"at epoch {epoch}: trial{'s' * (len(numbers) > 1)} {listed(numbers)}" for epoch, numbers in sorted(found.items())
    ]


def _leaderboard(records: Sequence[TrialRecord]) -> Table:
    """All trials, the best first; one without a usable value has no rank."""
    names = sorted({name for record in records for name in record.params})
    rows, marked = [], None
    for position, record in enumerate(ranked(records)):
        placed = record.state.usable and record.best_mrr is not None
        marked = 0 if placed and not position else marked
        rows.append([
            str(position + 1) if placed else "", str(record.number), str(record.state), mrr(record.best_mrr),
            setting(record.best_epoch) or NONE, str(record.epochs), duration(record.seconds), str(record.retries),
            *(setting(record.params.get(name)) for name in names), record.reason,
        ])
    columns = (
        Column("rank", "number"), Column("trial", "number"), Column("state", "state"), Column("validation MRR", "number"),
        Column("best epoch", "number"), Column("epochs", "number"), Column("time", "number"), Column("retries", "number"),
        *(Column(name, "code") for name in names), Column("reason"),
    )
    return Table("leaderboard", "all trials, the best first", columns, rows, marked=marked)


def _front(result: StudyResult) -> Table:
    """The trials that nothing beats in all that was weighed."""
    names = sorted({name for record in result.front for name in record.params})
    rows = [
        [str(record.number), mrr(record.best_mrr), *(cost_of(record, name) for name in result.costs),
         *(setting(record.params.get(name)) for name in names)]
        for record in result.front
    ]
    columns = (
        Column("trial", "number"), Column("validation MRR", "number"), *(Column(COSTS[name].title) for name in result.costs),
        *(Column(name, "code") for name in names),
    )
    return Table("front", "no trial is better in MRR and all costs than these", columns, rows)


def _failures(records: Sequence[TrialRecord]) -> Table:
    rows = [
        [
            str(record.number), str(record.state), record.reason or NONE, str(record.retries), _done(record),
            record.log_path or NONE,
        ]
        for record in records if record.state in _LOST
    ]
    columns = (
        Column("trial", "number"), Column("state", "state"), Column("reason"), Column("retries", "number"),
        Column("what was done"), Column("log", "code"),
    )
    return Table("failures-table", "failures", columns, rows)


def _done(record: TrialRecord) -> str:
    """What the search did about a trial that was lost or left."""
    again = f"started again {_times_said(record.retries)}" if record.retries else "not started again"
    if record.state is TrialState.STOPPED:
        kept = "its best value so far counts" if record.best_mrr is not None else "it has no value"
        return f"ended with the search; {kept}"
    if record.state is TrialState.DIVERGED:
        again += ", since equal settings and seed diverge again" if not record.retries else " before"
    return f"{again}; the search went on without it"


def _recovered(records: Sequence[TrialRecord]) -> list[str]:
    """Trials that were started again and ended well."""
    return [
        f"trial {record.number} was started again {_times_said(record.retries)} after its worker had died: {record.state}"
        for record in records if record.retries and record.state not in _LOST
    ]


def _times_said(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
