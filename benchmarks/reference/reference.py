"""The results table in `results/README.md`: one row per finished study, stored in `results/reference.json`.

`python -m benchmarks.reference add results/<study> --row "IMF, names as text"` takes a row from the study's `summary.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.reference.overview import overview
from benchmarks.reference.pool import pool
from benchmarks.reference.reference_row import HITS, UNTRAINED, paired, summary_row
from benchmarks.reference.trained_models import score_models
from imf_core.errors import ConfigError, DataError, ImfError
from imf_core.evaluate.paired import LEVEL
from imf_core.evaluate.test_once import OWN
from imf_core.files.atomic import atomic_write_text
from imf_core.study_reader import StudyFolder

REFERENCE_FILE, README_FILE = "reference.json", "README.md"
ROWS, OVERVIEW = ("<!-- rows -->", "<!-- /rows -->"), ("<!-- overview -->", "<!-- /overview -->")
ROW_KEYS = ("data_set", "row", "command", "mrr_mean", "mrr_std", "hits", "seeds", "machine", "date")

Published = Mapping[str, Sequence[tuple[str, Sequence[float | None]]]]

# Test results in percent: MRR, Hits@1, Hits@3, Hits@10; None if not published. For their limits see results/README.md.
PUBLISHED: Published = {
    "DB15K": (
        ("no training: one-step rules + relation prior", (29.6, 23.2, 31.6, 41.6)),
        ("TuckER, structure only", (33.86, 25.33, 37.91, 50.38)),
        ("IMF", (32.25, 24.20, 36.00, 48.19)),
        ("MoMoK", (39.57, 32.38, 43.45, 54.14)),
        ("M-Hyper (2026)", (41.25, None, None, 56.09)),
    ),
    "MKG-W": (
        ("no training: one-step rules + relation prior", (25.7, 20.8, 27.6, 33.3)),
        ("TuckER, structure only", (30.39, 24.44, None, None)),
        ("IMF", (34.50, 28.77, 36.6, 45.4)),
        ("MoMoK", (35.89, 30.38, 37.54, 46.13)),
        ("M-Hyper (2026)", (37.02, None, None, 48.84)),
    ),
    "MKG-Y": (
        ("no training: one-step rules + relation prior", (29.0, 27.4, 29.2, 30.9)),
        ("TuckER, structure only", (37.05, 34.59, None, None)),
        ("IMF", (35.79, 32.95, 37.1, 40.6)),
        ("MoMoK", (37.91, 35.09, 39.20, 43.20)),
        ("M-Hyper (2026)", (39.46, None, None, 45.22)),
    ),
}


def load_reference(path: Path | str) -> list[dict[str, Any]]:
    """The rows of `reference.json`; none if the file does not exist.

    Raises:
        DataError: the file is not a list of rows.
    """
    file, remedy = Path(path), "restore the file from version control"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError.at(file, None, f"cannot read the reference rows: {error}", remedy=remedy) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(ROW_KEYS) <= set(row) for row in rows):
        raise DataError.at(file, None, f"not a list of rows with {', '.join(ROW_KEYS)}", remedy=remedy)
    return rows


def render_reference(rows: Sequence[Mapping[str, Any]], published: Published = PUBLISHED) -> str:
    """The rows as Markdown: a table in percent with our results and, in italics, the published ones of each data set.

    The table is followed by a list of the commands and settings that reproduce our rows.

    Args:
        rows: of `reference.json`. A `note` of a row says why its command gives other figures today.
        published: published results by data set.
    """
    if not rows:
        return 'No row yet. `python -m benchmarks.reference add results/<study> --row "..."` adds one.'
    head = ("data set", "row", "valid MRR", "MRR", "H@1", "H@3", "H@10", "cold MRR", "seeds", "date")
    lines = [_line(head), _line(["---", "---", *["---:"] * 7, "---"])]
    for data_set in dict.fromkeys(row["data_set"] for row in rows):
        ours = [row for row in rows if row["data_set"] == data_set]
        for row in sorted(ours, key=lambda row: -row["mrr_mean"]):
            hits = [_percent(row["hits"].get(name)) for name in HITS]
            mrr = _percent(row["mrr_mean"]) + (f" ± {_percent(row['mrr_std'])}" if row["mrr_std"] is not None else "")
            around = _percent(row.get("valid")), _percent(row.get("cold"))
            seeds = str(len(row["seeds"])) if row["seeds"] else ""
            lines.append(_line([data_set, _name(row), around[0], mrr, *hits, around[1], seeds, row["date"]]))
        for name, figures in published.get(data_set, ()):
            lines.append(_line([data_set, f"*{name}*", "", *map(_figure, figures), "", "", ""]))
    lines += ["", "How each of our rows was made:", ""]
    own = {row["command"]: row["row"] for row in rows if row.get("decision", OWN) == OWN}
    for row in rows:
        decision, shown = row.get("decision", OWN), f"- {row['data_set']}, {_name(row)}"
        beside = decision != OWN and row["command"] in own  # the row of the study itself says how it was made
        if beside:
            lines.append(f"{shown}: of **{_text(own[row['command']])}**, {_text(decision)}")
        else:
            seeds = ", ".join(map(str, row["seeds"]))
            lines.append(f"{shown}: `{row['command']}`; seeds {seeds}; {row['machine']}")
            lines += [f"  - of it: {_text(decision)}"] if decision != OWN else []
        lines += [f"  - {_against(other)}" for other in row.get("against", ())]
        settings = ", ".join(f"`{name}={_value(value)}`" for name, value in sorted(row.get("settings", {}).items()))
        lines += [f"  - winner: {settings}"] if settings and not beside else []
    return "\n".join(lines)


def write_reference(results_dir: Path | str, *rows: Mapping[str, Any]) -> Path:
    """Add rows to `reference.json` and write the table of all rows between the markers in `README.md`; returns the latter.

    Raises:
        DataError: an unreadable `reference.json`, or a README without the two markers; then nothing is written.
    """
    folder = Path(results_dir)
    readme = folder / README_FILE
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        remedy = "name the folder that holds the project's results/README.md with --results"
        raise DataError.at(readme, None, f"cannot be read: {error}", remedy=remedy) from error
    # A row with a known name replaces the old one and keeps its position.
    named = {(row["data_set"], row["row"]): dict(row) for row in (*load_reference(folder / REFERENCE_FILE), *rows)}
    every = list(named.values())
    text = _filled(readme, text, *ROWS, render_reference(every))
    if OVERVIEW[0] in text:
        text = _filled(readme, text, *OVERVIEW, "\n".join(overview(every)).rstrip())
    atomic_write_text(folder / REFERENCE_FILE, json.dumps(every, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return atomic_write_text(readme, text)


def _filled(readme: Path, text: str, begin: str, end: str, content: str) -> str:
    """The text with other content between two markers.

    Raises:
        DataError: it does not hold them once, in this order.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed or begin in rest or end in before + after:
        remedy = f"write a line {begin} and after it a line {end}, once, where the rows belong"
        raise DataError.at(readme, None, "has no single place for the rows", remedy=remedy)
    return f"{before}{begin}\n{content}\n{end}{after}"


