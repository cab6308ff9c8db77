"""Pictures of how the score depends on the settings: scales, what is drawn and what is not."""

from __future__ import annotations

import re

import pytest
from small_study import RECORDS, record

from tune.report.pictures.parameters import MOST, Scale, panels, parallel

NAMES = {"train.lr": "lr", "model.kind": "kind"}
TRIALS = tuple(
    record(number, "completed", 0.1 * (number + 1), 4, params={"train.lr": 10.0 ** -number, "model.kind": kind})
    for number, kind in enumerate(("tucker", "gated", "concat"))
)


def test_numbers_lie_by_size_and_other_values_side_by_side() -> None:
    plain = Scale([2, 4, 3])
    assert [plain(value) for value in (2, 3, 4)] == [0.0, 0.5, 1.0]
    assert plain.ticks == [(0.0, "2"), (1.0, "4")]
    assert Scale([0.001, 0.1])(0.01) == pytest.approx(0.5)  # a broad range counts by its exponent
    kinds = Scale(["b", "a", ["x"]])
    assert [kinds(value) for value in (["x"], "a", "b")] == [0.0, 0.5, 1.0]
    assert Scale([7, 7])(7) == 0.5 and Scale([7, 7]).ticks == [(0.5, "7")]
    assert Scale(["a"])("a") == 0.5


def test_a_panel_for_each_setting_has_plain_numbers() -> None:
    drawn = panels(TRIALS, NAMES)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"lr", "kind", "concat", "gated", "tucker", "MRR"} <= set(texts)
    assert {"0.01", "0.1"} <= set(texts) and "mathdefault" not in drawn
    assert panels(TRIALS, NAMES) == drawn


def test_lines_go_through_all_settings_to_the_score() -> None:
    drawn = parallel(TRIALS, NAMES)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    assert {"lr", "kind", "MRR", "0.1", "0.3", "1", "0.01"} <= set(texts)
    assert drawn.startswith("<svg") and "<script" not in drawn


def test_there_is_no_picture_of_nothing() -> None:
    lost = tuple(trial for trial in RECORDS if not trial.state.usable)
    assert panels(lost, NAMES) == "" and panels(TRIALS, {}) == ""
    assert parallel(TRIALS[:1], NAMES) == "" and parallel(TRIALS, {"train.lr": "lr"}) == ""


def test_names_are_text_and_the_less_important_are_left_out() -> None:
    hostile = '<script>alert("$x")</script>'
    many = {f"model.s{number:02d}": f"s{number:02d}" for number in range(MOST + 3)}
    trials = tuple(
        record(number, "completed", 0.1 + number / 2, 1, params={hostile: hostile, **dict.fromkeys(many, number)})
        for number in (0, 1)
    )
    for draw in (panels, parallel):
        drawn = draw(trials, {hostile: hostile, **many})
        assert "<script" not in drawn and "s10" in drawn and "s11" not in drawn
