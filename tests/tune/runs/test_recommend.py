"""`--task recommend`: the same study, scheduler, tracking, finalising and report, around another model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from small_search import ready_database, search_here
from tiny_interactions import SMALL, write_interactions
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.config_base import parse_overrides
from imf_core.errors import ConfigError, DataError
from imf_core.files.programs import program
from imf_core.recommend.answers import ItemRecommender
from imf_core.recommend.config import InteractionConfig, RecommendConfig
from imf_core.recommend.data.interactions import Owned
from imf_core.recommend.data.prepare import RecommendData, load_recommend, prepare_recommend
from imf_core.recommend.topk import TopKMetrics, VectorScorer, evaluate_top_k
from imf_core.tasks.recommend import RECOMMEND
from tune.hosts.resources import ClusterResources
from tune.plan.opening import open_study, ties
from tune.plan.plan import make_plan
from tune.report.result import StudyResult
from tune.report.verdict import next_commands
from tune.runs import finalise
from tune.settings import SearchConfig
from tune.space.space import SearchSpace
from tune.trial.worker import Job, run_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("data") / "tastes")


def settings(folder: Path, place: Path, **more: object) -> SearchConfig:
    return SearchConfig.build(
        {
            "task": "recommend",
            "data": str(folder),
            "storage": str(place),
            "study": "s",
            "overrides": parse_overrides(SMALL),
            **more,
        }
    )


def plan_of(folder: Path, place: Path, **more: object):
    return make_plan(settings(folder, place, **more), ClusterResources.local())


# --- plan ---------------------------------------------------------------------------------------------------------------


def test_the_bundled_data_follows_the_task() -> None:
    assert SearchConfig.build({"task": "recommend"}).data == "codepages"
    assert SearchConfig.build({}).data == "unicode"
    with pytest.raises(ConfigError, match="task"):
        SearchConfig.build({"task": "rank"})
    with pytest.raises(ConfigError, match="has no preset"):
        SearchConfig.build({"task": "recommend", "preset": "published"}).base_config()


def test_a_plan_knows_data_baseline_and_memory(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, tmp_path)
    assert isinstance(plan.base, RecommendConfig)
    assert isinstance(plan.data, RecommendData)
    assert plan.branches == ("sound", "tags")
    assert plan.audit.problems == ()
    assert 0 < plan.audit.baseline["valid"].mrr < 1
    assert plan.memory.parts["features"] == 25 * 10 * 4
    assert plan.disk.total > 0
    assert ties(plan)["task"] == "recommend"


def test_strict_refuses_overlapping_splits(tmp_path: Path) -> None:
    place = tmp_path / "overlap"
    place.mkdir()
    for name in ("train", "valid", "test"):
        (place / f"{name}.tsv").write_text("a\tx\nb\ty\n")
    with pytest.raises(DataError, match="stand in train too"):
        plan_of(place, tmp_path, strict=True)


def test_the_space_is_that_of_the_recommender(folder: Path, tmp_path: Path) -> None:
    space = plan_of(folder, tmp_path, overrides={}).space
    assert set(space.names) == {
        "model.fusion",
        "model.dropout_first",
        "model.dropout_second",
        "train.lr",
        "train.weight_decay",
    }
    assert not any("decision_weights" in row.name for row in space.describe())
    mf = SearchSpace.default(RecommendConfig().updated({"model.encoder": "mf"}), ("tags",))
    assert "model.dropout_first" not in mf.names  # there is no graph layer to drop from
    config = space.config_for({**space.default_point(), "model.fusion": "mlp"})
    assert isinstance(config, RecommendConfig)
    assert config.model.fusion == "mlp"
    wide = SearchSpace.from_values(
        {"model.meta_dim": {"low": 2, "high": 4}, "include": "default"}, RecommendConfig(), ("tags",)
    )
    assert "model.meta_dim" in wide.names
    with pytest.raises(ConfigError, match="did you mean"):
        SearchSpace.from_values({"model.fuson": {"choices": ["mlp"]}}, RecommendConfig(), ("tags",))


# --- training and finalising, without Ray ------------------------------------------------------------------------------


def trained(folder: Path, place: Path, seed: int = 0) -> tuple[Path, list[dict]]:
    plan = plan_of(folder, place)
    with open_study(plan):
        reports: list[dict] = []
        config = plan.base.updated({"train.seed": seed}).model_dump()
        run_job(Job(config, str(plan.prepared), str(place / "trial"), keep=True, scores=True, task=RECOMMEND), reports.append)
    return plan.prepared, reports


def test_a_trial_reports_what_the_search_asks_for_and_reads_no_test(folder: Path, tmp_path: Path) -> None:
    prepared, reports = trained(folder, tmp_path)
    assert [report["epoch"] for report in reports] == [1, 2, 3]
    assert reports[-1]["best_mrr"] == max(report["mrr"] for report in reports)
    assert {"ndcg_at_10", "recall_at_10", "train_loss", "num_parameters"} <= reports[0].keys()
    shared = load_recommend(prepared).interactions
    test = prepare_recommend(InteractionConfig(path=str(folder))).interactions.open_test()
    assert shared.test_reader is None
    held = {tuple(pair) for pair in test.tolist()}
    assert held
    assert not held & {tuple(pair) for pair in np.concatenate([shared.train, shared.valid]).tolist()}
    assert ItemRecommender.load(tmp_path / "trial" / "best").recommend("user 1", 3)


def test_the_control_is_the_other_kind_of_fusion(folder: Path) -> None:
    data = prepare_recommend(InteractionConfig(path=str(folder)))
    for fusion, name, other in (
        ("meta", "static fusion", "mlp"),
        ("meta_cp", "static fusion", "mlp"),
        ("mlp", "meta fusion", "meta"),
    ):
        control = RECOMMEND.control(RecommendConfig().updated({"model.fusion": fusion}), data, 7)
        assert control is not None
        assert (control.name, control.config.model.fusion, control.config.train.seed) == (name, other, 7)
    removed = RECOMMEND.ablations(RecommendConfig(), data, 0)
    assert {name: config.model.modalities for name, config in removed.items()} == {"sound": ("tags",), "tags": ("sound",)}
    assert RECOMMEND.ablations(RecommendConfig().updated({"model.fusion": "id"}), data, 0) == {}


def test_test_is_opened_once_and_its_figures_are_published(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path)
    best, events = tmp_path / "trial" / "best", []
    plan = SimpleNamespace(task=RECOMMEND, data=prepare_recommend(InteractionConfig(path=str(folder))), base=RecommendConfig())
    study = SimpleNamespace(journal=SimpleNamespace(append=lambda event, **values: events.append(event)))
    tested = finalise._open_test(plan, study, {0: best}, Console(quiet=True), None)  # type: ignore[arg-type]
    (details,), rules = tested.details, tested.baseline
    metrics = TopKMetrics.from_dict(details)
    assert events == ["test"]
    data = plan.data.interactions
    sizes = data.num_users, data.num_items
    vectors = ItemRecommender.load(best).checkpoint.model.vectors()
    known = Owned.build([data.train, data.valid], *sizes)
    expected = evaluate_top_k(
        VectorScorer(*(part.detach() for part in vectors)), Owned.build([data.open_test()], *sizes), known
    )
    assert metrics.vector() == pytest.approx(expected.vector())
    assert TopKMetrics.from_dict(rules.as_dict()).vector() == pytest.approx(rules.vector())
    RECOMMEND.publish(best, tmp_path / "published", details)
    published = ItemRecommender.load(tmp_path / "published").checkpoint
    assert published.metrics["test"] == details
    assert published.metrics["validation"]["users"] == 7


def test_the_printed_commands_ask_the_recommender(tmp_path: Path) -> None:
    result = StudyResult(
        "s", tmp_path, "codepages", "f", (), 1.0, "python", checkpoint=tmp_path / "best", task="recommend", example=("cp 437",)
    )
    commands = dict(next_commands(result))
    assert commands["ask the winner"] == f"{program('imf')} recommend {tmp_path / 'best'} --user 'cp 437'"
    assert "--task recommend --data codepages" in commands["start a new search from its best points"]
    assert result.kind.baseline_name == "what most users have"


def test_a_study_of_one_task_is_not_gone_on_with_as_another(folder: Path, tmp_path: Path) -> None:
    with open_study(plan_of(folder, tmp_path)):
        pass
    (tmp_path / "graph").mkdir()
    for name in ("train", "valid"):
        (tmp_path / "graph" / f"{name}.tsv").write_text("".join(f"{name} {k}\tr\tb{k}\n" for k in range(9)))
    link = SearchConfig.build({"data": str(tmp_path / "graph"), "storage": str(tmp_path), "study": "s"})
    with pytest.raises(ConfigError, match="task: \"recommend\" then, \"link\" now"):
        open_study(make_plan(link, ClusterResources.local()))


# --- the whole search ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = ready_database(tmp_path_factory.mktemp("home"))
    arguments = ("--data", str(folder), "--trials", "3", "--seeds", "2", "--study", "small", "--grace", "1")
    done = search_here(home, "--task", "recommend", *arguments, settings=SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "results" / "small", done.stdout


@pytest.mark.cluster
def test_a_search_from_the_command_line_to_answers(study: tuple[Path, str]) -> None:
    place, said = study
    summary = json.loads((place / "summary.json").read_text())
    assert sum(summary["trials"].values()) == 3
    assert summary["test_opened"] == 1
    assert 0 < summary["test"]["ndcg_at_10"]["mean"] <= 1
    assert summary["test"]["recall_at_10"]["std"] is not None
    assert summary["control"] in ("static fusion", "meta fusion")
    fused = summary["winner"]["params"]["model.fusion"] != "id"
    assert set(summary["validation_mrr_without"]) == ({"sound", "tags"} if fused else set())
    for words in (summary["control"], "what most users have", "imf recommend", "ndcg_at_10"):
        assert words in said, words
    assert summary["control"] in (place / "report.html").read_text()
    asked = CliRunner().invoke(app, ["recommend", str(place / "best"), "--user", "user 3", "--top", "2", "--json"])
    assert len(json.loads(asked.stdout)["items"]) == 2


@pytest.mark.cluster
def test_the_registered_model_recommends(study: tuple[Path, str]) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{study[0].parent / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/imf-tastes@champion")
    answers = model.predict(pd.DataFrame({"user": ["user 3", "nobody"]}), params={"k": 2})
    assert answers.columns.tolist() == ["user", "rank", "item", "score", "known"]
    assert answers["user"].tolist() == ["user 3"] * 2 + ["nobody"] * 2


@pytest.mark.cluster
def test_a_finished_study_is_gone_on_with_and_opens_test_no_second_time(study: tuple[Path, str]) -> None:
    place = study[0]
    before = json.loads((place / "summary.json").read_text())
    again = search_here(place.parents[1], "--study", "small", "--resume", settings=())
    assert again.returncode == 0, again.stdout + again.stderr
    assert "has already been finalised" in again.stdout
    after = json.loads((place / "summary.json").read_text())
    assert (after["test"], after["test_opened"]) == (before["test"], 1)
