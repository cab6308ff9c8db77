"""A few hundred hostile inputs through every reader; and the run of them finds what is wrong."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fuzz.__main__ import try_inputs
from benchmarks.fuzz.kinds import KINDS, Kind

SLOW_TO_MAKE = ("ensembles", "recommenders")
PLAIN = Kind("plain", lambda folder: (folder / "a.tsv").write_text("a\tb\n"), ("a.tsv",), lambda folder: None)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name not in SLOW_TO_MAKE], ids=lambda kind: kind.name)
def test_hostile_inputs_are_read_or_refused(tmp_path: Path, kind: Kind) -> None:
    tally = try_inputs(kind, range(100_000, 100_020), tmp_path)
    assert tally.faults == []
    assert tally.tried == tally.refused + tally.read == 20


def test_a_traceback_and_a_hang_are_found(tmp_path: Path) -> None:
    def careless(folder: Path) -> None:
        if (folder / "a.tsv").read_bytes() != b"a\tb\n":
            raise KeyError("a")

    def endless(folder: Path) -> None:
        if not (folder / "a.tsv").is_file() or (folder / "a.tsv").read_bytes() != b"a\tb\n":
            time.sleep(60)

    tally = try_inputs(replace(PLAIN, files=("a.tsv",), read=careless), range(4, 10), tmp_path / "one")
    assert tally.count("traceback") >= 4
    assert "KeyError: 'a'" in str(tally.faults)
    tally = try_inputs(replace(PLAIN, read=endless), range(4, 6), tmp_path / "two", seconds=0.1)
    assert tally.count("hang") >= 1
