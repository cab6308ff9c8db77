"""The page of a finished study: every section, the summary's figures, escaped text, nothing fetched, equal files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from small_study import RECORDS, SECTIONS, SPACE, audited, checkpoint, drawn, record, small_study, sound

from imf_core.data.graph.graph import Vocabulary
from imf_core.files.programs import command_line, program
from imf_core.prepare.link_data import LinkData
from imf_core.tasks.protocols import Answered, Entity, Examples, RelationScore
from tune.pipeline import ARTIFACTS
from tune.report.files import summary
from tune.report.html import write_html
from tune.report.result import StudyResult
from tune.report.verdict import next_commands
from tune.report.winner import MOST_RELATIONS
from tune.sources import search_command
from tune.space.space import Row
from tune.study.outcome import TrialState

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def best(toy: LinkData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("winner") / "best", toy, decision="relation")


@pytest.fixture
def result(tmp_path: Path, best: Path) -> StudyResult:
    return small_study(tmp_path, best)


# --- the whole page -------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_nothing_is_fetched(result: StudyResult) -> None:
    page = drawn(result)
    assert sound(page)
    assert [value for tag, _, value in page.links if tag == "a"] == [f"#{name}" for name in SECTIONS]
    assert page.tags["svg"] == 5  # one searched setting only: there are no lines through several
    assert "prefers-color-scheme: dark" in page.source
    assert 'name="viewport"' in page.source
    assert "<dc:" not in page.source
    assert "report.html" in ARTIFACTS


def test_equal_results_give_equal_files(result: StudyResult) -> None:
    first = write_html(result, space=SPACE).read_bytes()
    assert write_html(result, space=SPACE).read_bytes() == first
    assert write_html(replace(result, wall_seconds=999.0), space=SPACE).read_bytes() != first


def test_what_is_markup_in_data_stays_text(result: StudyResult, toy: LinkData, tmp_path: Path) -> None:
    names = Vocabulary((SCRIPT, "$\\frac$", *toy.graph.relations.names[2:]), "relation")
    data = replace(toy, graph=replace(toy.graph, relations=names))
    records = (
        record(0, "completed", 0.5, 3, SCRIPT, params={"train.lr": SCRIPT, SCRIPT: 1.0}),
        record(1, "failed", None, 0, SCRIPT, log_path=SCRIPT),
    )
    hostile = replace(
        result, study=SCRIPT, data=SCRIPT, command=SCRIPT, records=records, settings={SCRIPT: SCRIPT}, audit=audited(SCRIPT),
        checkpoint=checkpoint(tmp_path / "best", data, decision="relation"), without={SCRIPT: 0.3, '"$\\x$ \udc80': 0.2},
        example=(SCRIPT, '"><img src=x>'), tracking_uri=f"http://{SCRIPT}", data_fingerprint=SCRIPT, importance={SCRIPT: 1.0},
    )
    rows = (Row(SCRIPT, SCRIPT, SCRIPT, SCRIPT, SCRIPT, True, True), Row(SCRIPT, "int", SCRIPT, SCRIPT, "", True, False))
    odd = Entity(SCRIPT, f'"{SCRIPT} \udc80')
    answered = Answered(odd, SCRIPT, True, odd, 7.0, (odd,))
    examples = Examples((RelationScore(SCRIPT, 2, 0.5, 0.5),), (answered,), (answered,), 1, 1)
    page = drawn(hostile, space=rows, relation_counts={SCRIPT: 7}, examples=examples)
    assert sound(page)
    assert SCRIPT not in page.source
    assert "<img" not in page.source
    assert page.tables["weights-by-relation"][1][:2] == [SCRIPT, "7"]
    assert page.tables["failures-table"][1][2] == SCRIPT
    assert SCRIPT in page.tables["leaderboard"][0]
    assert f"without {SCRIPT}" in page.text
    assert "\\udc80" in page.text


# --- figures --------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_summary(result: StudyResult) -> None:
    page, said = drawn(result), summary(result)
    best, again, tested = said["best_validation_mrr"], said["winner_validation_mrr"], said["test"]["mrr"]
    assert f"Trial {said['winner']['trial']} reached a validation MRR of {best:.4f} in epoch 6 of 6" in page.text
    retrained = f"{again['mean']:.4f} ± {again['std']:.4f} on validation (mean and standard deviation over n = 3 seeds)"
    assert retrained in page.text
    test = {row[0]: row[1:] for row in page.tables["test"]}
    assert test["metric"] == ["mean", "deviation", "seed 0", "seed 1", "seed 2"]
    assert test["MRR"] == [f"{tested['mean']:.4f}", f"{tested['std']:.4f}", "0.5000", "0.5200", "0.5400"]
    assert test["Hits@10"][:2] == ["0.6000", "0.0000"]
    assert test["mean rank"][:2] == ["120.0", "0.0"]
    assert "n = 3 seeds" in page.text
    rows = {row[0]: row[1:] for row in page.tables["comparison"][1:]}
    assert rows == {
        "winner (mean of 3 seeds)": ["0.5100", "–", "0.5200", "–"],
        "structure alone": ["0.4400", f"{said['points_over_structure_only']:+.1f}", "–", "–"],
        "without text": ["0.4700", "+4.0", "–", "–"],
        "without image": ["0.5150", "-0.5", "–", "–"],
        "no training (one-step rules)": [
            "0.2100", f"{said['points_over_baseline']['valid']:+.1f}", "0.3200", f"{said['points_over_baseline']['test']:+.1f}",
        ],
    }
    assert "5m01s" in page.text
    assert {row[0]: row[1] for row in page.tables["winner-settings"][1:]}["train.lr"] == "0.004"


def test_what_was_searched_on_what(result: StudyResult) -> None:
    page = drawn(result)
    assert page.tables["space"][1:] == [
        ["train.lr", "float", "[0.0005, 0.008] log", "0.002", "always"],
        ["model.fusion_rank", "int", "[1, 8]", "2", "model.fusion = low_rank"],
    ]
    assert page.tables["unsearched"][1:] == [["train.batch_size", "128", "[64, 512]"]]
    assert page.tables["settings"][1:] == [["sampler.seed", "0"], ["trials", "6"]]
    assert page.tables["importances"][1:] == [["train.lr", "75.0 %"], ["model.fusion_rank", "25.0 %"]]
    found = result.audit
    assert found is not None
    for line in (*found.problems, *found.warnings, *found.lines()):
        assert " ".join(line.split()) in page.text
    assert page.text.index("Problem:") < page.text.index("Warning:") < page.text.index("the splits")
    for word in (torch.__version__, optuna.__version__, "20m00s", "1970-01-01 00:16:40 UTC"):
        assert word in page.text
    bare = drawn(replace(result, audit=None, settings={}, importance={}), space=())
    assert sound(bare)
    assert "The data was not audited" in bare.text
    assert "No importances" in bare.text
    assert "ranges are not known" in bare.text


def test_the_history_and_the_leaderboard(result: StudyResult) -> None:
    page = drawn(result)
    assert "at epoch 1: trial 1" in page.text
    assert "6 trials: 2 completed , 1 pruned , 1 stopped , 1 failed , 1 diverged ." in page.text
    table = page.tables["leaderboard"]
    assert table[0][:4] == ["rank", "trial", "state", "validation MRR"]
    assert table[0][-2:] == ["lr", "reason"]
    assert "The same in all trials: model.decision=relation" in page.text
    assert [row[:4] for row in table[1:]] == [
        ["1", "3", "completed", "0.5200"], ["2", "0", "completed", "0.4100"], ["3", "1", "pruned", "0.1200"],
        ["", "5", "stopped", "–"], ["", "2", "failed", "0.9000"], ["", "4", "diverged", "–"],
    ]
    for state in TrialState:
        assert f'<span class="state {state}">{state}</span>' in page.source
    assert "No trial was pruned" in drawn(replace(result, records=RECORDS[:1])).text


def test_failures_say_what_was_done(result: StudyResult) -> None:
    page = drawn(result)
    assert page.tables["failures-table"] == [
        ["trial", "state", "reason", "retries", "reaction", "log"],
        ["2", "failed", "out of memory\n2 GiB needed", "1", "retried once; the search continued without it",
         "/studies/demo/errors/trial_002.txt"],
        ["4", "diverged", "loss is not finite", "0",
         "not retried, because equal settings and seed would diverge again; the search continued without it", "–"],
        ["5", "stopped", "the search ended before its first epoch", "0", "ended with the search; it has no value", "–"],
    ]
    assert "Trial 3 was retried 2 times after its worker had died: completed." in page.text
    well = drawn(replace(result, records=RECORDS[:2]))
    assert "failures-table" not in well.tables
    assert "no trial failed, diverged or was stopped" in well.text
    assert "none failed" in well.text


def test_every_command_is_there(result: StudyResult) -> None:
    page, folder = drawn(result), result.folder
    for _, command in next_commands(result):
        assert command in page.text
    study = command_line([*search_command(), "--storage", str(folder.parent), "--study", "demo"])
    for command in (
        f"{program('imf')} predict {result.checkpoint} --head 'LATIN SMALL LETTER E' --relation base", f"{study} --resume",
        f"{study} --extend 10", f"--warm-start {folder}",
        "http://tracker:5000",
    ):
        assert command in page.text
    local = drawn(replace(result, tracking_uri="sqlite:////x/mlflow.db"))
    assert f"{program('mlflow')} ui --backend-store-uri sqlite:////x/mlflow.db" in local.text


def test_relations_and_answers(result: StudyResult) -> None:
    picture = "data:image/png;base64,AAAA"
    e, o = Entity("LATIN E", "a letter", picture), Entity("LATIN O", "another letter")
    scores = tuple(RelationScore(f"r{number}", 40 - number, 0.25, 0.5) for number in range(MOST_RELATIONS + 2))
    right = Answered(e, "base", True, o, 1.0)
    wrong = Answered(e, "base", False, o, 12.5, (Entity("LATIN A"), e))
    page = drawn(result, examples=Examples(scores, (right,), (wrong,), 500, 2000))
    assert sound(page)
    rows = page.tables["relations"]
    assert rows[:2] == [["relation", "ranks", "MRR", "Hits@10"], ["r0", "40", "0.2500", "0.5000"]]
    assert len(rows) == MOST_RELATIONS + 1
    assert "2 rarer relations left out." in page.text
    assert "A sample of 500 of 2,000 validation triples." in page.text
    assert "LATIN E a letter base LATIN O another letter Asked for the tail: the right answer has rank 1." in page.text
    told = "Asked for the head: the right answer has rank 12.5, the model ranks highest: LATIN A LATIN E a letter"
    assert f"LATIN O another letter base LATIN E a letter {told}" in page.text
    assert [value for tag, _, value in page.links if tag == "img"] == [picture] * 3
    assert "There are no answers to show" in drawn(result).text


# --- studies that found little --------------------------------------------------------------------------------------


def test_without_a_winner(result: StudyResult) -> None:
    lost = replace(result, records=(RECORDS[2], RECORDS[4]), checkpoint=None, test_runs=(), winner_seed_mrr=(), seeds=())
    page = drawn(lost)
    assert sound(page)
    assert "There is no winner" in page.text
    assert {"comparison", "test", "slices-validation"} & page.tables.keys() == set()
    empty = drawn(replace(lost, records=()))
    assert sound(empty)
    assert "No trial was run" in empty.text
    assert "no trial reported a value" in empty.text


def test_without_test_and_with_one_seed(result: StudyResult) -> None:
    page = drawn(replace(result, test_runs=(), test_opened=0, seeds=()))
    assert sound(page)
    assert "There are no test results" in page.text
    assert "test" not in page.tables
    one = drawn(replace(result, test_runs=result.test_runs[:1], seeds=(7,), winner_seed_mrr=(0.5,)))
    assert one.tables["test"][1] == ["MRR", "0.5000", "–", "0.5000"]
    assert "n = 1 seed, so there is no deviation" in one.text
    assert "n = 1 seed, so no deviation" in one.text


def test_one_trial_that_was_not_trained_again(result: StudyResult) -> None:
    single = replace(
        result, records=(record(0, "completed", 0.3, 1, started=None, ended=None),), structure_only_mrr=None, without={},
        test_runs=(), seeds=(), winner_seed_mrr=(), checkpoint=None, audit=None, tracking_uri=None, budget_seconds=None,
    )
    page = drawn(single)
    assert sound(page)
    assert page.tags["svg"] == 4  # no times, hence the history over trials alone
    assert "It was not retrained" in page.text
    assert page.tables["comparison"][1:] == [["winner (the trial itself, not retrained)", "0.3000", "–", "–", "–"]]
    assert "There is nothing to compare with" in page.text


def test_other_decision_weights_and_the_seeds_together_stand_below_test(result: StudyResult) -> None:
    assert "test-otherwise" not in drawn(result).tables
    runs = [{**run, "mrr": run["mrr"] - 0.1} for run in result.test_runs]
    page = drawn(replace(result, test_decisions={"uniform": runs}, test_pooled={**runs[0], "mrr": 0.6, "mrr_cold": 0.01}))
    assert sound(page)
    head, plain, pooled = page.tables["test-otherwise"]
    assert head[:4] == ["decision", "MRR", "deviation", "Hits@1"]
    assert plain[:3] == ["uniform", "0.4200", "0.0200"]
    assert pooled[:3] == ["seeds pooled", "0.6000", "–"]
    assert (plain[head.index("MRR, cold")], pooled[head.index("MRR, cold")]) == ("–", "0.0100")
