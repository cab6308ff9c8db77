"""`imf split` on a folder as a user brings it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import fails, run

from imf_core.data.audit.audit import audit
from imf_core.data.formats.readers import read_raw


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Neighbours are told in both directions, and a text lies beside the triples."""
    folder = tmp_path / "graph"
    folder.mkdir()
    lines = [f"c{i}\tborders\tc{j}\n" for i in range(30) for j in range(30) if i != j and (i * j) % 7 == 1]
    lines += [f"c{i}\tpart of\tr{i % 3}\n" for i in range(30)]
    (folder / "train.tsv").write_text("".join(lines))
    (folder / "descriptions.tsv").write_text("c1\tthe first\n")
    return folder


def test_from_one_file_to_splits_whose_audit_finds_no_link(graph: Path, tmp_path: Path) -> None:
    before = (graph / "train.tsv").read_bytes()
    printed = run("split", str(graph), str(tmp_path / "out"))
    assert "written:" in printed
    raw = read_raw(tmp_path / "out", test=True)
    report = audit(raw, baseline_splits=())
    lines = before.decode().splitlines()
    assert sum(len(rows) for rows in raw.splits.values()) == len(lines)
    assert report.splits["test"].lines == pytest.approx(len(lines) / 10, abs=3)
    assert [report.splits[name].linked for name in ("valid", "test")] == [0, 0]
    assert [report.splits[name].cold for name in ("valid", "test")] == [0, 0]
    assert report.problems == []
    record = json.loads((tmp_path / "out" / "split.json").read_text())
    assert (record["by"], record["seed"], record["shares"]) == ("random", 0, {"valid": 0.1, "test": 0.1})
    assert record["test"]["written"] == report.splits["test"].lines
    assert (tmp_path / "out" / "descriptions.tsv").read_bytes() == (graph / "descriptions.tsv").read_bytes()
    assert (graph / "train.tsv").read_bytes() == before


def test_the_same_seed_writes_the_same_files(graph: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run("split", str(graph), str(tmp_path / name), "--seed", seed)
    tests = [(tmp_path / name / "test.tsv").read_bytes() for name in "abc"]
    assert tests[0] == tests[1] != tests[2]


def test_by_time_reads_a_fourth_column(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    pairs = [(head, tail) for head in range(16) for tail in range(head)]
    rows = [f"p{head}\tmet\tp{tail}\t{1900 + 7 * place % 120}-01-31\n" for place, (head, tail) in enumerate(pairs)]
    (tmp_path / "graph" / "train.tsv").write_text("".join(rows))
    run("split", str(tmp_path / "graph"), str(tmp_path / "out"), "--by", "time", "--valid", "0.2", "--test", "0.2")
    time = dict(row.rstrip("\n").rsplit("\t", 1) for row in rows)
    valid, test = (
        [time[line] for line in (tmp_path / "out" / f"{name}.tsv").read_text().splitlines()] for name in ("valid", "test")
    )
    assert len(valid) > 15 and len(test) > 15
    assert max(valid) < min(test)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--valid", "60%", "--test", "0.5"], "110%"),
        (["--valid", "ten"], "--valid ten is not a share"),
        (["--by", "time"], "line 1: 3 tab-separated columns instead of 4"),
    ],
)
def test_what_is_refused(graph: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in str(fails("split", str(graph), str(tmp_path / "out"), *arguments))
    assert not (tmp_path / "out").exists()


def test_a_time_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "train.tsv").write_text("a\tr\tb\t1999\na\tr\tc\tyesterday\n")
    error = fails("split", str(tmp_path / "graph"), str(tmp_path / "out"), "--by", "time")
    assert "line 2" in str(error) and "yesterday" in str(error)
