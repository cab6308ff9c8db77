"""What a study is said to show: gains and losses alike, with intervals, and what follows from them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_study import drawn, record, small_study

from tune.report.judgement import BAD, GOOD, OPEN, judgements
from tune.report.result import StudyResult
from tune.report.verdict import closing_table, write_report

# Retrained 0.50, 0.51, 0.52; without text 0.47, without images 0.513, structure alone 0.44.
MARGINS = {"text": (-0.009, 0.009), "image": (-0.006, 0.005), "structure alone": (-0.02, 0.02)}


@pytest.fixture
def result(tmp_path: Path) -> StudyResult:
    return replace(small_study(tmp_path, None), without={"text": 0.47, "image": 0.513}, margins=MARGINS)


def said(result: StudyResult) -> dict[str, tuple[str, str]]:
    return {it.subject: (it.text, it.kind) for it in judgements(result)}


def test_each_part_is_judged_by_its_interval(result: StudyResult) -> None:
    sentences = said(result)
    assert sentences["text"] == ("+4.0 points [3.1, 4.9]: keep it", GOOD)
    assert sentences["image"] == ("-0.3 points [-0.9, 0.2], not distinguishable: leave it out", OPEN)
    assert sentences["the winner against structure alone"] == ("+7.0 points [5.0, 9.0]: the winner is better", GOOD)
    # Test 0.50, 0.52, 0.54 over the baseline's 0.32: 4.30 * 0.02 / sqrt(3) = 0.050
    assert sentences["the model against one-step rules, on test"] == ("+20.0 points [15.0, 25.0]: training pays off", GOOD)
    # 0.51 over the first trial's 0.41: 4.30 * 0.01 * sqrt(1/3 + 1) = 0.050
    assert sentences["the search against its first trial"] == ("+10.0 points [5.0, 15.0]: searching paid off", GOOD)


def test_the_lead_over_the_baseline_has_the_margin_of_the_test_ranks(result: StudyResult) -> None:
    subject = "the model against one-step rules, on test"
    ranked = replace(result, margins={**MARGINS, "one-step rules": (-0.03, 0.03)})
    assert said(ranked)[subject] == ("+20.0 points [17.0, 23.0]: training pays off", GOOD)
    untested = said(replace(ranked, test_runs=()))["the model against one-step rules, on validation"]
    assert untested == ("+30.0 points [27.5, 32.5]: training pays off", GOOD)  # the margin is of test: 4.30 * 0.01 / sqrt(3)


def test_a_loss_is_told_as_loudly_as_a_gain(result: StudyResult) -> None:
    harmed = replace(result, without={"text": 0.47, "image": 0.55}, structure_only_mrr=0.56)
    assert said(harmed)["image"] == ("-4.0 points [-4.6, -3.5]: it does harm, leave it out", BAD)
    text, kind = said(harmed)["the winner against structure alone"]
    assert (text, kind) == ("-5.0 points [-7.0, -3.0]: structure alone is better, use it", BAD)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=200)
    closing_table(console, harmed)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b[1;31mimage: -4.0 points [-4.6, -3.5]: it does harm, leave it out" in shown
    assert "\x1b[32mtext: +4.0 points [3.1, 4.9]: keep it" in shown
    assert "image: -4.0 points \\[-4.6, -3.5\\]: it does harm, leave it out" in write_report(harmed).read_text(encoding="utf-8")


def test_an_interval_around_nothing_that_is_wide_decides_nothing(result: StudyResult) -> None:
    wide = replace(result, margins={**MARGINS, "text": (-0.08, 0.08)})
    assert said(wide)["text"] == ("+4.0 points [-4.0, 12.0], not distinguishable: more seeds would tell (--seeds 5)", OPEN)


def test_a_gain_that_the_seeds_explain_is_none(result: StudyResult) -> None:
    small = replace(result, without={"text": 0.497}, margins={"text": (-0.005, 0.005)}, winner_seed_mrr=(0.49, 0.51, 0.53))
    text, kind = said(small)["text"]
    assert kind == OPEN
    assert text.startswith("+1.3 points [0.8, 1.8], but the seeds differ as much among each other (4.0 points): more seeds")


def test_without_ranks_the_seeds_give_the_interval(result: StudyResult) -> None:
    plain = replace(result, margins={})
    assert said(plain)["text"] == ("+4.0 points [-1.0, 9.0], not distinguishable: more seeds would tell (--seeds 5)", OPEN)
    two = replace(plain, winner_seed_mrr=(0.5100, 0.5102))  # 12.71 * 0.00014 * sqrt(1/2 + 1) = 0.0022
    assert said(two)["text"] == ("+4.0 points [3.8, 4.2]: keep it", GOOD)
    one = replace(plain, winner_seed_mrr=(0.51,))
    assert said(one)["text"] == ("+4.0 points, a single run: a hint only, --seeds 3 gives an interval", OPEN)


def test_a_search_that_found_nothing_better_says_so(result: StudyResult) -> None:
    first = replace(result, records=(record(0, "completed", 0.52, 6), record(1, "completed", 0.41, 8)))
    assert said(first)["the search against its first trial"] == ("no trial was better than the first", OPEN)
    lower = replace(result, records=(record(0, "completed", 0.515, 6), record(1, "completed", 0.52, 8)))
    text, kind = said(lower)["the search against its first trial"]
    assert (text, kind) == ("-0.5 points [-5.5, 4.5], not distinguishable: more seeds would tell (--seeds 5)", OPEN)


def test_a_first_trial_that_was_left_behind_is_not_compared(result: StudyResult) -> None:
    """One epoch of the first settings against all of the winner's would make any search pay off."""
    short = replace(result, records=(record(0, "pruned", 0.30, 1), record(1, "completed", 0.52, 8)))
    text, kind = said(short)["the search against its first trial"]
    assert (text, kind) == ("the first trial was left behind after 1 epoch: what it would have reached is not known", OPEN)


def test_nothing_is_judged_that_was_not_retrained(result: StudyResult) -> None:
    assert judgements(replace(result, winner_seed_mrr=())) == []
    assert judgements(replace(result, records=())) == []
    assert judgements(replace(result, winner_seed_mrr=(float("nan"), 0.5))) == []
    assert "There is nothing to judge: the winner was not retrained." in drawn(replace(result, winner_seed_mrr=())).text


def test_the_page_judges_first_and_says_why_validation_and_test_differ(result: StudyResult) -> None:
    page = drawn(result)
    for it in judgements(result):
        assert f"{it.subject[0].upper()}{it.subject[1:]}: {it.text}." in page.text
    first_section = page.text.index("Trial 3 reached a validation MRR")
    assert page.text.index("Image: -0.3 points [-0.9, 0.2]") < first_section
    why = "Validation ranks are filtered by train and validation only"
    assert page.text.count(why) == 2  # at the top, and below the table with columns of both
    assert why not in drawn(replace(result, test_runs=())).text
    console = Console(file=io.StringIO(), width=300)
    closing_table(console, result)
    assert isinstance(console.file, io.StringIO)
    assert why in console.file.getvalue()
