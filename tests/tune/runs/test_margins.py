"""Intervals of the winner's lead, from paired ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from imf_core.evaluate.paired import bootstrap_interval, compare_ranks
from imf_core.evaluate.test_once import RANKS_FILE
from tune.runs.margins import margin_on_test, margins

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


def test_on_test_the_kept_ranks_are_resampled(tmp_path: Path) -> None:
    file = tmp_path / RANKS_FILE
    assert margin_on_test(file) is None
    save_file({f"own/{seed}": RANKS[f"seed {seed}"].astype(np.float32) for seed in (0, 1)}, file, metadata={"graph": "x"})
    scores = ((1 / RANKS["seed 0"] + 1 / RANKS["seed 1"]) / 2).reshape(2, -1).mean(axis=0)
    low, high = bootstrap_interval(scores)
    assert margin_on_test(file) == pytest.approx([low - scores.mean(), high - scores.mean()])
