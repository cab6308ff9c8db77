"""Intervals of the winner's lead, from paired ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imf_core.evaluate.paired import compare_ranks
from tune.runs.margins import margins

DRAW = np.random.default_rng(0)
RANKS = {name: DRAW.integers(1, 20, 80).astype(float) for name in ("seed 0", "seed 1", "text", "image")}


def plan(ranks: dict[str, Any]) -> Any:
    task = SimpleNamespace(validation_ranks=lambda checkpoint, config, data: ranks[checkpoint.name])
    return SimpleNamespace(task=task, base=None, data=None)


def test_the_margin_is_that_of_the_paired_comparison() -> None:
    found = margins(plan(RANKS), [Path("seed 0")], {"text": Path("text"), "image": Path("image")})
    for name in ("text", "image"):
        compared = compare_ranks(RANKS["seed 0"], RANKS[name])
        low, high = (bound - compared.all.difference for bound in compared.interval)
        assert found[name] == pytest.approx([low, high])
        assert low < 0 < high


def test_several_seeds_count_with_their_mean() -> None:
    pooled = 2 / (1 / RANKS["seed 0"] + 1 / RANKS["seed 1"])
    alone = margins(plan({**RANKS, "pooled": pooled}), [Path("pooled")], {"text": Path("text")})["text"]
    both = margins(plan(RANKS), [Path("seed 0"), Path("seed 1")], {"text": Path("text")})["text"]
    assert both == pytest.approx(alone)


def test_a_task_without_ranks_has_none() -> None:
    assert margins(plan(dict.fromkeys(RANKS)), [Path("seed 0")], {"text": Path("text")}) == {}
    assert margins(plan({}), [Path("seed 0")], {}) == {}
