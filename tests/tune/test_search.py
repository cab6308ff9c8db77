"""The main job, as a user starts it: a search on a small graph folder, from the command line to the reloaded winner."""

from __future__ import annotations

import ast
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file
from small_search import ready_database, run_search, write_graph
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.config import TrainConfig
from imf_core.ensemble.ensemble import open_predictor
from imf_core.predict import Predictor


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("home")
    write_graph(home / "graph")
    repository = Path(__file__).parents[2]
    done = run_search(
        repository,
        home,
        "--data",
        "graph",
        "--trials",
        "7",
        "--seeds",
        "2",
        "--study",
        "small",
        "--grace",
        "1",
        "--reduction",
        "2",
        "--first",
        "base",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "results" / "small", done


def test_summary_counts_every_trial_once(study: tuple) -> None:
    folder, _ = study
    summary = json.loads((folder / "summary.json").read_text())
    assert sum(summary["trials"].values()) == 7
    assert summary["trials"]["pruned"] >= 1
    assert summary["trials"]["failed"] == summary["trials"]["diverged"] == 0
    assert summary["seeds"] == [0, 1]
    assert summary["test_opened"] == 1
    assert 0 < summary["test"]["mrr"]["mean"] <= 1
    assert summary["test"]["mrr"]["std"] is not None
    assert 0 < summary["structure_only_validation_mrr"] < 1
    rules = summary["audit"]["baseline"]  # test without training is scored where the winner's is: at the end
    assert sorted(rules) == ["test", "valid"]
    assert summary["points_over_baseline"]["test"] == pytest.approx(
        100 * (summary["test"]["mrr"]["mean"] - rules["test"]["mrr"])
    )
    assert json.loads((folder / "audit.json").read_text()) == summary["audit"]
    trials = json.loads((folder / "trials.json").read_text())
    assert summary["best_validation_mrr"] == max(trial["best_mrr"] for trial in trials)
    assert trials[0]["params"]["train.lr"] == TrainConfig().lr  # the defaults are trial 1
    assert (folder / "leaderboard.csv").read_text().count("\n") == 8


def test_the_best_trials_keep_their_checkpoints_and_become_an_ensemble(study: tuple, tmp_path: Path) -> None:
    folder, _ = study
    trials = pd.read_csv(folder / "leaderboard.csv")
    there = {place.parent.name for place in folder.glob("trials/*/best")}
    ended = [f"trial-{number:03d}" for number in trials[trials["state"] == "completed"]["trial"]]
    assert 2 <= len(there) == min(3, len(ended)) and there == set(ended[:3])
    made = CliRunner().invoke(app, ["ensemble", str(tmp_path / "pool"), str(folder), "--json"], catch_exceptions=False)
    said = json.loads(made.stdout)
    assert said["candidates"] > len(there) and said["validation"]["mrr"] >= said["best_single_mrr"] - 1e-9
    assert open_predictor(tmp_path / "pool").tails("thing 1", "belongs to", k=1)


def test_the_page_tells_of_space_slices_and_weights(study: tuple) -> None:
    folder, _ = study
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name in ("space", "importances", "test", "comparison", "leaderboard", "slices-validation", "slices-test", "weights"):
        assert f'<table id="{name}">' in page
    metrics = json.loads((folder / "best" / "config.json").read_text())["metrics"]
    assert metrics["test"]["slices"].keys() == metrics["validation"]["slices"].keys()


def test_closing_table_names_winner_worth_and_next_commands(study: tuple) -> None:
    _, done = study
    for words in ("winner: trial", "structure alone", "test (2 seeds)", "imf predict", "mlflow ui", "--warm-start"):
        assert words in done.stdout, done.stdout


def test_mlflow_has_one_parent_and_one_child_a_trial(study: tuple) -> None:
    folder, _ = study
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    runs = client.search_runs([experiment.experiment_id], "tags.study = 'small'")
    roles = {role: [run for run in runs if run.data.tags["role"] == role] for role in ("study", "trial", "final")}
    assert (len(roles["study"]), len(roles["trial"]), len(roles["final"])) == (1, 7, 3)
    parent = roles["study"][0].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in (*roles["trial"], *roles["final"])} == {parent}
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = json.loads((folder / "trials.json").read_text())
    pruned = {run.data.tags["trial_id"] for run in roles["trial"] if run.data.tags.get("pruned") == "true"}
    assert pruned == {trial["trial_id"] for trial in trials if trial["state"] == "pruned"}
    for trial in trials:
        (run,) = [run for run in roles["trial"] if run.data.tags["trial_id"] == trial["trial_id"]]
        assert len(client.get_metric_history(run.info.run_id, "mrr")) == trial["epochs"]
        assert run.data.params["train.lr"] == str(trial["params"]["train.lr"])


def test_mlflow_keeps_what_the_study_wrote(study: tuple) -> None:
    folder, _ = study
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.study = 'small' and tags.role = 'study'")
    kept = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "model_card.md", "audit.json", "leaderboard.csv", "history.png", "checkpoint"} <= kept
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    test = json.loads((folder / "best" / "config.json").read_text())["metrics"]["test"]
    assert f"{test['mrr']:.4f}" in card and "seeds of the retrained winner" in card


def test_registered_winner_answers_by_name(study: tuple) -> None:
    folder, _ = study
    mlflow.set_tracking_uri(f"sqlite:///{folder.parent / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/small@champion")
    answers = model.predict(pd.DataFrame({"head": ["thing 1"], "relation": ["belongs to"]}), params={"k": 3})
    expected = [answer.entity for answer in Predictor.load(folder / "best").tails("thing 1", "belongs to", 3)]
    assert answers["tail"].tolist() == expected


