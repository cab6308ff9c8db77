"""The reference table: rows from summaries, replaced by name, rendered between the markers, added on the command line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.reference import reference
from benchmarks.reference.reference import (
    PUBLISHED,
    ROW_KEYS,
    load_reference,
    render_reference,
    write_reference,
)
from benchmarks.reference.reference_row import paired, summary_row
from imf_core.errors import DataError
from imf_core.evaluate.test_once import RANKS_FILE
from tests.support.reference_command import command
from tune.report.files import summary, write_summary
from tune.report.result import StudyResult
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord

RESULTS = Path(__file__).resolve().parents[3] / "results"
PAGE = "# Results\n\nbefore\n\n<!-- rows -->\noutdated\n<!-- /rows -->\n\nafter\n"


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    params = {"train.lr": 0.00212345, "model.modalities": ["text"]}
    record = TrialRecord(0, "t0", TrialState.COMPLETED, params, 0.37, 8, 9, 60.0)
    hits = {"hits_at_1": 0.32, "hits_at_3": 0.37, "hits_at_10": 0.41}
    runs = tuple({"mrr": mrr, **hits, "mean_rank": 900.0, "mrr_cold": 0.015} for mrr in (0.350, 0.354, 0.358))
    return StudyResult(
        study="mkg-y", folder=tmp_path / "mkg-y", data="../data/MKG-Y", data_fingerprint="abc", records=(record,),
        wall_seconds=1800.0, command="python tune/search.py --data ../data/MKG-Y", test_runs=runs, seeds=(0, 1, 2),
        test_opened=1, winner_seed_mrr=(0.330, 0.331, 0.332), test_decisions={"uniform": [{**runs[0], "mrr": 0.345}] * 3},
        test_pooled={**runs[0], "mrr": 0.361},
    )


def page(folder: Path) -> str:
    return (folder / "README.md").read_text()


def reference_row(result: StudyResult, data_set: str, row: str, decision: str = "own") -> dict[str, Any]:
    return summary_row(summary(result), data_set, row, decision=decision)


def test_a_study_as_a_row(result: StudyResult) -> None:
    row = reference_row(result, "MKG-Y", "IMF, text")
    assert set(row) == {*ROW_KEYS, "settings", "cold", "valid", "decision", "cost"}
    assert (row["cold"], row["valid"], row["decision"]) == (pytest.approx(0.015), pytest.approx(0.331), "own")
    assert (row["data_set"], row["row"], row["command"]) == ("MKG-Y", "IMF, text", result.command)
    assert (row["mrr_mean"], row["mrr_std"]) == (pytest.approx(0.354), pytest.approx(0.004))
    assert row["hits"] == pytest.approx({"hits_at_1": 0.32, "hits_at_3": 0.37, "hits_at_10": 0.41})
    assert (row["seeds"], row["settings"]["train.lr"]) == ([0, 1, 2], 0.00212345)
    assert "cores; python 3." in row["machine"]
    assert len(row["date"]) == len("2026-01-31")
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test_opened": 0}, "not opened exactly once"),
        ({"test_opened": 3}, "not opened exactly once"),
        ({"test_runs": (), "test_opened": 0}, "no test result"),
        ({"test_runs": ({"mrr": math.nan},)}, "no test result"),
    ],
)
def test_a_study_that_earns_no_row(result: StudyResult, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        reference_row(replace(result, **change), "MKG-Y", "x")


def test_a_row_of_other_decision_weights(result: StudyResult) -> None:
    row = reference_row(result, "MKG-Y", "IMF, plain mean", "uniform")
    assert (row["mrr_mean"], row["mrr_std"], row["valid"], row["decision"]) == (pytest.approx(0.345), 0, None, "uniform")
    pooled = reference_row(result, "MKG-Y", "three seeds", "seeds pooled")
    assert (pooled["mrr_mean"], pooled["mrr_std"], pooled["seeds"]) == (0.361, None, [0, 1, 2])
    assert "  - of it: seeds pooled" in render_reference([pooled])
    beside = render_reference([reference_row(result, "MKG-Y", "own"), pooled])
    assert "- MKG-Y, **three seeds**: of **own**, seeds pooled" in beside and beside.count(pooled["command"]) == 1
    with pytest.raises(DataError, match="choose one of: own, uniform, seeds pooled"):
        reference_row(result, "MKG-Y", "x", "learned")


def test_the_baseline_is_a_row_without_seeds(result: StudyResult) -> None:
    rules = {"count": 10, "mrr": 0.29, "mean_rank": 900.0, "hits_at_1": 0.27, "hits_at_3": 0.28, "hits_at_10": 0.31}
    audited = {**summary(result), "audit": {"baseline": {"valid": {**rules, "mrr": 0.25}, "test": rules}}}
    row = summary_row(audited, "MKG-Y", "one-step rules", decision="no training")
    assert (row["mrr_mean"], row["mrr_std"], row["valid"]) == (0.29, None, 0.25)
    assert (row["seeds"], row["settings"], row["hits"]["hits_at_10"]) == ([], {}, 0.31)
    assert "| MKG-Y | **one-step rules** | 25.00 | 29.00 | 27.00 | 28.00 | 31.00 | - |  |" in render_reference([row])
    with pytest.raises(DataError, match="no test figures of this kind"):
        reference_row(result, "MKG-Y", "x", "no training")  # this study's data was not audited


def write_ranks(folder: Path, ranks: dict[str, list[float]], graph: str = "g") -> None:
    (folder / "final").mkdir(parents=True, exist_ok=True)
    arrays = {name: np.array(values, dtype=np.float32) for name, values in ranks.items()}
    save_file(arrays, folder / "final" / RANKS_FILE, metadata={"graph": graph})


def test_rows_are_compared_triple_by_triple(
    result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    write_summary(result)
    other = tmp_path / "plain"
    write_ranks(result.folder, {"own/0": [1, 2] * 40, "own/1": [1, 1] * 40, "uniform/0": [4] * 80, "seeds pooled": [1] * 80})
    write_ranks(other, {"own/0": [2, 4] * 40})
    assert command(monkeypatch, "add", result.folder, "--row", "plain") == 0
    assert command(monkeypatch, "add", result.folder, "--row", "better", "--against", f"plain:{other}") == 0
    (found,) = load_reference(tmp_path / "reference.json")[1]["against"]
    assert found["difference"] == pytest.approx((1 + 0.75) / 2 - (0.5 + 0.25) / 2)  # of the mean reciprocal ranks
    assert found["p"] < 0.01 and found["interval"][0] > 0
    assert "+50.00 points against **plain**" in page(tmp_path)
    worse = paired(result.folder, "uniform", other)
    assert worse["difference"] == pytest.approx(0.25 - 0.375)

    assert command(monkeypatch, "add", result.folder, "--row", "x", "--against", f"nothing:{other}") == 2
    assert "one of: plain, better" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match="choose one of: own, seeds pooled, uniform"):
        paired(result.folder, "none", other)
    with pytest.raises(DataError, match="cannot read the ranks"):
        paired(tmp_path / "nothing", "own", other)
    write_ranks(other, {"own/0": [2, 4] * 40}, graph="another")
    with pytest.raises(DataError, match="another graph"):
        paired(result.folder, "own", other)


def test_a_row_needs_names(result: StudyResult) -> None:
    for data_set, row in (("", "x"), ("MKG-Y", " ")):
        with pytest.raises(DataError, match="has no name"):
            reference_row(result, data_set, row)


def test_a_row_replaces_the_one_of_its_name(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    before = {path.name for path in tmp_path.iterdir()}
    file = tmp_path / "reference.json"
    first = reference_row(result, "MKG-Y", "text")
    write_reference(tmp_path, first)
    assert load_reference(file) == [first]
    write_reference(tmp_path, {**first, "row": "structure"})
    write_reference(tmp_path, {**first, "data_set": "MKG-W"})
    write_reference(tmp_path, {**first, "mrr_mean": 0.4})
    assert [(row["data_set"], row["row"], row["mrr_mean"]) for row in load_reference(file)] == [
        ("MKG-Y", "text", 0.4), ("MKG-Y", "structure", first["mrr_mean"]), ("MKG-W", "text", first["mrr_mean"]),
    ]
    assert {path.name for path in tmp_path.iterdir()} == before | {"reference.json"}


def test_rows_that_cannot_be_read_are_kept(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    file = tmp_path / "reference.json"
    for text in ("{", "{}", '[{"row": "x"}]', "[1]"):
        file.write_text(text)
        with pytest.raises(DataError, match=r"reference rows|not a list of rows"):
            write_reference(tmp_path, reference_row(result, "MKG-Y", "text"))
        assert file.read_text() == text


def test_the_table_stands_beside_what_is_published(result: StudyResult) -> None:
    row = reference_row(result, "MKG-Y", "IMF | text")
    one = {**row, "row": "one seed", "mrr_mean": 0.36, "mrr_std": None, "seeds": [7], "settings": {}}
    own = {**row, "data_set": "unicode"}
    lines = render_reference([row, one, own]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {11}
    assert table[2].startswith("| MKG-Y | **one seed** | 33.10 | 36.00 | 32.00 | 37.00 | 41.00 | 1.50 | 1 |")
    assert table[3].startswith("| MKG-Y | **IMF \\| text** | 33.10 | 35.40 ± 0.40 | 32.00 | 37.00 | 41.00 | 1.50 | 3 |")
    assert "| MKG-Y | *IMF* |  | 35.79 | 32.95 | 37.1 | 40.6 |  |  |  |" in table
    assert "| MKG-Y | *M-Hyper (2026)* |  | 39.46 | - | - | 45.22 |  |  |  |" in table
    assert table[-1].startswith("| unicode | ")
    assert len(table) == 2 + 3 + len(PUBLISHED["MKG-Y"])
    text = "\n".join(lines)
    assert f"`{result.command}`; seeds 0, 1, 2; {row['machine']}" in text
    assert '`model.modalities=["text"]`, `train.lr=0.002123`' in text
    assert "*IMF*" not in render_reference([row], {})
    assert "No row yet" in render_reference([])


def test_the_page_changes_between_its_markers_only(result: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    row = reference_row(result, "MKG-Y", "text")
    assert write_reference(tmp_path, row, {**row, "row": "other"}) == tmp_path / "README.md"
    text = page(tmp_path)
    assert text.startswith("# Results\n\nbefore\n\n<!-- rows -->\n| data set")
    assert text.endswith("\n<!-- /rows -->\n\nafter\n")
    assert "outdated" not in text
    write_reference(tmp_path, row)
    assert page(tmp_path) == text
    assert len(load_reference(tmp_path / "reference.json")) == 2


@pytest.mark.parametrize("text", [None, "no markers", "<!-- /rows -->\n<!-- rows -->", PAGE + PAGE, "<!-- rows -->"])
def test_a_page_without_a_place_for_rows(result: StudyResult, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(DataError, match=r"README\.md: (cannot be read|has no single place)"):
        write_reference(tmp_path, reference_row(result, "MKG-Y", "text"))
    assert not (tmp_path / "reference.json").exists()


def test_the_command(result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    write_summary(result)
    assert command(monkeypatch, "add", result.folder, "--row", "IMF [text]") == 0
    assert "MKG-Y, IMF [text]: test MRR 0.3540" in capsys.readouterr().out
    (row,) = load_reference(tmp_path / "reference.json")
    assert row == reference_row(result, "MKG-Y", "IMF [text]") | {"date": row["date"], "against": []}
    assert "**IMF [text]**" in page(tmp_path)

    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "README.md").write_text(PAGE)
    options = ("--row", "x", "--data-set", "MKG-Y names", "--results", other)
    assert command(monkeypatch, "add", result.folder, *options) == 0
    assert load_reference(other / "reference.json")[0]["data_set"] == "MKG-Y names"


def test_the_command_explains(result: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    assert command(monkeypatch, "add", tmp_path / "nothing", "--row", "x") == 2
    assert "name the folder of a finished study" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "old").mkdir()
    for text in ("[]", "{}", '{"test": {"mrr": null}}'):
        (tmp_path / "old" / "summary.json").write_text(text)
        assert command(monkeypatch, "add", tmp_path / "old", "--row", "x") == 2
        assert "not the summary of a study" in " ".join(capsys.readouterr().err.split())
    write_summary(replace(result, data="."))
    assert command(monkeypatch, "add", result.folder, "--row", "x") == 2
    assert "--data-set" in capsys.readouterr().err
    assert page(tmp_path) == PAGE


def test_the_project_s_own_page_is_current() -> None:
    text = page(RESULTS)
    between = text.partition(reference.ROWS[0])[2].partition(reference.ROWS[1])[0]
    assert between.strip() == render_reference(load_reference(RESULTS / "reference.json"))
    published = [line.strip("|").split("|") for line in text.partition(reference.ROWS[0])[0].splitlines() if " / " in line[:60]]
    for position, data_set in enumerate(("DB15K", "MKG-W", "MKG-Y"), start=1):
        found = {
            cells[0].strip(): tuple(None if part.strip() == "-" else float(part) for part in cells[position].split("/"))
            for cells in published if len(cells) == 4
        }
        assert found == {name: tuple(figures) for name, figures in PUBLISHED[data_set]}
