"""The page of a study, `report.html`: it loads nothing and runs no code, so that it can be mailed and archived.

Jinja2 fills `templates/report.html` and escapes all text, since names, settings and reasons come from data. Only the plots are
inserted as markup; `tune/report/pictures/svg.py` draws them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import imf_core
from imf_core.files.atomic import atomic_write_text
from imf_core.files.pages import rendered
from imf_core.tasks.protocols import Examples, Inspection
from tune.durations import duration
from tune.report.files import machine
from tune.report.formatting import (
    NONE,
    all_lines,
    cost_of,
    differing,
    listed,
    mrr,
    plural,
    plus_minus,
    points,
    setting,
    settings_text,
)
from tune.report.judgement import NOTE, judgements
from tune.report.pictures.parameters import panels, parallel
from tune.report.pictures.svg import curves, history
from tune.report.result import StudyResult, with_ranks
from tune.report.tables import Column, Share, Table, codes, numbers
from tune.report.verdict import next_commands
from tune.report.winner import comparison, decisions_table, look_inside, relations_table, settings_table, test_table
from tune.space.objectives import COSTS
from tune.space.space import Row
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, count_states

HTML_FILE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_PACKAGES = ("optuna", "mlflow", "numpy")  # in addition to those of `machine`
_LOST = (TrialState.FAILED, TrialState.DIVERGED, TrialState.STOPPED)
_NOTES = {  # notes on some commands of `next_commands`
    "start a new search from its best points": "a new study that tries the best points of this one first",
}


def write_html(
    result: StudyResult,
    *,
    space: Sequence[Row] = (),
    examples: Examples | None = None,
    relation_counts: Mapping[str, int] | None = None,
) -> Path:
    """Write `report.html` into the study's folder. Identical results give identical files.

    Args:
        result: results of the study.
        space: all parameters that can be searched, see `SearchSpace.describe`; empty if unknown.
        examples: how the winner answers validation; None if the task has none, or without a winner.
        relation_counts: number of training triples by relation, to list the most frequent relations first.
    """
    page = rendered(_TEMPLATES / HTML_FILE, _content(result, space, examples, relation_counts or {}))
    return atomic_write_text(result.folder / HTML_FILE, page)


def _content(
    result: StudyResult, space: Sequence[Row], examples: Examples | None, relation_counts: Mapping[str, int]
) -> dict[str, Any]:
    """The variables of the template."""
    records, retrained = result.records, result.winner_validation()
    comparison_table, comparison_plot = comparison(result) or (None, "")
    names = differing([record.params for record in records], result.importance)
    return {
        "result": result, "cards": _cards(result), "time": _times(result), "machine": _machine(),
        "space": _space_table(space), "unsearched": _unsearched_table(space), "audit": result.audit,
        "audit_tables": _audit_tables(result), "settings": _settings_table(result),
        "winner": result.winner, "winner_settings": settings_table(result), "test": test_table(result),
        "decisions": decisions_table(result), "retrained": plus_minus(retrained) if retrained["mean"] is not None else "",
        "comparison": comparison_table, "comparison_plot": comparison_plot, "importance": _importance_table(result.importance),
        "judgements": judgements(result), "judgement_note": NOTE,
        "split_note": result.kind.split_note if result.test()["mrr"]["mean"] is not None else "",
        "examples": examples, "relations": relations_table(examples),
        "plots": {
            "parallel": parallel(records, names), "panels": panels(records, names),
            "time": history(records, timed=True) if all(record.ended is not None for record in records) else "",
            "trials": history(records, timed=False), "curves": curves(records),
        },
        "counts": {state: number for state, number in count_states(records).items() if number},
        "pruned": _pruned(records), "leaderboard": _leaderboard(result),
        "front": _front(result),
        "inside": look_inside(_inspection(result), relation_counts),
        "failures": _failures(records), "recovered": _recovered(records),
        "commands": [(purpose, command, _NOTES.get(purpose, "")) for purpose, command in next_commands(result)],
    }


def _inspection(result: StudyResult) -> Inspection | None:
    if result.checkpoint is None or result.winner is None:
        return None
    return result.kind.inspect(result.checkpoint)


def _cards(result: StudyResult) -> Iterator[tuple[str, str, str]]:
    """The key figures at the top: title, figure, explanation."""
    best, test = result.winner, result.test()["mrr"]
    if best is not None:
        told = f"trial {best.number}, epoch {best.best_epoch}{all_lines(best.metrics.get('mrr_all_lines'))}"
        yield "best validation MRR", mrr(best.best_mrr), told
    if test["mean"] is not None:
        seeds = len(result.test_runs)
        told = plural(seeds, "seed") + ("" if seeds > 1 else ", no deviation")
        yield "test MRR", plus_minus(test), told + all_lines(result.test().get("mrr_all_lines", {}).get("mean"))
    if result.points_over_structure is not None:
        yield f"above {result.control}", f"{points(result.points_over_structure)} points", "validation MRR, same settings"
    for split, title in (("test", "test"), ("valid", "validation")):
        if (gain := result.points_over_baseline(split)) is not None:
            yield "above no training", f"{points(gain)} points", f"{title} MRR, {result.kind.baseline_name}"
            break
    lost = sum(not record.state.usable for record in result.records)
    yield "trials", str(len(result.records)), f"{lost} failed or diverged" if lost else "none failed"
    yield "time", duration(result.wall_seconds), "whole study"


def _times(result: StudyResult) -> Iterator[tuple[str, str]]:
    """Begin and end of the trials, durations and the budget."""
    started = [record.started for record in result.records if record.started is not None]
    ended = [record.ended for record in result.records if record.ended is not None]
    for name, at in (("first trial started", min(started, default=None)), ("last trial ended", max(ended, default=None))):
        if at is not None:
            yield name, f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    yield "whole study", duration(result.wall_seconds)
    yield "sum over all trials", duration(sum(record.seconds for record in result.records))
    yield "time budget", duration(result.budget_seconds) if result.budget_seconds is not None else "none"


def _machine() -> list[tuple[str, str]]:
    facts = {"imf-search": imf_core.__version__, **machine(), **{name: metadata.version(name) for name in _PACKAGES}}
    return [(name, str(value)) for name, value in facts.items()]


def _space_table(space: Sequence[Row]) -> Table:
    rows = [[row.name, row.kind, row.range, setting(row.default), row.condition or "always"] for row in space if row.searched]
    columns = (*codes("parameter"), Column("kind"), Column("range"), *codes("first value"), Column("only if"))
    return Table("space", "searched parameters", columns, rows)


def _unsearched_table(space: Sequence[Row]) -> Table:
    rows = [[row.name, setting(row.default), row.range] for row in space if not row.searched]
    columns = (*codes("parameter", "value"), Column("default range"))
    return Table("unsearched", "parameters that were not searched", columns, rows)


def _settings_table(result: StudyResult) -> Table:
    rows = [[name, setting(value)] for name, value in sorted(result.settings.items())]
    return Table("settings", "settings of the study", codes("setting", "value"), rows)


def _audit_tables(result: StudyResult) -> list[Table]:
    if result.audit is None:
        return []
    return [
        Table(name, caption, (Column(columns[0]), *numbers(*columns[1:])), rows)
        for name, (caption, (columns, rows)) in result.audit.tables().items()
    ]


def _importance_table(importance: Mapping[str, float]) -> Table:
    rows = [[name, Share(f"{100 * share:.1f} %", share)] for name, share in importance.items()]
    return Table("importances", "importance of the parameters", (*codes("parameter"), Column("share", "share")), rows)


def _pruned(records: Sequence[TrialRecord]) -> list[str]:
    """The pruned trials by epoch: `at epoch 2: trials 3, 7`."""
    trials: dict[int, list[int]] = {}
    for record in records:
        if record.state is TrialState.PRUNED:
            trials.setdefault(record.epochs, []).append(record.number)
    return [f"at epoch {epoch}: trial{'s' * (len(of) > 1)} {listed(of)}" for epoch, of in sorted(trials.items())]


def _leaderboard(result: StudyResult) -> Table:
    records = result.records
    names, ranking = differing([record.params for record in records], result.importance), with_ranks(records)
    rows = [
        [
            setting(rank), str(record.number), str(record.state), mrr(record.best_mrr), setting(record.best_epoch) or NONE,
            str(record.epochs), duration(record.seconds), str(record.retries),
            *(setting(record.params.get(name)) for name in names), record.reason,
        ]
        for rank, record in ranking
    ]
    columns = (
        *numbers("rank", "trial"), Column("state", "state"),
        *numbers("validation MRR", "best epoch", "epochs", "time", "retries"), *codes(*names.values()), Column("reason"),
    )
    same = {name: value for record in records for name, value in record.params.items() if name not in names}
    note = f"The same in all trials: {settings_text(same)}" if same else ""
    marked = 0 if ranking and ranking[0][0] else None
    return Table("leaderboard", "all trials, best first", columns, rows, marked=marked, note=note)


def _front(result: StudyResult) -> Table:
    front = result.pareto_front
    names = differing([record.params for record in front], result.importance)
    rows = [
        [str(record.number), mrr(record.best_mrr), *(cost_of(record, name) for name in result.costs),
         *(setting(record.params.get(name)) for name in names)]
        for record in front
    ]
    costs = [Column(COSTS[name].title) for name in result.costs]
    columns = (*numbers("trial", "validation MRR"), *costs, *codes(*names.values()))
    return Table("front", "Pareto front: trials that no other trial dominates in MRR and costs", columns, rows)


def _failures(records: Sequence[TrialRecord]) -> Table:
    rows = [
        [
            str(record.number), str(record.state), record.reason or NONE, str(record.retries), _reaction(record),
            record.log_path or NONE,
        ]
        for record in records if record.state in _LOST
    ]
    columns = (
        *numbers("trial"), Column("state", "state"), Column("reason"), *numbers("retries"), Column("reaction"), *codes("log"),
    )
    return Table("failures-table", "failures", columns, rows)


def _reaction(record: TrialRecord) -> str:
    """How the search reacted to a trial that failed, diverged or was stopped."""
    if record.state is TrialState.STOPPED:
        return f"ended with the search; {'its best value counts' if record.best_mrr is not None else 'it has no value'}"
    retried = f"retried {_times_text(record.retries)}" if record.retries else "not retried"
    if record.state is TrialState.DIVERGED:
        retried += " before it diverged" if record.retries else ", because equal settings and seed would diverge again"
    return f"{retried}; the search continued without it"


def _recovered(records: Sequence[TrialRecord]) -> list[str]:
    """Trials that succeeded after being retried."""
    return [
        f"Trial {record.number} was retried {_times_text(record.retries)} after its worker had died: {record.state}"
        for record in records if record.retries and record.state not in _LOST
    ]


def _times_text(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
