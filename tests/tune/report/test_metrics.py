"""The results of a study as MLflow's list of studies shows them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import SHARES, small_study

from tune.report.metrics import description, study_metrics


def test_a_study_has_a_figure_for_all_it_found(tmp_path: Path) -> None:
    found = study_metrics(replace(small_study(tmp_path, None), test_pooled={"mrr": 0.56}))
    assert found == {
        "best_mrr": 0.52, "valid_mrr": pytest.approx(0.51), "valid_mrr_std": pytest.approx(0.01),
        "test_mrr": pytest.approx(0.52), "test_mrr_std": pytest.approx(0.02), "test_mrr_ensemble": 0.56,
        **{f"test_{name}": pytest.approx(value) for name, value in SHARES.items()},
        **{f"test_{name}_std": pytest.approx(0.0) for name in SHARES},
        "baseline_valid_mrr": 0.21, "baseline_test_mrr": 0.32,
        "gain_text": pytest.approx(0.04), "gain_image": pytest.approx(-0.005), "gain_over_control": pytest.approx(0.07),
        "trials": 6, "trials_completed": 2, "trials_pruned": 1, "trials_stopped": 1, "trials_failed": 1, "trials_diverged": 1,
        "seconds": 301.26,
    }
    assert all(math.isfinite(value) for value in found.values())


def test_what_is_unknown_has_no_figure(tmp_path: Path) -> None:
    study = replace(
        small_study(tmp_path, None), records=(), winner_seed_mrr=(), test_runs=(), structure_only_mrr=math.nan, audit=None
    )
    states = {f"trials_{state}": 0 for state in ("completed", "pruned", "stopped", "failed", "diverged")}
    assert study_metrics(study) == {"trials": 0, **states, "seconds": 301.26}
    assert description(study) == "Search of 0 trials (none) in 5m01s on unicode; task: link. No trial has a validation MRR."


def test_a_study_is_described_in_sentences(tmp_path: Path) -> None:
    study = small_study(tmp_path, None)
    assert description(replace(study, data="my_graph")) == (
        "Search of 6 trials (2 completed, 1 pruned, 1 stopped, 1 failed, 1 diverged) in 5m01s on my\\_graph "
        "(2 entities, 1 relations); task: link. Trial 3 won with validation MRR 0.5200; retrained with 3 seeds: "
        "0.5100 ± 0.0100. Test MRR 0.5200 ± 0.0200; without training (one-step rules) 0.3200."
    )
    bare = description(replace(study, winner_seed_mrr=(), test_runs=()))
    assert bare.endswith("Trial 3 won with validation MRR 0.5200.")