def test_optuna_export_has_an_end_for_every_trial(study: tuple) -> None:
    folder, _ = study
    with sqlite3.connect(folder / "optuna.db") as database:
        states = [state for (state,) in database.execute("select state from trials")]
    assert len(states) == 7
    assert set(states) <= {"COMPLETE", "PRUNED"}


def test_trials_cannot_reach_a_test_triple(study: tuple) -> None:
    folder, _ = study
    arrays = load_file(folder / "data" / "arrays.safetensors")
    assert {"train", "valid"} <= set(arrays)
    assert "test" not in arrays
    lines = (folder.parents[1] / "graph" / "test.tsv").read_text().splitlines()
    names = json.loads((folder / "data" / "vocabulary.json").read_text())
    held = {tuple(row) for part in ("train", "valid") for row in arrays[part].tolist()}
    for line in lines:
        head, relation, tail = line.split("\t")
        ids = (names["entities"].index(head), names["relations"].index(relation), names["entities"].index(tail))
        assert ids not in held


def test_test_is_opened_in_finalise_alone(repository: Path) -> None:
    """`open_test` and `test_reader` are called nowhere else in a search (`--split test` of a command is the user's own act)."""
    found = set()
    for path in [*repository.glob("imf_core/**/*.py"), *repository.glob("tune/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("open_test", "test_reader"):
                found.add(path.relative_to(repository).as_posix())
    data = {"imf_core/data/graph/graph.py", "imf_core/recommend/data/interactions.py"}
    told = {"imf_core/prepare/link_data.py", "imf_core/recommend/data/prepare.py"}  # `has_test`, which opens nothing
    tasks = {"imf_core/tasks/link.py", "imf_core/tasks/recommend.py"}  # `Task.test`, which finalising calls
    assert found == data | told | tasks | {"imf_core/commands/recommender/train.py"}
    calls = [
        path.relative_to(repository).as_posix() for path in repository.glob("tune/**/*.py") if "task.test(" in path.read_text()
    ]
    assert calls == ["tune/runs/finalise.py"]


def test_search_finds_the_same_without_the_test_file(study: tuple, repository: Path, tmp_path: Path) -> None:
    """One trial at a time repeats every number; with test.tsv away, not one of them changes, and finalising says so."""
    folder, _ = study
    seen = []
    for keep in (True, False):
        home = tmp_path / str(keep)
        shutil.copytree(folder.parents[1] / "graph", ready_database(home) / "graph")
        if not keep:
            (home / "graph" / "test.tsv").unlink()
        done = run_search(
            repository,
            home,
            "--data",
            "graph",
            "--trials",
            "3",
            "--seeds",
            "1",
            "--study",
            "s",
            "--concurrency",
            "1",
            "--set",
            "train.max_epochs=2",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        trials = json.loads((home / "results" / "s" / "trials.json").read_text())
        seen.append([(trial["params"], trial["best_mrr"], trial["curve"]) for trial in trials])
    assert seen[0] == seen[1]
    assert "no test split" in done.stdout


def test_failed_trials_are_told_and_the_others_go_on(study: tuple, repository: Path, tmp_path: Path) -> None:
    """A modality that is not there fails its trials alone."""
    folder, _ = study
    shutil.copytree(folder.parents[1] / "graph", ready_database(tmp_path) / "graph")
    (tmp_path / "space.yaml").write_text(
        'model.modalities: {choices: [["text"], ["sound"]]}\ntrain.lr: {low: 0.001, high: 0.01}\n'
    )
    done = run_search(
        repository,
        tmp_path,
        "--data",
        "graph",
        "--trials",
        "5",
        "--seeds",
        "1",
        "--study",
        "s",
        "--space",
        "space.yaml",
        "--set",
        "train.max_epochs=1",
        "--max-failures",
        "0",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    trials = json.loads((tmp_path / "results" / "s" / "trials.json").read_text())
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert len(trials) == 5
    assert 1 <= len(failed) <= 4
    for trial in failed:
        assert "modality 'sound' is not there; found: text" in trial["reason"]
        assert trial["best_mrr"] is None
    assert "modality 'sound' is not there" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (["--workers", "64"], "a trial needs 64 CPU"),
        (["--tracking-uri", "./mlruns"], "a folder of files, which MLflow 3 refuses"),
        (["--data", "nowhere"], "neither a folder nor a bundled data set"),
        (["--budget", "soon"], "is not a duration"),
    ],
)
def test_bad_input_is_refused_before_any_training(repository: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_graph(tmp_path / "graph")
    done = run_search(repository, tmp_path, *(["--data", "graph"] if "--data" not in arguments else []), *arguments, timeout=60)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_dry_run_prints_the_plan_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    write_graph(tmp_path / "graph")
    done = run_search(repository, tmp_path, "--data", "graph", "--dry-run", timeout=60)
    assert done.returncode == 0, done.stderr
    for words in (
        "128 entities, 3 relations",
        "text: 116 of 128 entities",
        "GiB for each worker",
        "model.fusion_rank",
        "train.lr",
    ):
        assert words in done.stdout
    assert not (tmp_path / "results").exists()


def test_an_existing_study_is_never_mixed_with_another(study: tuple, repository: Path) -> None:
    folder, _ = study
    before = (folder / "trials.json").read_bytes()
    done = run_search(repository, folder.parents[1], "--data", "graph", "--study", "small", timeout=60)
    assert done.returncode == 2
    assert "the study 'small' was begun with something else" in " ".join(done.stderr.split())
    assert "reduction: 2.0 then, 3.0 now" in " ".join(done.stderr.split())
    assert (folder / "trials.json").read_bytes() == before
