"""A package that adds a scorer, a fusion operator and a text encoder is searched, asked, exported to MLflow, loaded again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_search import ready_database, write_graph

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.errors import CheckpointError
from tests.parts.conftest import on_path

pytestmark = pytest.mark.cluster
SPACE = """
model.scoring: {choices: [rotate]}
model.rotate.margin: {low: 2, high: 12, log: true}
model.weighted.squash: {choices: [tanh, none]}
train.lr: {low: 1e-2, high: 5e-2, log: true}
"""
SETTINGS = (
    "model.fusion=weighted", "data.text_encoder=hashes", "data.hashes.width=16", "model.dim=16", "model.relation_dim=8",
    "train.batch_size=64", "train.max_epochs=3", "model.dropout_context=0.1",
)
MODEL = """
import json, sys, mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
questions = pandas.DataFrame({"relation": ["follows"], "head": ["thing 1"]})
print(json.dumps(model.predict(questions, params={"k": 3}).to_dict("list")))
"""


def environment(*path: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "160"}


def searched(home: Path, repository: Path, path: tuple[Path, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A search of two trials, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(repository / "tune" / "search.py"), "--trials", "2", "--seeds", "1", "--study", "own",
         "--first", "drawn", *arguments],
        cwd=ready_database(home), env=environment(*path), capture_output=True, text=True, timeout=280, check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_package_of_parts_from_search_to_answers(workers: int, tmp_path: Path, site: Path, repository: Path) -> None:
    graph = write_graph(tmp_path / "graph")
    (tmp_path / "space.yaml").write_text(SPACE)
    fixed = [part for setting in SETTINGS for part in ("--set", setting)]
    done = searched(
        tmp_path, repository, (site,), "--data", str(graph), "--space", str(tmp_path / "space.yaml"), "--workers", str(workers),
        *fixed,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    study = tmp_path / "results" / "own"
    summary = json.loads((study / "summary.json").read_text())
    assert summary["trials"]["failed"] == 0 and summary["trials"]["completed"] + summary["trials"]["pruned"] == 2
    assert {"model.scoring", "model.rotate.margin", "model.weighted.squash"} <= set(summary["winner"]["params"])
    assert "model.rotate.margin" in (study / "report.html").read_text()
    margin = summary["winner"]["params"]["model.rotate.margin"]
    described = json.loads((study / "best" / "config.json").read_text())
    assert described["config"]["model"]["rotate"] == {"margin": margin}
    assert {part["name"] for part in described["parts"]} == {"rotate", "weighted", "hashes"}
    assert "registered model" not in done.stderr  # MLflow took it
    with pytest.raises(CheckpointError, match=r"pip install rotate-part==1\.0"):
        load_checkpoint(study / "best")
    with on_path(site):
        assert load_checkpoint(study / "best").config.flat()["model.rotate.margin"] == margin
    asked = subprocess.run(
        [sys.executable, "-m", "imf_core.cli", "predict", str(study / "best"), "--head", "thing 1", "-r", "follows", "-k", "3"],
        cwd=tmp_path, env=environment(repository, site), capture_output=True, text=True, check=False,
    )
    assert asked.returncode == 0 and "thing" in asked.stdout, asked.stdout + asked.stderr
    command = [sys.executable, "-c", MODEL, f"sqlite:///{tmp_path}/results/mlflow.db", "imf-graph"]
    answered = subprocess.run(
        command, cwd=tmp_path, env=environment(repository, site), capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout.splitlines()[-1])["rank"] == [1, 2, 3]
    requirements = [file.read_text() for file in (tmp_path / "results" / "mlartifacts").rglob("requirements.txt")]
    assert requirements and all("rotate-part==1.0" in text for text in requirements)


NOTEBOOK = """
import sys
import imf_core, tune
from imf_core.model.scoring import DistMult

class Own(imf_core.Section):
    scale: float = 2.0

@imf_core.scorer("typed", settings=Own)
class Typed(DistMult):
    "A scorer of a notebook."
    @classmethod
    def of(cls, config, settings):
        made = super().of(config)
        made.scale = settings.scale
        return made
    def score_pairs(self, context, candidates):
        return super().score_pairs(context, candidates)

if __name__ == "__main__":
    study = tune.search(
        sys.argv[1], trials=2, seeds=1, study="typed", first="drawn", workers=int(sys.argv[2]),
        overrides={"model.scoring": "typed", "model.dim": 8, "train.max_epochs": 2},
    )
    print(study.ended, study.best.best_mrr > 0, len(study.predictor().tails("thing 1", "follows", k=3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_of_a_notebook_reaches_the_workers(workers: int, tmp_path: Path, repository: Path) -> None:
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    done = subprocess.run(
        [sys.executable, "notebook.py", str(write_graph(tmp_path / "graph")), str(workers)], cwd=ready_database(tmp_path),
        env=environment(repository), capture_output=True, text=True, timeout=280, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done True 3"


@pytest.mark.slow
def test_a_part_of_a_file_is_searched_resumed_and_registered_with_its_code(
    tmp_path: Path, site: Path, repository: Path
) -> None:
    graph, file = write_graph(tmp_path / "graph"), tmp_path / "rotate.py"
    file.write_text((site / "rotate_part" / "scorer.py").read_text().replace('"rotate"', '"filed"'))
    fixed = [part for setting in (
        "model.scoring=filed", "model.dim=16", "train.max_epochs=3", "train.batch_size=64",
    ) for part in ("--set", setting)]
    done = searched(tmp_path, repository, (), "--data", str(graph), "--part", str(file), *fixed)
    assert done.returncode == 0, done.stdout + done.stderr
    more = subprocess.run(
        [sys.executable, str(repository / "tune" / "search.py"), "--study", "own", "--extend", "1"], cwd=tmp_path,
        env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )
    assert more.returncode == 0, more.stdout + more.stderr  # the study knows its file
    file.write_text(file.read_text() + "\n# changed\n")
    other = subprocess.run(
        [sys.executable, str(repository / "tune" / "search.py"), "--study", "own", "--extend", "1"], cwd=tmp_path,
        env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )
    assert other.returncode == 2 and "part: filed" in other.stderr
    file.unlink()
    answered = subprocess.run(
        [sys.executable, "-c", MODEL, f"sqlite:///{tmp_path}/results/mlflow.db", "imf-graph"], cwd=tmp_path,
        env=environment(repository), capture_output=True, text=True, check=False,
    )
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout.splitlines()[-1])["rank"] == [1, 2, 3]
