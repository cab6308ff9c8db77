"""The main job, as a user starts it: a search on a small graph folder, from the command line to the reloaded winner."""

from __future__ import annotations

import ast
import json
import re
import sqlite3
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from safetensors.numpy import load_file
from small_search import ready_database, search_here, write_graph
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.config_train import TrainConfig
from imf_core.ensemble.ensemble import load_ensemble, open_predictor
from imf_core.evaluate.test_once import POOL, RANKS_FILE, read_ranks
from imf_core.predict import Predictor
from tests.tune.conftest import Searched
from tune.hosts.resources import ClusterResources, Node
from tune.plan.opening import open_study
from tune.plan.plan import make_plan
from tune.settings import SearchConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


# --- the finished study -------------------------------------------------------------------------------------------------


def test_summary_counts_every_trial_once(searched: Searched) -> None:
    summary = json.loads((searched.folder / "summary.json").read_text())
    assert sum(summary["trials"].values()) == 6
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
    assert json.loads((searched.folder / "audit.json").read_text()) == summary["audit"]
    trials = json.loads((searched.folder / "trials.json").read_text())
    best = sorted(trials, key=lambda trial: -trial["best_mrr"])
    winner, duel = best[0], summary["duel"]
    if best[1]["best_mrr"] >= 0.97 * best[0]["best_mrr"]:  # else there is nothing to decide with a second seed
        assert [duel["first"], duel["second"]] == [trial["trial_id"] for trial in best[:2]]
        winner = best[int(duel["mrr"][1] > duel["mrr"][0])]
        assert duel["winner"] == winner["trial_id"]
    else:
        assert duel is None
    assert summary["winner"]["trial"] == winner["number"]
    assert summary["best_validation_mrr"] == winner["best_mrr"]
    assert trials[0]["params"]["train.lr"] == TrainConfig().lr  # the defaults are trial 1
    assert (searched.folder / "leaderboard.csv").read_text().count("\n") == 7


def test_the_best_trials_keep_their_checkpoints_and_become_an_ensemble(searched: Searched, tmp_path: Path) -> None:
    trials = pd.read_csv(searched.folder / "leaderboard.csv")
    kept = {path.parent.name for path in searched.folder.glob("trials/*/best")}
    completed = [f"trial-{number:03d}" for number in trials[trials["state"] == "completed"]["trial"]]
    assert 2 <= len(kept) == min(3, len(completed)) and kept == set(completed[:3])
    arguments = ["ensemble", str(tmp_path / "pool"), str(searched.folder), "--json"]
    pooled = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)
    assert pooled["candidates"] > len(kept) and pooled["validation"]["mrr"] >= pooled["best_single_mrr"] - 1e-9
    assert open_predictor(tmp_path / "pool").tails("thing 1", "belongs to", k=1)


def test_what_answers_best_together_is_kept_with_its_test_figures(searched: Searched) -> None:
    told = json.loads((searched.folder / "summary.json").read_text())
    pool = load_ensemble(searched.folder / "pool")
    assert told["pool"]["candidates"] >= 2 and len(pool.members) == len(told["pool"]["members"])
    assert pool.metrics["test"]["mrr"] == pytest.approx(told["pool"]["test"]["mrr"])
    assert told["pool"]["held_back_mrr"] > 0 and pool.metrics["validation"]["mrr"] == told["pool"]["validation"]["mrr"]
    assert all(values["latency_ms"] > 0 and values["bytes"] > 1000 for values in told["footprints"].values())
    assert told["footprints"].keys() == {"best", "pool"} and told["test_opened"] == 1
    ranks, _ = read_ranks(searched.folder / "final" / RANKS_FILE, POOL)
    assert (1 / ranks).mean() == pytest.approx(told["pool"]["test"]["mrr"], abs=1e-6)
    assert "pool/:" in searched.stdout


def test_the_page_tells_of_space_slices_and_weights(searched: Searched) -> None:
    page = (searched.folder / "report.html").read_text(encoding="utf-8")
    for name in ("space", "importances", "test", "comparison", "leaderboard", "slices-validation", "slices-test", "weights"):
        assert f'<table id="{name}">' in page
    metrics = json.loads((searched.folder / "best" / "config.json").read_text())["metrics"]
    assert metrics["test"]["slices"].keys() == metrics["validation"]["slices"].keys()


