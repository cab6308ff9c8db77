"""A task that another package brings: installed beside the product, found by its entry point, searched to its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imf_core.errors import ConfigError
from imf_core.tasks import registry

TASK = Path(__file__).parents[1] / "support" / "node_labels.py"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder like site-packages with the package in it."""
    site = tmp_path / "site"
    (site / "node_labels-1.0.dist-info").mkdir(parents=True)
    (site / "node_labels.py").write_bytes(TASK.read_bytes())
    (site / "node_labels-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: node-labels\nVersion: 1.0\n")
    (site / "node_labels-1.0.dist-info" / "entry_points.txt").write_text("[imf_search.tasks]\nlabels = node_labels:LABELS\n")
    return site


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """120 nodes in four classes that their features tell, with noise."""
    rng = np.random.default_rng(0)
    classes = rng.integers(4, size=120)
    folder = tmp_path / "nodes"
    folder.mkdir()
    splits = ["train"] * 80 + ["valid"] * 20 + ["test"] * 20
    lines = (f"node {row}\tclass {label}\t{split}\n" for row, (label, split) in enumerate(zip(classes, splits, strict=True)))
    (folder / "labels.tsv").write_text("".join(lines))
    np.save(folder / "features.npy", (np.eye(4)[classes] + 0.3 * rng.standard_normal((120, 4))).astype(np.float32))
    return folder


def test_the_task_is_short() -> None:
    assert len(TASK.read_text().splitlines()) <= 150


def test_an_unknown_task_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="there is no task 'lnk'; did you mean 'link'") as caught:
        registry.task_named("lnk")
    assert "link, recommend" in str(caught.value)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_search_of_two_trials_reaches_its_report(installed: Path, labelled: Path, tmp_path: Path, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "tune" / "search.py"), "--task", "labels", "--data", str(labelled), "--trials", "2",
         "--seeds", "2", "--study", "labels"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "120"}, capture_output=True, text=True,
        timeout=200, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "results" / "labels"
    summary = json.loads((study / "summary.json").read_text())
    assert summary["task"] == "labels"
    assert summary["trials"]["completed"] + summary["trials"]["pruned"] == 2
    assert summary["test"]["mrr"]["mean"] > summary["audit"]["baseline"]["test"]["mrr"]
    assert set(summary["test"]) == {"mrr", "hits_at_1"}
    assert "the most frequent classes" in (study / "report.html").read_text()
    published = json.loads((study / "best" / "config.json").read_text())
    assert published["metrics"]["test"]["mrr"] == pytest.approx(summary["test"]["mrr"]["mean"], abs=0.2)
    assert "registered model" not in done.stderr  # MLflow took it
    held_back = json.loads((study / "data" / "facts.json").read_text())["splits"]
    assert "test" not in held_back