def _against(other: Mapping[str, Any]) -> str:
    """`+0.52 points over **structure only** (95 % +0.10 to +0.94, p = 0.014)`."""
    low, high = other["interval"]
    word = "real" if other["p"] < LEVEL else "may be chance"
    return (
        f"{100 * other['difference']:+.2f} points against **{_text(other['row'])}** "
        f"(95 % {100 * low:+.2f} to {100 * high:+.2f}, p = {other['p']:.2g}: {word})"
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(row: Mapping[str, Any]) -> str:
    """Name and note of a row."""
    return f"**{_text(row['row'])}**" + (f" ({_text(row['note'])})" if "note" in row else "")


def _text(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _figure(percent: float | None) -> str:
    return "-" if percent is None else str(percent)


app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Maintain the table in results/README.md."
)


app.command("pool")(pool)
app.command("trained")(score_models)


@app.command()
def add(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study.")],
    row: Annotated[str, typer.Option(help="Name of the row; it replaces a row of that name on the same data set.")],
    data_set: Annotated[str | None, typer.Option(help="Name of the data set; default: the name of its folder.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder of README.md; default: the parent of the study.")] = None,
    decision: Annotated[str, typer.Option(help=f"{OWN}, {UNTRAINED}, or a key of test_otherwise in summary.json.")] = OWN,
    against: Annotated[list[str] | None, typer.Option(
        help="Paired test against another row of this data set, as ROW:FOLDER with the folder of its study (repeatable)."
    )] = None,
) -> None:
    """Add the test results of a study to reference.json and to the table in README.md.

    Example: python -m benchmarks.reference add results/mkg-y --row "IMF, names as text"
    """
    values = StudyFolder(study).summary()
    name = data_set or Path(str(values.get("data", ""))).name
    entry = summary_row(values, name, row, StudyFolder(study).summary_file, decision)
    folder = results or study.resolve().parent
    rows = (kept for kept in load_reference(folder / REFERENCE_FILE) if kept["data_set"] == name)
    earlier = {kept["row"]: kept.get("decision", OWN) for kept in rows}
    entry["against"] = [_paired_row(study, decision, text, earlier) for text in against or ()]
    readme = write_reference(folder, entry)
    Console().print(f"{name}, {row}: test MRR {entry['mrr_mean']:.4f}; see {readme}", markup=False, highlight=False)


def _paired_row(study: Path, decision: str, against: str, earlier: Mapping[str, str]) -> dict[str, Any]:
    """The paired test against a row given as `ROW:FOLDER`.

    Raises:
        ConfigError: no such row.
    """
    row, _, folder = against.rpartition(":")
    if row not in earlier:
        raise ConfigError(
            f"--against: this data set has no row {row!r}", key="against", value=against,
            remedy=f"write ROW:FOLDER with one of: {', '.join(earlier) or 'none yet'}",
        )
    return {"row": row, **paired(study, decision, Path(folder), earlier[row])}


def main() -> None:
    """Run the command line; an `ImfError` is shown without a traceback and exits with status 2."""
    try:
        app()
    except ImfError as error:
        Console(stderr=True).print(f"[bold red]Error[/] {type(error).__name__}:", escape(str(error)), highlight=False)
        sys.exit(2)
