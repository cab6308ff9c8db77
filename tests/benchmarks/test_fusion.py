"""What the fusion figures rest on: equal numbers of the textbook form and ours, and a page that says what was measured.

No time is asserted: it is the machine's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import fusion
from benchmarks.fusion import FORMS, SETUPS, Setup

TINY = Setup("Tiny", (12, 8, 4), True, meta_dim=3, meta_hidden=6, cp_rank=2)


def test_the_textbook_gives_the_same_numbers_and_gradients() -> None:
    stack = fusion.made(TINY, "textbook").double()
    features = torch.randn(30, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    leaves = [features, *stack.parameters()]
    results = []
    for form in (fusion.textbook(stack, features), stack(features)):
        results.append([form, *torch.autograd.grad((form**2).sum(), leaves)])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)
    names = {form: [name for name, _ in fusion.made(TINY, form).named_parameters()] for form in FORMS}
    assert names["textbook"] == names["meta"] != names["meta_cp"]


def test_the_arithmetic_is_that_of_the_paper() -> None:
    """Its first layer on MovieLens, 5,986 items: 55.8 GB of weights."""
    first = Setup("first layer", SETUPS["movielens"].widths[:2], False)
    assert fusion.textbook_bytes(first, 5986) / 2 / 1e9 == pytest.approx(55.8, abs=0.05)


def test_a_rehearsal_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process for one figure, and the page; a second run repeats nothing."""
    real, asked = fusion.apart, []

    def apart(setup: Setup, form: str, items: int) -> fusion.Run:
        asked.append((form, items))
        if asked == [("textbook", 50)]:
            return real(setup, form, items)
        return {"seconds": 0.5 if form == "meta" else 0.25, "wall_seconds": 1.0, "gib": 2.0 if form == "meta" else 0.5}

    monkeypatch.setattr(fusion, "apart", apart)
    limit = fusion.textbook_bytes(TINY, 60) / fusion.GIB
    for _ in range(2):
        rows = fusion.compare([TINY], [50, 70], 2, limit, tmp_path / "cache.jsonl", "state")
    assert asked == [*[(form, 50) for form in FORMS] * 2, *[(form, 70) for form in FORMS[1:]] * 2]
    fusion.write(tmp_path / "out", rows, 2)
    found = json.loads((tmp_path / "out" / "fusion.json").read_text(encoding="utf-8"))
    first, second = found["rows"]
    assert first["forms"]["textbook"]["runs"][0]["seconds"] > 0
    assert first["ratios"]["seconds_meta_to_meta_cp"] == 2.0 and first["ratios"]["gib_meta_to_meta_cp"] == 4.0
    assert "textbook" not in second["forms"] and set(second["ratios"]) == {"seconds_meta_to_meta_cp", "gib_meta_to_meta_cp"}
    assert found["machine"]["torch"] == torch.__version__ and found["threads"] == 1
    text = (tmp_path / "out" / "fusion.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| 70 |"))
    assert line == "| 70 | not run | 0.500 | 0.250 | - | 2.0 | (weights: 0) | 2,048 | 512 | - | 4.0 |"
    assert "12 → 8 → 4; S = 3, Q = 2" in text and found["machine"]["cpu"] in text


def test_the_committed_page_is_that_of_the_committed_figures(repository: Path) -> None:
    found = json.loads((repository / "results" / "fusion.json").read_text(encoding="utf-8"))
    assert [row["items"] for row in found["rows"]] == list(fusion.ITEMS) * len(SETUPS)
    assert (repository / "results" / "fusion.md").read_text(encoding="utf-8") == fusion.whole_page(repository / "results")
