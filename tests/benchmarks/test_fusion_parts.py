"""The table of operators and auxiliary losses: a rehearsal on little, and that nothing is measured twice.

No time is asserted.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fusion, fusion_parts
from benchmarks.fusion_parts import Asked, Run
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from tests.support.tiny_checkpoint import tiny_graph

LITTLE = ("data.text=names", "model.dim=8", "model.relation_dim=6", "train.batch_size=32", "train.max_epochs=1")


@pytest.mark.parametrize("variant", list(fusion_parts.VARIANTS))
def test_each_variant_is_a_configuration(variant: str) -> None:
    settings = [item for item in fusion_parts.VARIANTS[variant] if item != fusion_parts.RULES]
    assert Config().updated(parse_overrides((*fusion_parts.SETTINGS, *settings)))


@pytest.mark.parametrize("variant", ["tucker", "hub", "self_mi", "preferences of the rules"])
def test_a_run_keeps_its_ranks(tmp_path: Path, variant: str) -> None:
    graph = tiny_graph(tmp_path / "graph")
    run = fusion_parts.measure(Asked(str(graph), variant, 0, LITTLE), tmp_path / "ranks.npy")
    ranks = np.load(tmp_path / "ranks.npy")
    assert run["mrr"] == pytest.approx((1 / ranks).mean()) == pytest.approx(run["best_mrr"])
    assert run["epochs"] == 1 and run["parameters"] > 0 and run["gib"] > 0


def test_a_rehearsal_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One real process; the others are stand-ins. An interrupted table goes on where it stopped."""
    graph, real, asked = str(tiny_graph(tmp_path / "graph")), fusion_parts.apart, list[tuple[str, int]]()

    def apart(given: Asked, ranks_file: Path) -> Run:
        asked.append((given.variant, given.seed))
        if len(asked) == 1:
            found = real(given, ranks_file)
            np.save(ranks_file, np.full(200, 4.0))
            return {**found, "mrr": 0.25}
        if len(asked) == 4:
            raise KeyboardInterrupt
        better = 2.0 if given.variant == "hub" else 4.0
        np.save(ranks_file, np.full(200, better))
        return {"mrr": 1 / better, "epoch_seconds": 2.0, "gib": 0.5}

    monkeypatch.setattr(fusion_parts, "apart", apart)
    cache, few = tmp_path / "cache" / "parts.jsonl", ["hub", "gated"]
    with pytest.raises(KeyboardInterrupt):
        fusion_parts.compare([graph], 2, cache, LITTLE, few)
    rows = fusion_parts.compare([graph], 2, cache, LITTLE, few)
    assert asked == [*[(name, 0) for name in ("tucker", *few)], ("tucker", 1), *[(name, 1) for name in ("tucker", *few)]]
    by_name = {row["variant"]: row for row in rows}
    assert by_name["hub"]["difference"] == 0.25 and by_name["hub"]["p"] < 0.001 and by_name["gated"]["p"] == 1.0
    fusion.write_parts(tmp_path / "out", rows, 2, "python -m benchmarks.fusion --parts graph", LITTLE)
    text = (tmp_path / "out" / "fusion.md").read_text(encoding="utf-8")
    assert "| hub | MMICT, arXiv 2312.06363 | 50.00 ± 0.00 | +25.00 (+25.00 to +25.00) |" in text
    lines = {line.split(" | ")[0].lstrip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert lines["hub"].rstrip(" |").endswith("better") and lines["gated"].rstrip(" |").endswith("no real difference")
    assert json.loads((tmp_path / "out" / "fusion_parts.json").read_text(encoding="utf-8"))["settings"] == list(LITTLE)
    assert fusion.whole_page(tmp_path / "out") == text


def test_other_code_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Asked("unicode", "hub", 0).key
    monkeypatch.setattr(fusion_parts, "code_state", lambda: "another")
    assert Asked("unicode", "hub", 0).key != before
