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

from benchmarks.reference.reference import BEGIN, END, PUBLISHED, load_reference, render_reference
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
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == render_reference(ROWS)


def headline(data_set: str) -> list[tuple[float, float | None]]:
    """Figures of a column of the short table, in percent: mean, and deviation if there is one."""
    rows = {row["row"]: row for row in ROWS if row["data_set"] == data_set and "no training" not in row["row"]}
    single = [name for name, row in rows.items() if len(row["seeds"]) == 3 and not re.search("ensemble|together|:", name)]
    best = max(single, key=lambda name: rows[name]["mrr_mean"])
    two, six = (next(name for name in rows if name.startswith(begin)) for begin in (
        "ensemble of ComplEx and contextual, ", "the ensembles of three seeds together (six models)"
    ))
    shares = [(rows[name]["mrr_mean"], rows[name]["mrr_std"]) for name in (best, two, six)]
    ours = [(100 * mean, 100 * deviation if deviation else None) for mean, deviation in shares]
    published = dict(PUBLISHED[data_set])
    return [*ours, *((float(published[name][0] or 0), None) for name in ("IMF", "M-Hyper (2026)"))]


@pytest.mark.parametrize("page", ["README.md", "docs/protocol.md"])
def test_the_short_table_has_the_figures_of_the_rows(page: str) -> None:
    table = (ROOT / page).read_text(encoding="utf-8").partition("<!-- headline -->")[2].partition("<!-- /headline -->")[0]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert len(lines) == 5
    for column, title in enumerate(head[1:], start=1):
        shown = [[float(part) for part in line[column].split(" ± ")] for line in lines]
        expected = [[part for part in pair if part is not None] for pair in headline(title.partition(",")[0])]
        assert [len(pair) for pair in shown] == [len(pair) for pair in expected]
        for pair, figures in zip(shown, expected, strict=True):
            assert pair == pytest.approx(figures, abs=0.0501)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_row_has_a_command_whose_files_exist(command: str) -> None:
    for name in (*given(command, "--config"), *given(command, "--space")):
        assert (ROOT / name).is_file()
    for name in given(command, "--data"):
        assert name.startswith(("../shared/data/", "unicode")) or f" --repair {name} " in command
    made = {f"results/{study}" for other in COMMANDS for study in given(other, "--study")}
    made |= {place for other in COMMANDS for place in re.findall(r"imf train (\S+)", other)}
    pooled = re.search(r"benchmarks\.reference (?:pool|trained) (\S+) (.*)", command)
    sources = pooled.group(2).split() if pooled else []
    assert [name for name in sources if name not in made and re.sub(r"\d$", "$n", name) not in made] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.name)
def test_a_file_of_settings_belongs_to_a_row_or_a_benchmark_and_can_be_read(config: Path) -> None:
    name = config.relative_to(ROOT).as_posix()
    benchmarks = [file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py")]
    assert any(name in text for text in (*COMMANDS, *benchmarks))
    assert Config.load(config)


def test_a_row_that_its_command_does_not_give_today_says_so() -> None:
    """Rows of data that was made otherwise: the repaired copy of DB15K."""
    others: list[dict[str, Any]] = [row for row in ROWS if REPAIRED in row["command"]]
    assert others and all(row.get("note") or "no training" in row["row"] for row in others)
