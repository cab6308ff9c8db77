"""Choosing start points from recorded trials, and recording them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_search import write_graph
from typer.testing import CliRunner

from benchmarks import graphs, portfolio
from benchmarks.portfolio import Recorded, choose, quality
from imf_core.errors import DataError

# What each candidate reaches on the graphs a, b and c, as a share of the best one there.
SHARES = {
    "even": {"a": 0.9, "b": 0.9, "c": 0.9}, "for a": {"a": 1.0, "b": 0.5, "c": 0.5}, "for b": {"a": 0.5, "b": 1.0, "c": 0.6},
    "for c": {"a": 0.5, "b": 0.5, "c": 0.95},
}


def test_the_choice_is_greedy_and_complementary() -> None:
    assert choose(SHARES, 1) == ["even"]
    assert choose(SHARES, 3) == ["even", "for a", "for b"]
    assert choose(SHARES, 9) == ["even", "for a", "for b", "for c"]


def test_a_graph_that_is_left_out_does_not_count() -> None:
    assert choose(SHARES, 2, without=("a", "b")) == ["for c", "even"]
    assert choose(SHARES, 2, without=("a", "b", "c")) == []


def test_one_of_those_that_are_needed_is_among_the_chosen() -> None:
    assert choose(SHARES, 2, needed=("for c",)) == ["even", "for c"]
    assert choose(SHARES, 2, needed=("even",)) == ["even", "for a"]
    assert choose(SHARES, 2, needed=("unknown",)) == ["even", "for a"]


def test_candidates_are_compared_in_the_same_time() -> None:
    """A slow candidate has half as many epochs in the median time; one that is missing on a graph does not count."""
    trials = [
        Recorded("g", "fast", {}, [0.1, 0.2, 0.3, 0.4], 1.0), Recorded("g", "slow", {}, [0.2, 0.35, 0.5, 0.6], 2.0),
        Recorded("g", "usual", {}, [0.1, 0.1, 0.2, 0.2], 1.0), Recorded("h", "fast", {}, [0.2], 1.0),
        Recorded("h", "slow", {}, [], 0.0),
    ]
    assert quality(trials) == {"fast": {"g": 1.0, "h": 1.0}, "slow": {"g": pytest.approx(0.35 / 0.4), "h": 0.0}}


def test_recording_goes_on_where_it_was_and_the_page_says_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(tmp_path / "shared" / "tiny")
    monkeypatch.setitem(graphs.GRAPHS, "tiny", graphs.Small(0.9))
    file = tmp_path / "trials.jsonl"
    small = ["--set", "model.dim=8", "--set", "model.relation_dim=4", "--set", "train.batch_size=64"]
    arguments = ["record", str(tmp_path / "shared"), "--graphs", "tiny", "--count", "5", "--epochs", "2", "--file", str(file),
                 "--cache", str(tmp_path / "cache"), *small]
    runner = CliRunner()
    assert runner.invoke(portfolio.app, arguments, catch_exceptions=False).exit_code == 0
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and [json.loads(line)["candidate"] for line in lines][:2] == ["default", "start 1"]
    file.write_text("\n".join(lines[:3]) + "\n")
    assert runner.invoke(portfolio.app, arguments, catch_exceptions=False).exit_code == 0
    again = [json.loads(line) for line in file.read_text().splitlines()]
    assert [run["curve"] for run in again] == [json.loads(line)["curve"] for line in lines]
    assert all(len(run["curve"]) == 2 and run["seconds"] > 0 for run in again)
    done = runner.invoke(portfolio.app, ["choose", "--size", "2", "--file", str(file), "--out", str(tmp_path)])
    assert done.exit_code == 0 and done.stdout.count("StartPoint('tiny', {") == 2
    assert "adagrad" in done.stdout
    page = (tmp_path / "portfolio.md").read_text()
    assert "| best of them |" in page and "| chosen without this graph |" in page
    values = portfolio.start_values("elsewhere", file)
    assert values is not None and len(values) == 5
    assert portfolio.start_values("tiny", tmp_path / "absent.jsonl") is None


def test_a_graph_is_made_smaller_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path / "shared" / "tiny")
    monkeypatch.setitem(graphs.GRAPHS, "tiny", graphs.Small(0.5, repaired=True))
    folder = Path(graphs.small_graph("tiny", tmp_path / "shared", tmp_path / "cache"))
    counts = {split: len((folder / f"{split}.tsv").read_text().splitlines()) for split in ("train", "valid", "test")}
    assert counts["train"] == pytest.approx(0.5 * 280, abs=45) and counts["valid"] > 0 and counts["test"] == 40
    before = (folder / "train.tsv").stat().st_mtime_ns
    assert Path(graphs.small_graph("tiny", tmp_path / "shared", tmp_path / "cache")) == folder
    assert (folder / "train.tsv").stat().st_mtime_ns == before
    assert graphs.small_graph("unicode", tmp_path, tmp_path) == "unicode"
    for name in ("unknown", "MKG-Y"):
        with pytest.raises(DataError):
            graphs.small_graph(name, tmp_path / "shared", tmp_path / "cache")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trials.jsonl"
    file.write_bytes(np.zeros(2**20 + 1, dtype=np.uint8).tobytes())
    with pytest.raises(DataError, match="larger"):
        portfolio.recorded(file)
