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

from benchmarks.reference.reference import BEGIN, END, load_reference, render_reference
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
