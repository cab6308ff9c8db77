"""Leaderboard, summary, closing table and plots of a study with every kind of trial."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from small_study import small_study

from imf_core.data.audit.audit import audit
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.data.audit.report import AuditReport
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.files.programs import command_line, program
from tune.report.files import machine, summary, write_leaderboard, write_summary
from tune.report.html import write_html
from tune.report.metrics import description, study_metrics
from tune.report.pictures.plots import plots, save_picture
from tune.report.result import StudyResult
from tune.report.verdict import closing_table, next_commands, write_report
from tune.report.winner import comparison
from tune.settings import SearchConfig
from tune.sources import search_command
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord


def record(number: int, state: str, best: float | None, epochs: int, reason: str = "", **params: object) -> TrialRecord:
    curve = tuple((epoch, best * epoch / epochs) for epoch in range(1, epochs + 1)) if best is not None else ()
    best_epoch = epochs if best is not None else None
    return TrialRecord(
        number, f"id_{number}", TrialState(state), dict(params), best, best_epoch, epochs, 12.34, {}, reason,
        started=1000.0 + 60 * number, ended=1060.0 + 60 * number, curve=curve,
    )


RECORDS = (
    record(0, "completed", 0.41, 8, "all 8 epochs", **{"train.lr": 0.00212345, "model.decision": "learned"}),
    record(1, "pruned", 0.12, 1, "behind", **{"train.lr": 0.0008, "model.decision": "fixed", "model.w.text": 0.25}),
    record(2, "failed", 0.9, 2, "out of memory | 2 GiB\nneeded [asked]", **{"train.lr": 0.003}),
    record(3, "completed", 0.52, 6, "no better for 3 epochs", **{"train.lr": 0.004, "model.modalities": ["text", "image"]}),
    record(4, "diverged", None, 1, "loss is not finite", **{"train.lr": 0.008}),
    record(5, "stopped", None, 0, "the search ended before its first epoch"),
)


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    shares = {"hits_at_1": 0.4, "hits_at_3": 0.5, "hits_at_10": 0.6}
    runs = [{"mrr": mrr, **shares, "mean_rank": 120.0} for mrr in (0.50, 0.52, 0.54)]
    return StudyResult(
        study="demo", folder=tmp_path, data="unicode", data_fingerprint="abc", records=RECORDS, wall_seconds=301.26,
        command="python tune/search.py", structure_only_mrr=0.44, test_runs=tuple(runs), seeds=(0, 1, 2),
        checkpoint=tmp_path / "best", tracking_uri="sqlite:////x/mlflow.db", example=("LATIN SMALL LETTER E", "base"),
        test_opened=1, budget_seconds=1200.0, settings={"trials": 6, "storage": tmp_path},
    )


def closing(result: StudyResult, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    closing_table(console, result)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_leaderboard_ranks_by_validation_and_names_the_lost(tmp_path: Path) -> None:
    csv_path, md_path = write_leaderboard(RECORDS, tmp_path / "new")
    rows = list(csv.DictReader(csv_path.open(newline="")))
    assert [(row["rank"], row["trial"], row["state"]) for row in rows] == [
        ("1", "3", "completed"), ("2", "0", "completed"), ("3", "1", "pruned"), ("", "5", "stopped"), ("", "2", "failed"),
        ("", "4", "diverged"),
    ]
    assert [row["epochs"] for row in rows[:3]] == ["6", "8", "1"]
    assert (rows[1]["train.lr"], rows[1]["model.w.text"]) == ("0.00212345", "")
    assert json.loads(rows[0]["model.modalities"]) == ["text", "image"]
    assert rows[4]["reason"] == "out of memory | 2 GiB\nneeded [asked]"
    lines = md_path.read_text().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines[2:]} == {lines[2].count("|")}
    assert "0.002123" in lines[5]
    assert "out of memory \\| 2 GiB needed" in lines[8]
    write_leaderboard([replace(RECORDS[0], seconds=12345.6)], tmp_path / "new")
    assert "| 12346 |" in md_path.read_text()
    write_leaderboard([], tmp_path / "new")
    assert len(csv_path.read_text().splitlines()) == 1


def test_summary_holds_what_others_read(result: StudyResult) -> None:
    path = write_summary(result)
    found = json.loads(path.read_text())
    assert path == result.folder / "summary.json"
    assert {
        "study", "data", "data_fingerprint", "trials", "best_validation_mrr", "structure_only_validation_mrr", "test", "seeds",
        "wall_seconds", "checkpoint", "command", "machine", "date",
    } <= set(found)
    assert found["trials"] == {"completed": 2, "pruned": 1, "stopped": 1, "failed": 1, "diverged": 1}
    assert (found["best_validation_mrr"], found["winner"]["trial"]) == (0.52, 3)
    assert found["points_over_structure_only"] == pytest.approx(8.0)
    assert found["test"]["mrr"] == {"mean": pytest.approx(0.52), "std": pytest.approx(0.02)}
    assert found["test"]["mean_rank"] == {"mean": 120.0, "std": 0.0}
    assert found["seeds"] == [0, 1, 2]
    assert {"cpu", "cores", "python", "torch", "ray"} == set(found["machine"])
    assert found["machine"] == machine()
    assert found["date"].endswith("+00:00")
    assert (found["test_opened"], found["budget_seconds"]) == (1, 1200.0)
    assert found["settings"] == {"trials": 6, "storage": str(result.folder)}


def test_structure_alone_is_compared_with_the_retrained_winner(result: StudyResult) -> None:
    seeded = replace(result, winner_seed_mrr=(0.48, 0.50, 0.49))
    found = json.loads(write_summary(seeded).read_text())
    expected = {"by_seed": [0.48, 0.5, 0.49], "mean": pytest.approx(0.49), "std": pytest.approx(0.01)}
    assert found["winner_validation_mrr"] == expected
    assert found["points_over_structure_only"] == pytest.approx(5.0)  # 8.0 for the trial's own best
    assert (found["best_validation_mrr"], found["structure_only_validation_mrr"]) == (0.52, 0.44)
    text = closing(seeded)
    assert "5.0 points above structure alone (0.4400) with the same settings" in text
    assert "retrained winner 0.4900 ± 0.0100, mean of 3 seeds" in text
    assert "retrained winner 0.4200, 1 seed" in closing(replace(result, winner_seed_mrr=(0.42,)))
    assert "2.0 points below structure alone" in closing(replace(result, winner_seed_mrr=(0.42,)))
    assert summary(result)["winner_validation_mrr"] == {"by_seed": [], "mean": None, "std": None}


def telling() -> AuditReport:
    """The audit of a graph in which the text of `a` names the answers of a validation and of two test triples."""
    names = ("a", "Berlin", "Paris", "Rome")
    splits = (np.array(rows) for rows in ([(0, 0, 0)], [(0, 0, 1)], [(0, 0, 2), (0, 0, 3), (1, 0, 2)]))
    raw = RawGraph(Vocabulary(names), Vocabulary(("near",), "relation"), *splits, source="drawn")
    return audit(raw, baseline_splits=(), texts={"a": "near Berlin, Paris and Rome", "Berlin": "far off"})


def test_the_model_without_a_text_that_names_answers_is_marked(result: StudyResult) -> None:
    told = "(it names the answer in at least 1 of 1 validation and 2 of 3 test triples)"
    seeded = replace(result, winner_seed_mrr=(0.48, 0.50, 0.49), audit=telling())
    both = replace(seeded, without={"text": 0.47, "image": 0.515})
    line = f"validation without text: 0.4700, 2.0 points below the retrained winner {told}"
    assert line in closing(both)
    assert "validation without image" not in closing(both)
    write_report(both)
    assert "validation without text: 0.4700, 2.0 points below" in (result.folder / "report.md").read_text()
    (table, _) = comparison(both) or pytest.fail("no comparison")
    assert [str(row[0]) for row in table.rows][1:] == ["structure alone", f"without text {told}", "without image"]
    seeded = replace(seeded, records=(replace(RECORDS[3], params={}),))
    single = replace(seeded, settings={"model.modalities": ("text",)})
    line = "validation structure alone: 0.4400, 5.0 points below the retrained winner (without text: it names the answer"
    assert line in closing(single)
    assert "it names" not in closing(replace(seeded, settings={"model.modalities": ("image",)}))
    searched = replace(RECORDS[3], params={"model.modalities": ["image"]})  # the winner
    assert "it names" not in closing(replace(seeded, records=(searched,)))
    assert "it names" not in closing(replace(both, audit=replace(telling(), leaks=())))


def test_no_comparison_with_what_is_not_a_number(result: StudyResult) -> None:
    for odd in (replace(result, structure_only_mrr=math.nan), replace(result, winner_seed_mrr=(math.nan, 0.5))):
        assert odd.points_over_structure is None
        assert "structure alone" not in closing(odd)


def test_what_is_unknown_is_null_not_zero(result: StudyResult) -> None:
    one = replace(result, test_runs=({"mrr": 0.5},), seeds=(7,), structure_only_mrr=None)
    assert summary(one)["test"]["mrr"] == {"mean": 0.5, "std": None}
    assert summary(one)["test"]["hits_at_1"] == {"mean": None, "std": None}
    assert summary(one)["points_over_structure_only"] is None
    odd = replace(result, test_runs=({"mrr": math.nan}, {"mrr": 0.5}), structure_only_mrr=math.nan)
    assert json.loads(write_summary(odd).read_text())["test"]["mrr"] == {"mean": None, "std": None}
    nothing = replace(result, records=(), test_runs=(), checkpoint=None, structure_only_mrr=None)
    assert json.loads(write_summary(nothing).read_text())["best_validation_mrr"] is None


def test_the_closing_table_tells_the_story(result: StudyResult) -> None:
    text = closing(result)
    assert "demo: 6 trials (2 completed, 1 pruned, 1 stopped, 1 failed, 1 diverged) in 5m01s" in text
    assert "trial 2 failed: out of memory | 2 GiB" in text
    assert "needed [asked]" in text  # no markup is read into a reason
    assert "trial 4 diverged: loss is not finite" in text
    assert "winner: trial 3, epoch 6, validation MRR 0.5200" in text
    assert 'model.modalities=["text", "image"]' in text
    assert "8.0 points above structure alone (0.4400)" in text
    assert "test (3 seeds): mrr 0.5200 ± 0.0200" in text
    assert "mean_rank 120.0 ± 0.0" in text
    for _, command in next_commands(result):
        assert command in text
    narrow = closing(result, width=60)
    assert next_commands(result)[0][1] in narrow  # commands stay in one piece, to be copied


def test_the_commands(result: StudyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.report.verdict.installed", lambda name: name == "optuna-dashboard")
    commands = dict(next_commands(result))
    ask = f"{program('imf')} predict {result.folder}/best --head 'LATIN SMALL LETTER E' --relation base"
    assert commands["ask the winner"] == ask
    assert commands["compare the runs in MLflow"] == f"{program('mlflow')} ui --backend-store-uri sqlite:////x/mlflow.db"
    assert f"--warm-start {result.folder}" in commands["start a new search from its best points"]
    assert dict(next_commands(replace(result, tracking_uri="http://h:5000")))["compare the runs in MLflow"] == "http://h:5000"
    study = command_line([*search_command(), "--storage", str(result.folder.parent), "--study", "demo"])
    assert commands["resume it after an interruption"] == f"{study} --resume"
    assert commands["run 10 more trials"] == f"{study} --extend 10"
    assert commands["open it in Optuna's dashboard"] == f"optuna-dashboard sqlite:///{result.folder}/optuna.db"
    monkeypatch.setattr("tune.report.verdict.installed", lambda name: False)
    bare = dict(next_commands(replace(result, checkpoint=None, tracking_uri=None)))
    others = {"ask the winner", "compare the runs in MLflow", "open it in Optuna's dashboard"}
    assert bare.keys() == commands.keys() - others


def test_the_search_is_called_by_a_file_that_is_there(tmp_path: Path) -> None:
    for line in (dict(next_commands(small_study(tmp_path, None)))["run 10 more trials"], SearchConfig.build({}).resume_command):
        interpreter, script, *_ = shlex.split(line)
        assert Path(script).samefile("tune/search.py") and Path(script).is_absolute()
        assert subprocess.run([interpreter, "-c", "import ray"], check=False).returncode == 0


def test_the_ensemble_of_the_seeds_is_printed_with_its_command(result: StudyResult) -> None:
    purpose = "combine the kept models into an ensemble"
    assert purpose not in dict(next_commands(result)) and "ensemble of the seeds" not in closing(result)
    together = replace(result, test_pooled={**dict.fromkeys(result.test(), 0.1), "mrr": 0.555})
    assert "test, ensemble of the seeds: mrr 0.5550, 3.5 points above the mean of single seeds" in closing(together)
    assert "1.0 points below the mean of single seeds" in closing(replace(result, test_pooled={"mrr": 0.51}))
    assert dict(next_commands(together))[purpose] == f"{program('imf')} ensemble {result.folder}-pool {result.folder}"


POOL = {
    "members": {"a": 0.6, "b": 0.4}, "candidates": 5, "validation": {"mrr": 0.56}, "held_back_mrr": 0.55,
    "held_back_mrr_of_single": 0.53, "test": {"mrr": 0.56},
}
FOOTPRINTS = {
    "best": {"bytes": 4_200_000.0, "parameters": 1.1e6, "latency_ms": 1.25},
    "pool": {"bytes": 9_000_000.0, "parameters": 2.4e6, "latency_ms": 3.0},
}


def test_the_pool_is_shown_with_its_gain_and_what_it_costs(result: StudyResult) -> None:
    pooled = replace(result, pool=POOL, footprints=FOOTPRINTS)
    text = " ".join(closing(pooled).split())
    assert "pool/: 2 of 5 models answer together: validation MRR 0.5600" in text
    assert "2.0 points above the best single model" in text
    assert "test, pool/: mrr 0.5600, 4.0 points above the mean of single seeds" in text
    assert "best/: 1.1 million parameters, 4.2 MB, 1.2 ms an answer; pool/: 2.4 million parameters, 9.0 MB" in text
    assert "would have been the better buy" not in text
    assert dict(next_commands(pooled))["ask the pool"].startswith(f"{program('imf')} predict {result.folder}/pool --head")
    told = json.loads(write_summary(pooled).read_text())
    assert told["pool"]["test"]["mrr"] == 0.56 and told["footprints"] == FOOTPRINTS
    seeds = replace(pooled, test_pooled={**dict.fromkeys(result.test(), 0.1), "mrr": 0.57})
    assert "(--seeds 6) would have been the better buy" in " ".join(closing(seeds).split())
    alone = replace(result, footprints={"best": FOOTPRINTS["best"]})
    assert "best/: 1.1 million parameters" in closing(alone) and "pool/" not in closing(alone)


def test_the_trial_that_was_retrained_is_the_winner_and_why_is_said(result: StudyResult) -> None:
    duel = {"first": "id_3", "second": "id_0", "winner": "id_0", "seed": 1, "mrr": [0.50, 0.51]}
    fought = replace(result, chosen="id_0", duel=duel)
    assert fought.winner is not None and fought.winner.number == 0
    assert result.winner is not None and result.winner.number == 3
    text = " ".join(closing(fought).split())
    assert "winner: trial 0" in text
    assert "with seed 1 too, id_3 falls behind id_0: mean MRR 0.5000 and 0.5100" in text
    assert summary(fought)["winner"]["trial"] == 0 and summary(fought)["duel"] == duel


def test_a_study_that_lost_or_found_little(result: StudyResult) -> None:
    assert "no winner" in closing(replace(result, records=(RECORDS[2], RECORDS[4])))
    assert "no winner" in closing(replace(result, records=()))
    worse = closing(replace(result, structure_only_mrr=0.6, test_runs=result.test_runs[:1]))
    assert "8.0 points below structure alone" in worse
    assert "test (1 seed, so no deviation): mrr 0.5000," in worse
    many = tuple(replace(RECORDS[0], number=number, trial_id=f"m{number}") for number in range(14))
    lost = tuple(replace(RECORDS[2], number=number, trial_id=f"m{number}") for number in range(14, 27))
    text = closing(replace(result, records=many + lost))
    assert "and 4 more in leaderboard.md" in text
    assert "and 3 more lost trials" in text


@pytest.mark.parametrize("given", [RECORDS, (), (RECORDS[4],), (replace(RECORDS[0], started=None, ended=None), RECORDS[3])])
def test_plots(given: tuple[TrialRecord, ...], tmp_path: Path) -> None:
    drawn = plots(given, tmp_path / "plots")
    assert [path.name for path in drawn] == ["history.png", "curves.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_picture_of_the_terminal_fetches_nothing(tmp_path):
    def show(console: Console) -> None:
        console.print("validation MRR [bold]0.4643[/]")

    command = "python tune/search.py " + " ".join(f"--set model.setting_{number}=1" for number in range(20))
    picture = save_picture(show, 80, tmp_path / "terminal.svg", command).read_text(encoding="utf-8")
    assert "setting_0" in picture and "setting_9" not in picture  # a window has one line for its title
    assert "0.4643" in picture
    assert "python" in picture
    assert "@font-face" not in picture
    assert "url(http" not in picture


def test_the_leaderboard_has_what_tells_trials_apart_and_no_name_is_cut(result: StudyResult) -> None:
    """Ten settings with long names: as many as there is room for, the important ones first, the learning rate always."""
    names = [f"model.a_long_name_of_a_setting_{number}" for number in range(10)]
    records = tuple(
        replace(RECORDS[0], number=number, trial_id=f"t{number}", best_mrr=0.4 + number / 100, params={
            "train.lr": 0.001 * (number + 1), "model.same": 7, "model.lr_decay": 0.5 + number / 10,
            **dict.fromkeys(names, number),
        })
        for number in range(3)
    )
    study = replace(result, records=records, importance={names[4]: 0.5, "model.lr_decay": 0.3, "train.lr": 0.01})
    for width in (80, 120):
        lines = closing(study, width).splitlines()
        head = next(line for line in lines if "rank" in line)
        assert "…" not in "".join(lines[: lines.index(head) + 5])
        assert head.split()[:9] == ["│", "rank", "trial", "state", "valid", "MRR", "epochs", "time", "lr"]
        assert "same" not in head and ("a_long_name_of_a_setting_4" in head) is (width == 120)
    rest = "leaderboard.md also has a_long_name_of_a_setting_4, lr_decay, a_long_name_of_a_setting_0"
    assert rest in one_line(closing(study, 80))


def one_line(text: str) -> str:
    """Without the panel's frame and line breaks."""
    return " ".join(text.replace("│", " ").split())


