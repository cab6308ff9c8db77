"""The command line of the search: what it refuses before anything is trained, and what it shows of a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_search import search_here, write_graph


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (["--workers", "64"], "a trial needs 64 CPU"),
        (["--tracking-uri", "./mlruns"], "a file store, which MLflow 3 no longer accepts"),
        (["--data", "nowhere"], "neither a folder nor a bundled data set"),
        (["--budget", "soon"], "is not a duration"),
    ],
)
def test_bad_input_is_refused_before_any_training(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_graph(tmp_path / "graph")
    done = search_here(tmp_path, *(["--data", "graph"] if "--data" not in arguments else []), *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_dry_run_prints_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph")
    done = search_here(tmp_path, "--data", "graph", "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in (
        "128 entities, 3 relations",
        "text: 116 of 128 entities",
        "GiB for each worker",
        "model.fusion_rank",
        "train.lr",
    ):
        assert words in " ".join(done.stdout.split())
    assert not (tmp_path / "results").exists()
