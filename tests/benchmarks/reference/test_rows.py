"""The rows that are kept: each has a command that can be given, and each file of settings is used.

That the options of the commands exist is tested with those of the other pages (`tests/test_readme.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reference.overview import LINES, Line, overview
from benchmarks.reference.reference import OVERVIEW, load_reference, render_reference
from benchmarks.reference.reference import ROWS as MARKS
from imf_core.config import Config

ROOT = Path(__file__).parents[3]
ROWS = load_reference(ROOT / "results" / "reference.json")
COMMANDS = list(dict.fromkeys(row["command"] for row in ROWS))
CONFIGS = sorted((ROOT / "results" / "configs").iterdir())
REPAIRED = ".cache/db15k-repaired"


def given(command: str, option: str) -> Iterator[str]:
    """What stands behind an option."""
    parts = shlex.split(command.replace(";", " ; "))
    yield from (value for name, value in pairwise(parts) if name == option)


def test_the_page_shows_the_rows_as_they_are() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert page.partition(MARKS[0])[2].partition(MARKS[1])[0].strip() == render_reference(ROWS)


def headline(line: Line) -> list[float]:
    """Mean and deviation of one model and the mean of its seeds together, in percent, as the overview shows them."""
    cells = next(text for text in overview(ROWS, [line])[2:] if text).split(" | ")
    return [float(part) for part in re.findall(r"[\d.]+", cells[2] + " " + cells[3])]


def published(line: Line) -> list[str]:
    return re.findall(r"\d\d\.\d|\d\d(?= with)", line.published.partition("; the latter")[0])


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md"])
def test_the_short_table_has_the_figures_of_the_rows(page: str) -> None:
    table = (ROOT / page).read_text(encoding="utf-8").partition("<!-- headline -->")[2].partition("<!-- /headline -->")[0]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert [title.partition(",")[0] for title in head[1:]] == list(dict.fromkeys(line.data_set for line in LINES))
    for column, title in enumerate(head[1:], start=1):
        sees, one, together, theirs = (line[column] for line in lines)
        line = next(line for line in LINES if (line.data_set, line.sees) == (title.partition(",")[0], sees))
        figures = [float(part) for part in (*one.split(" ± "), together)]
        assert (figures, theirs.partition(",")[0]) == (headline(line), max(published(line)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_row_has_a_command_whose_files_exist(command: str) -> None:
    for name in (*given(command, "--config"), *given(command, "--space")):
        assert (ROOT / name).is_file()
    for name in given(command, "--data"):
        assert name.startswith(("../shared/data/", "unicode")) or f" --repair {name} " in command
    made = {f"results/{study}" for other in COMMANDS for study in given(other, "--study")}
    made |= {
        place for other in COMMANDS for place in re.findall(r"(?:imf train|benchmarks\.reference trained) (\S+)", other)
    }
    pooled = re.search(r"benchmarks\.reference (?:pool|trained) (\S+) (.*)", command)
    sources = pooled.group(2).partition(" --")[0].split() if pooled else []
    assert [name for name in sources if name not in made and re.sub(r"\d$", "$n", name) not in made] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.name)
def test_a_file_of_settings_belongs_to_a_row_or_a_benchmark_and_can_be_read(config: Path) -> None:
    name = config.relative_to(ROOT).as_posix()
    benchmarks = [file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py")]
    assert any(name in text for text in (*COMMANDS, *benchmarks))
    assert Config.load(config)


def test_a_row_that_its_command_does_not_give_today_says_so() -> None:
    """Rows of data that was made otherwise: the copy of DB15K that was repaired by an earlier choice."""
    others: list[dict[str, Any]] = [row for row in ROWS if REPAIRED in row["command"] and row["date"] < "2026-12"]
    assert others and all(row.get("note") or "no training" in row["row"] for row in others)


def test_the_overview_has_a_line_for_each_graph_and_shows_what_the_rows_say() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert page.partition(OVERVIEW[0])[2].partition(OVERVIEW[1])[0].strip() == "\n".join(overview(ROWS)).strip()
    shown = [line.split(" | ") for line in overview(ROWS)[2:-1]]
    assert {cells[0].lstrip("| ") for cells in shown} == {"DB15K", "MKG-W", "MKG-Y", "FB15K237", "WN18RR"}
    for cells in shown:
        mean, together = float(cells[2].split("**")[1]), float(cells[3])
        assert 20 < mean < together < 60


def test_a_line_needs_its_row_and_shows_its_cost_and_its_seeds_together() -> None:
    lines = (Line("G", "names", "ours", "theirs 40"), Line("G", "nothing", "missing", ""))
    row = {"data_set": "G", "row": "ours", "command": "c", "mrr_mean": 0.3712, "mrr_std": 0.0049}
    pooled = {**row, "row": "pool", "mrr_mean": 0.38, "decision": "seeds pooled"}
    (alone, _) = overview([row, {**pooled, "command": "another"}], lines)[2:]
    assert alone == "| G | names | **37.1** ± 0.5 |  |  |  |  | theirs 40 |"
    cost = {"parameters": 17_192_672, "minutes": 26.7, "peak_gb": 1.24}
    (found, _) = overview([{**row, "cost": cost}, pooled], lines)[2:]
    assert found == "| G | names | **37.1** ± 0.5 | 38.0 | 17.2 | 27 | 1.2 | theirs 40 |"
