"""Warm start: a search begins with the best points of an earlier study, and with their values if they still apply."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.errors import ConfigError, DataError
from imf_core.files.json_files import parse_json
from tune.settings import METRIC
from tune.space.space import SearchSpace
from tune.study.journal import JOURNAL_FILE, begun_study, read_events
from tune.study.outcome import TrialState
from tune.study.records import load_records
from tune.study.schedule import is_finite

POINTS = 5  # number of points that are tried again if their values do not apply
# Ties that do not change a trial's value: how it was searched for, and the version of the code.
_IRRELEVANT = ("space: ", "sampler.", "first", "scheduler", "grace", "reduction", "code", "version")
_WITH_VALUE = (TrialState.COMPLETED, TrialState.PRUNED)  # a trial that the budget cut short says less
_COLUMNS = ("rank", "trial", "state", "best_validation_mrr", "epochs", "best_epoch", "seconds", "retries", "reason")


@dataclass(frozen=True)
class WarmStart:
    """The points of an earlier study.

    Args:
        points: to be tried first, best first.
        known: points with their validation MRR, for the sampler; they are not trained again.
        note: message for the user: the source, and why values were not reused; empty without a warm start.
    """

    points: tuple[dict[str, Any], ...] = ()
    known: tuple[tuple[dict[str, Any], float], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class _Row:
    """A trial of the earlier study: where it is written, its settings, and its validation MRR."""

    location: str
    params: Mapping[str, Any]
    value: float


def warm_start(source: Path | None, space: SearchSpace, tied: Mapping[str, Any]) -> WarmStart:
    """Read the points of an earlier study or of its `leaderboard.csv`.

    If that study had the same data, features and fixed settings, its values apply here too: only its best point is trained
    again, and the sampler is given all others with their values. Otherwise its best points are tried first.

    Args:
        source: folder of the study, or a CSV file like `leaderboard.csv`; None: no warm start.
        space: the space of the new search.
        tied: what the new study is tied to, see `tune.plan.opening.ties`.

    Raises:
        DataError: the trials cannot be read; names file and line.
        ConfigError: no trial has a finite value, or a point does not fit the space; names trial, parameter and range.
    """
    if source is None:
        return WarmStart()
    rows = _rows_of_table(source) if source.is_file() else _rows_of_study(source)
    if not rows:
        problem = f"warm start: no trial in {source} has a finite value"
        raise ConfigError(problem, remedy="name a study that finished a trial", key="warm_start", value=str(source))
    points: list[tuple[dict[str, Any], float]] = []
    for row in sorted(rows, key=lambda row: -row.value):
        try:
            point = space.validate_point(row.params)
        except ConfigError as error:
            raise ConfigError(
                f"warm start: {row.location} does not fit this search: {error.problem}",
                remedy=f"{error.remedy}; or search the same parameters as in that study", **error.facts,
            ) from error
        if point not in [known for known, _ in points]:
            points.append((point, row.value))
    differing = _differing(source, tied)
    if differing is None or differing:
        why = "its data is not on record" if differing is None else f"it had other {', '.join(differing[:4])}"
        note = f"begins with {min(POINTS, len(points))} points of {source}, without their values ({why})"
        return WarmStart(tuple(point for point, _ in points[:POINTS]), (), note)
    complete = [(point, value) for point, value in points[1:] if space.is_complete(point)]
    note = f"begins with the best point of {source}; the values of {len(complete)} more are reused without training them again"
    return WarmStart((points[0][0],), tuple(complete), note)


def _rows_of_study(folder: Path) -> list[_Row]:
    return [
        _Row(f"trial {record.number} of {folder}", record.params, float(record.best_mrr or 0.0))
        for record in load_records(folder) if record.state in _WITH_VALUE and is_finite({METRIC: record.best_mrr})
    ]


def _rows_of_table(file: Path) -> list[_Row]:
    """The trials of a leaderboard. Columns not in `_COLUMNS` are settings; an empty cell is a setting that the trial lacks."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            missing = [name for name in ("state", "best_validation_mrr") if name not in (lines.fieldnames or ())]
            if missing:
                remedy = "name the leaderboard.csv of a study, or its folder"
                raise DataError.at(file, 1, f"the column {missing[0]!r} is missing", remedy=remedy)
            rows = [_row(file, lines.line_num, line) for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError.at(file, None, f"cannot be read as a table: {error}", remedy="name a leaderboard.csv") from error
    return [row for row in rows if row is not None]


def _row(file: Path, number: int, line: Mapping[str | None, Any]) -> _Row | None:
    if None in line or None in line.values():
        raise DataError.at(file, number, "the line and the header have different numbers of cells", remedy="correct the line")
    value = line["best_validation_mrr"]
    if line["state"] not in _WITH_VALUE or not value:
        return None
    try:
        mrr = float(value)
    except ValueError:
        mrr = float("nan")
    if not is_finite({METRIC: mrr}):
        raise DataError.at(file, number, "best_validation_mrr is not a finite number", value=value,
                           remedy="correct or empty the cell")
    settings = {str(name): _parsed(cell) for name, cell in line.items() if name not in _COLUMNS and cell}
    return _Row(f"{file}, line {number},", settings, mrr)


def _parsed(cell: str) -> Any:
    try:
        return parse_json(cell)
    except ValueError:
        return cell


def _differing(source: Path, tied: Mapping[str, Any]) -> list[str] | None:
    """Names of ties that change a trial's value and differ from the earlier study's; None if that has no journal."""
    journal = (source if source.is_dir() else source.parent) / JOURNAL_FILE
    if not journal.is_file():
        return None
    events, _ = read_events(journal)
    if not events:
        return None
    earlier = begun_study(journal, events, "tied")["tied"]
    return [name for name in {**earlier, **tied} if not name.startswith(_IRRELEVANT) and earlier.get(name) != tied.get(name)]
