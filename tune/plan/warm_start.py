"""Points, and values where they hold, that a search begins with because an earlier one found them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.errors import ConfigError, DataError
from tune.settings import METRIC
from tune.space.space import SearchSpace
from tune.study.journal import JOURNAL_FILE, read_events
from tune.study.outcome import TrialState
from tune.study.records import load_records
from tune.study.schedule import is_finite

POINTS = 5  # points tried first where their values are not known here
# What a value does not rest on: how it was searched for, and by which version of the code.
_HOW = ("space: ", "sampler.", "first", "scheduler", "grace", "reduction", "code", "version")
_WITH_VALUE = (TrialState.COMPLETED, TrialState.PRUNED)  # a trial that was cut short says less
_COLUMNS = ("rank", "trial", "state", "best_validation_mrr", "epochs", "best_epoch", "seconds", "retries", "reason")


@dataclass(frozen=True)
class WarmStart:
    """What a search begins with besides its default point.

    Args:
        points: tried first, best first.
        known: points and their validation MRR, which inform the sampler and are not trained.
        note: where it comes from and why values were not taken over, for the user; empty: there is nothing.
    """

    points: tuple[dict[str, Any], ...] = ()
    known: tuple[tuple[dict[str, Any], float], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class _Row:
    """A trial of the earlier study: where it stands, its settings and value."""

    place: str
    params: Mapping[str, Any]
    value: float


def warm_start(source: Path | None, space: SearchSpace, tied: Mapping[str, Any]) -> WarmStart:
    """Begin with what an earlier study, or its `leaderboard.csv`, says.

    Its best points are tried first. Where that study had the same data, features and fixed settings its values hold here too:
    then only its best point is trained again, and all others are told to the sampler with their values.

    Args:
        source: folder of the study, or a CSV file in the form of `leaderboard.csv`; None: nothing.
        space: what is searched now.
        tied: what the new study is tied to, see `tune.plan.opening.ties`.

    Raises:
        DataError: no readable trials, with file and line.
        ConfigError: no trial with a finite value; or a point that does not fit the space, with trial, parameter and range.
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
                f"warm start: {row.place} does not fit this search: {error.problem}",
                remedy=f"{error.remedy}; or search the same parameters as then", **error.facts,
            ) from error
        if point not in [known for known, _ in points]:
            points.append((point, row.value))
    differing = _differing(source, tied)
    if differing is None or differing:
        why = "its data is not on record" if differing is None else f"other {', '.join(differing[:4])} then"
        note = f"begins with {min(POINTS, len(points))} points of {source}, without their values ({why})"
        return WarmStart(tuple(point for point, _ in points[:POINTS]), (), note)
    complete = [(point, value) for point, value in points[1:] if space.is_complete(point)]
    note = f"begins with the best point of {source}; {len(complete)} more are known with their values and not trained again"
    return WarmStart((points[0][0],), tuple(complete), note)


def _rows_of_study(folder: Path) -> list[_Row]:
    return [
        _Row(f"trial {record.number} of {folder}", record.params, float(record.best_mrr or 0.0))
        for record in load_records(folder) if record.state in _WITH_VALUE and is_finite({METRIC: record.best_mrr})
    ]


def _rows_of_table(file: Path) -> list[_Row]:
    """Trials of a leaderboard; columns that are not about the trial are its settings, an empty cell is none."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.DictReader(stream, strict=True)
            wanted = [name for name in ("state", "best_validation_mrr") if name not in (lines.fieldnames or ())]
            if wanted:
                remedy = "name the leaderboard.csv of a study, or its folder"
                raise DataError.at(file, 1, f"the column {wanted[0]!r} is missing", remedy=remedy)
            rows = [_row(file, lines.line_num, line) for line in lines]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError.at(file, None, f"cannot be read as a table: {error}", remedy="name a leaderboard.csv") from error
    return [row for row in rows if row is not None]


def _row(file: Path, number: int, line: Mapping[str | None, Any]) -> _Row | None:
    if None in line or None in line.values():
        raise DataError.at(file, number, "the line has not as many cells as the first", remedy="correct the line")
    value = line["best_validation_mrr"]
    if line["state"] not in _WITH_VALUE or not value:
        return None
    try:
        mrr = float(value)
    except ValueError:
        mrr = float("nan")
    if not is_finite({METRIC: mrr}):
        raise DataError.at(file, number, "best_validation_mrr is no number", value=value, remedy="correct or empty the cell")
    settings = {str(name): _parsed(cell) for name, cell in line.items() if name not in _COLUMNS and cell}
    return _Row(f"{file}, line {number},", settings, mrr)


def _parsed(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _differing(source: Path, tied: Mapping[str, Any]) -> list[str] | None:
    """What a value rests on and was another then; None where the earlier study has no journal that says so."""
    journal = (source if source.is_dir() else source.parent) / JOURNAL_FILE
    if not journal.is_file():
        return None
    then = read_events(journal)[0][0]["tied"]
    return [name for name in {**then, **tied} if not name.startswith(_HOW) and then.get(name) != tied.get(name)]