def test_the_page_judges_the_parts_with_intervals(searched: Searched) -> None:
    """Of this study's parts the intervals come from paired ranks: the journal has them."""
    page = (searched.folder / "report.html").read_text(encoding="utf-8")
    events = [json.loads(line) for line in (searched.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    (final,) = [event for event in events if event["event"] == "final"]
    assert set(final["margins"]) == {"structure alone", "one-step rules", *final["without"]}
    judged = re.findall(r'<li class="(good|bad|open)"><strong>([^<]*):</strong> ([^<]*)</li>', page)
    assert len(judged) >= 3
    assert sum(bool(re.search(r"[+-][\d.]+ points \[-?[\d.]+, -?[\d.]+\]", text)) for _, _, text in judged) >= 2
    assert {"relations", "leaderboard"} <= set(re.findall(r'<table id="([^"]*)"', page))
    assert page.count('<div class="entity">') >= 20


def test_the_picture_of_the_terminal_holds_the_end_alone(searched: Searched) -> None:
    picture = (searched.folder / "terminal.svg").read_text(encoding="utf-8")
    assert "best&#160;so&#160;far" in searched.stdout.replace(" ", "&#160;")
    assert "winner:" in picture and "best&#160;so&#160;far" not in picture
    assert len(picture) < 150_000


def test_closing_table_names_winner_worth_and_next_commands(searched: Searched) -> None:
    for words in ("winner: trial", "structure alone", "test (2 seeds)", "imf predict", "mlflow ui", "--warm-start"):
        assert words in searched.stdout, searched.stdout


def test_mlflow_has_one_parent_and_one_child_a_trial(searched: Searched) -> None:
    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    runs = client.search_runs([experiment.experiment_id], "tags.study = 's'")
    roles = {role: [run for run in runs if run.data.tags["role"] == role] for role in ("study", "trial", "final")}
    finals = {path.name for path in (searched.folder / "final").iterdir() if path.is_dir()}  # those of a beaten trial, too
    assert (len(roles["study"]), len(roles["trial"])) == (1, 6)
    assert sorted(run.data.tags["trial_id"] for run in roles["final"]) == sorted(finals)
    parent = roles["study"][0].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in (*roles["trial"], *roles["final"])} == {parent}
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = json.loads((searched.folder / "trials.json").read_text())
    pruned = {run.data.tags["trial_id"] for run in roles["trial"] if run.data.tags.get("pruned") == "true"}
    assert pruned == {trial["trial_id"] for trial in trials if trial["state"] == "pruned"}
    for trial in trials:
        (run,) = [run for run in roles["trial"] if run.data.tags["trial_id"] == trial["trial_id"]]
        assert len(client.get_metric_history(run.info.run_id, "mrr")) == trial["epochs"]
        assert run.data.params["train.lr"] == str(trial["params"]["train.lr"])


def test_mlflow_lists_the_study_with_its_results(searched: Searched) -> None:
    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.role = 'study' and metrics.test_mrr > 0")
    summary = json.loads((searched.folder / "summary.json").read_text())
    metrics, rules = parent.data.metrics, summary["audit"]["baseline"]
    expected = {
        "best_mrr": summary["best_validation_mrr"], "valid_mrr": summary["winner_validation_mrr"]["mean"],
        "valid_mrr_std": summary["winner_validation_mrr"]["std"], "test_mrr": summary["test"]["mrr"]["mean"],
        "test_mrr_std": summary["test"]["mrr"]["std"], "test_hits_at_10": summary["test"]["hits_at_10"]["mean"],
        "baseline_valid_mrr": rules["valid"]["mrr"], "baseline_test_mrr": rules["test"]["mrr"],
        "gain_over_control": summary["points_over_structure_only"] / 100, "trials": 6,
        **{f"trials_{state}": count for state, count in summary["trials"].items()},
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert metrics["seconds"] == pytest.approx(summary["wall_seconds"], abs=1)
    assert "Test MRR" in parent.data.tags["mlflow.note.content"] and "6 trials" in parent.data.tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.source.name"].endswith("tune/search.py")
    (data,) = parent.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("graph", summary["data_fingerprint"][:36])
    counts = json.loads(data.dataset.profile)
    assert (counts["entities"], counts["relations"], counts["valid_triples"], counts["test_triples"]) == (128, 3, 40, 40)
    assert data.tags[0].value == "training"


def test_a_final_run_has_the_metrics_of_a_trial_and_no_settings(searched: Searched) -> None:
    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    runs = client.search_runs([experiment.experiment_id], "tags.study = 's'")
    names = {role: {name for run in runs if run.data.tags["role"] == role for name in run.data.metrics}
             for role in ("trial", "final")}
    assert names["final"] and names["final"] <= names["trial"]
    assert not [name for name in names["trial"] if name.startswith(("config", "model.", "train.", "params"))]


def test_mlflow_keeps_what_the_study_wrote(searched: Searched) -> None:
    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("imf-search")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.study = 's' and tags.role = 'study'")
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "model_card.md", "audit.json", "leaderboard.csv", "history.png", "checkpoint"} <= artifacts
    card = (searched.folder / "model_card.md").read_text(encoding="utf-8")
    test = json.loads((searched.folder / "best" / "config.json").read_text())["metrics"]["test"]
    assert f"{test['mrr']:.4f}" in card and "seeds of the retrained winner" in card


def test_registered_winner_answers_by_name(searched: Searched) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/imf-graph@champion")
    (version,) = MlflowClient().search_model_versions("name = 'imf-graph'")
    summary = json.loads((searched.folder / "summary.json").read_text())
    validation = summary["winner_validation_mrr"]["mean"]
    assert version.tags["study"] == "s" and version.tags["data_fingerprint"] == summary["data_fingerprint"]
    assert float(version.tags["validation_mrr"]) == validation
    assert float(version.tags["test_mrr"]) == summary["test"]["mrr"]["mean"]
    assert f"champion of imf-graph: version 1 ({validation:.4f}), the first" in searched.stdout
    answers = model.predict(pd.DataFrame({"head": ["thing 1"], "relation": ["belongs to"]}), params={"k": 3})
    expected = [answer.entity for answer in Predictor.load(searched.folder / "best").tails("thing 1", "belongs to", 3)]
    assert answers["tail"].tolist() == expected


def test_colleagues_can_read_what_the_search_wrote(searched: Searched, tmp_path: Path) -> None:
    (tmp_path / "probe").touch()
    usual = (tmp_path / "probe").stat().st_mode  # as the umask has it
    files = [file for file in searched.folder.parent.rglob("*") if file.is_file()]
    suffixes = {file.suffix for file in files}
    assert {".safetensors", ".json", ".jsonl", ".html", ".md", ".csv", ".png", ".svg", ".db"} <= suffixes
    assert [file for file in files if file.stat().st_mode & usual != usual] == []


def test_optuna_export_has_an_end_for_every_trial(searched: Searched) -> None:
    with sqlite3.connect(searched.folder / "optuna.db") as database:
        states = [state for (state,) in database.execute("select state from trials")]
    assert len(states) == 6
    assert set(states) <= {"COMPLETE", "PRUNED"}


def test_an_existing_study_is_never_mixed_with_another(searched: Searched) -> None:
    before = (searched.folder / "trials.json").read_bytes()
    done = search_here(searched.home, "--data", "graph", "--study", "s")
    assert done.returncode == 2
    assert "the study 's' was started differently" in " ".join(done.stderr.split())
    assert "reduction: 2.0 then, 4.0 now" in " ".join(done.stderr.split())
    assert (searched.folder / "trials.json").read_bytes() == before


# --- test is opened once ------------------------------------------------------------------------------------------------


def test_trials_cannot_reach_a_test_triple(searched: Searched) -> None:
    arrays = load_file(searched.folder / "data" / "arrays.safetensors")
    assert {"train", "valid"} <= set(arrays)
    assert "test" not in arrays
    lines = (searched.home / "graph" / "test.tsv").read_text().splitlines()
    names = json.loads((searched.folder / "data" / "vocabulary.json").read_text())
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
    written = {"imf_core/interface/data.py", "imf_core/data/formats/in_memory.py"}  # a user's triples in memory become a folder
    assert found == data | told | tasks | written | {"imf_core/commands/recommender/train.py"}
    calls = [
        path.relative_to(repository).as_posix() for path in repository.glob("tune/**/*.py") if "task.test(" in path.read_text()
    ]
    assert calls == ["tune/runs/finalise.py"]


def test_a_search_reads_the_same_without_the_test_file(tmp_path: Path) -> None:
    """With test.tsv away, trials find the same bytes, space and first settings: nothing else reaches them."""
    write_graph(tmp_path / "graph")
    seen = []
    for name in ("with", "without"):
        asked = {"data": str(tmp_path / "graph"), "storage": tmp_path / name, "study": "s", "trials": 3}
        plan = make_plan(SearchConfig.build(asked), ClusterResources((Node(2.0),)))
        with open_study(plan):
            files = {path.name: path.read_bytes() for path in plan.prepared.iterdir()}
        seen.append((files, plan.base, plan.space.fingerprint, plan.start_points, plan.startup, plan.data.fingerprint))
        (tmp_path / "graph" / "test.tsv").unlink(missing_ok=True)
    assert seen[0] == seen[1]
    assert not plan.data.has_test


@pytest.mark.slow
def test_search_finds_the_same_without_the_test_file(tmp_path: Path) -> None:
    """One trial at a time repeats every number; with test.tsv away, not one of them changes, and finalising says so."""
    seen = []
    for keep in (True, False):
        home = ready_database(tmp_path / str(keep))
        write_graph(home / "graph")
        if not keep:
            (home / "graph" / "test.tsv").unlink()
        arguments = ("--trials", "3", "--seeds", "1", "--study", "s", "--concurrency", "1", "--set", "train.max_epochs=2")
        done = search_here(home, "--data", "graph", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        trials = json.loads((home / "results" / "s" / "trials.json").read_text())
        seen.append([(trial["params"], trial["best_mrr"], trial["curve"]) for trial in trials])
    assert seen[0] == seen[1]
    assert "no test split" in done.stdout