def audited(result: StudyResult, *, valid: float, test: float | None = None) -> StudyResult:
    """With the audit of a graph whose validation line is a training line, and a baseline of the given MRR."""
    names = Vocabulary(("a_1", "b")), Vocabulary(("r",), "relation")
    lines = np.array([[0, 0, 1]])
    report = audit(RawGraph(*names, lines, lines, None, source="drawn"), baseline_splits=())
    reached = {"valid": valid, **({"test": test} if test is not None else {})}
    rules = {split: BaselineMetrics(2, mrr, 1.0, mrr, mrr, mrr) for split, mrr in reached.items()}
    return replace(result, audit=replace(report, baseline=rules), winner_seed_mrr=(0.50, 0.52))


def test_the_winner_is_measured_against_no_training(result: StudyResult) -> None:
    above = closing(audited(result, valid=0.21, test=0.32))
    assert "validation without training (one-step rules): MRR 0.2100; the winner is 30.0 points above" in above
    assert "test without training (one-step rules): MRR 0.3200; the winner is 20.0 points above" in above
    below = audited(result, valid=0.53)
    assert "the winner is 2.0 points below: it has learned less than a table of counts" in closing(below)
    assert summary(below)["points_over_baseline"] == {"valid": pytest.approx(-2.0), "test": None}
    assert summary(result)["points_over_baseline"] == {"valid": None, "test": None}


def test_the_report_tells_the_same_and_has_the_audit(result: StudyResult) -> None:
    contaminated = audited(result, valid=0.21)
    text = write_report(contaminated).read_text(encoding="utf-8")
    for line in contaminated.audit.markdown().splitlines() if contaminated.audit else ():
        assert line in text
    assert "- the data has a problem: 1 of 1 validation lines stand in train" in text
    assert "- winner: trial 3, epoch 6, validation MRR 0.5200" in text
    assert "the winner is 30.0 points above" in text
    assert "model.modalities=\\[\"text\", \"image\"\\]" in text
    for _, command in next_commands(contaminated):
        assert f"    {command}" in text
    assert "the data has a problem" in closing(contaminated)
    plain = write_report(replace(result, records=())).read_text(encoding="utf-8")
    assert "no winner" in plain
    assert "Audit of the data" not in plain


def test_where_splits_share_lines_the_clean_figure_comes_first_and_both_are_told(result: StudyResult, tmp_path: Path) -> None:
    """In the closing panel, `report.md`, `report.html`, `summary.json` and MLflow's figures."""
    names, rows = Vocabulary(("a", "b", "c")), np.array([[0, 0, 1], [1, 0, 2], [2, 0, 0]])
    raw = RawGraph(names, Vocabulary(("r",), "relation"), rows[:2], np.array([[0, 0, 1], [0, 0, 2]]), rows[1:])
    best = replace(RECORDS[3], metrics={"mrr_all_lines": 0.8123})
    runs = tuple({**run, "mrr_all_lines": 0.9001} for run in result.test_runs)
    shared = replace(result, audit=audit(raw), test_runs=runs, records=(*RECORDS[:3], best))
    words = "1 of 2 test lines stand in train or valid too: figures are of the other 1, with those of all lines beside"
    write_report(shared)
    for text in (closing(shared), (result.folder / "report.md").read_text().replace("\\", "")):
        assert words in text and "1 of 2 validation lines stand in train too" in text
        assert "validation MRR 0.5200 (all lines 0.8123)" in text
        assert text.index("mrr 0.5200 ± 0.0200") < text.index("mrr_all_lines 0.9001")
        assert "(all lines " in text[text.index("test without training"):]
    page = write_html(shared).read_text()
    assert words in page and "MRR, all lines" in page and "all lines 0.8123" in page
    assert summary(shared)["test"]["mrr_all_lines"]["mean"] == pytest.approx(0.9001)
    figures = study_metrics(shared)
    assert (figures["test_mrr_all_lines"], figures["best_mrr_all_lines"]) == (pytest.approx(0.9001), 0.8123)
    assert "(all lines 0.9001)" in description(shared)
    gone = audit(replace(raw, test=rows[:2]))
    assert "all 2 test lines stand in train or valid too: no figure is of answers" in closing(replace(shared, audit=gone))
    assert "all lines" not in closing(replace(result, audit=audit(replace(raw, valid=rows[2:], test=None))))
