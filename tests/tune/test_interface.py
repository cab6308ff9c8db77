"""A search from Python: the same trials as from the command line; a study to look at, and to continue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from killed_search import ARGUMENTS, assert_as_unbroken, events, run_until, start, summary
from rich.console import Console
from small_search import SMALL, ready_database, write_graph
from small_study import RECORDS
from tiny_interactions import SMALL as SMALL_RECOMMENDER
from tiny_interactions import write_interactions

import imf_core as imf
import tune
from imf_core.config_base import parse_overrides
from imf_core.recommend.answers import ItemRecommender
from imf_core.recommend.checkpoint import save_recommender
from imf_core.recommend.config import InteractionConfig, RecommendConfig
from imf_core.recommend.data.prepare import prepare_recommend
from imf_core.recommend.fit import build_model
from tests.test_readme import PAGES, SNIPPETS
from tests.tune.conftest import Searched
from tune import interface

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
QUIET = Console(quiet=True)
# What `killed_search.ARGUMENTS` says on the command line.
SETTINGS: dict[str, Any] = {
    "trials": 6, "seeds": 2, "study": "s", "grace_epochs": 1, "reduction_factor": 2, "first": "base", "save_seconds": 0.0,
    "concurrency": 1, "cpus_per_worker": 1, "console": QUIET,
    "overrides": parse_overrides([*SMALL, "train.memory_budget_mb=64"]),
}


# --- one search, as the README starts it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """What the README's lines about a search leave: a study that the command line began, whose driver was killed."""
    folder = ready_database(tmp_path_factory.mktemp("python"))
    write_graph(folder / "mygraph")
    begun = start(repository, folder, *ARGUMENTS, "--data", "mygraph")
    assert run_until(begun, folder, 12)
    begun.kill()
    begun.wait()
    (snippet,) = [snippet for page, snippet, _ in SNIPPETS if page == PAGES[0]]
    code = snippet.replace('"NAME", "RELATION"', '"thing 1", "follows"')
    given: list[dict[str, Any]] = []

    def smaller(data: Any, **settings: Any) -> interface.Study:
        given.append(settings)
        return real(data, **SETTINGS)

    real = interface.search
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(interface, "search", smaller)
        patch.setattr(interface.Study, "extend", lambda study, count: given.append({"extend": count}) or study)
        names: dict[str, Any] = {}
        exec(compile(code, "README.md", "exec"), names)
    assert [sorted(settings) for settings in given] == [["budget", "space", "trials"], ["extend"]]
    assert names["study"].folder == folder / "results" / "s"
    return folder


def test_a_killed_search_of_the_command_line_goes_on_from_python_to_the_same_end(home: Path, searched: Searched) -> None:
    assert_as_unbroken(home, searched.home)
    assert summary(home)["test_opened"] == 1
    assert [event["event"] for event in events(home)].count("session") == 2


def test_a_study_is_what_its_files_say(home: Path, searched: Searched) -> None:
    for folder in (home / "results" / "s", searched.folder):
        study, summary = tune.Study.load(folder), json.loads((folder / "summary.json").read_text())
        assert study.best is not None
        winner = summary["duel"]["winner"] if summary["duel"] else study.trials["best_mrr"].idxmax()
        assert study.best.trial_id == winner
        assert study.best.best_mrr == summary["best_validation_mrr"] == study.trials["best_mrr"][winner]
        assert study.test["mrr"] == summary["test"]["mrr"]
        assert study.importances() == summary["importances"]
        assert summary["command"].startswith("tune.search(" if folder.is_relative_to(home) else "python ")
        assert len(study.trials) == sum(summary["trials"].values())
        ends = {tuple(line.get_xydata()[-1]) for line in study.curves().axes[0].lines}
        assert ends == {record.curve[-1] for record in study.records}
        board = pd.read_csv(folder / "leaderboard.csv").sort_values("trial")
        assert study.trials["best_mrr"].tolist() == pytest.approx(board["best_validation_mrr"].tolist())
        assert study.trials["train.lr"].tolist() == pytest.approx(board["train.lr"].tolist())


def test_a_study_answers_with_its_best_model_and_with_its_pool(searched: Searched) -> None:
    study = tune.Study.load(searched.folder)
    assert study.predictor().tails("thing 1", "follows", k=2) == imf.load(searched.folder / "best").predictor().tails(
        "thing 1", "follows", k=2
    )
    assert study.pool is not None and study.pool.path == searched.folder / "pool"
    assert study.best is not None and study.best.number == study.summary["winner"]["trial"]
    assert len(study.pool.predictor().tails("thing 1", "follows", k=2)) == 2
    pooled = imf.evaluate(study.pool, searched.home / "graph", "test")
    assert pooled.mrr == pytest.approx(study.pool.metrics["test"]["mrr"], abs=1e-6)


# --- without a search ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study that was interrupted, with a trial of each state and hostile names."""
    hostile = "<img src=x onerror=alert(1)>\x1b[2J"
    records = [replace(record, params={**record.params, hostile: hostile}, reason=hostile) for record in RECORDS]
    folder = tmp_path / "results" / "s"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text(json.dumps([record.to_json() for record in records]))
    return folder


def test_an_unfinished_study_shows_itself_with_its_names_escaped(folder: Path) -> None:
    study = tune.Study.load(folder)
    shown = study._repr_html_()
    assert "&lt;img" in shown
    assert "<img" not in shown and "\x1b" not in shown
    assert "0.5200" in shown and "trial 3" in shown
    assert (study.test, study.importances(), study.pool) == ({}, {}, None)
    assert study.trials.loc["trial-002", "state"] == "failed"
    assert study.curves()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(imf.ImfError, match="no best checkpoint"):
        study.predictor()


def test_a_study_without_trials_and_a_folder_without_a_study(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    study = tune.Study.load(tmp_path)
    assert (len(study.trials), study.best, repr(study)) == (0, None, f"Study({str(tmp_path)!r}, 0 trials)")
    assert "0 trials" in study._repr_html_()
    with pytest.raises(imf.ImfError, match="holds no study"):
        tune.Study.load(tmp_path / "nothing")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tune.SearchConfig]:
    """The settings of searches that are not run."""
    import tune.pipeline as pipeline

    settings: list[tune.SearchConfig] = []

    def keep(config: tune.SearchConfig, console: Console) -> pipeline.Session:
        settings.append(config)
        return pipeline.Session(config.study_dir, pipeline.Exit.INTERRUPTED)

    monkeypatch.setattr(pipeline, "search", keep)
    return settings


def test_a_study_goes_on_with_its_own_settings(searched: Searched, tmp_path: Path, asked: list[tune.SearchConfig]) -> None:
    copy = tmp_path / "elsewhere" / "s"
    copy.mkdir(parents=True)
    shutil.copy(searched.folder / "journal.jsonl", copy)
    study = tune.Study.load(copy)
    assert "interrupted" in study.resume(budget="5m")._repr_html_()
    study.extend(3)
    resumed, extended = asked
    assert (resumed.resume, resumed.budget_seconds, resumed.study_dir) == (True, 300.0, copy)
    assert (extended.extend, extended.resume, extended.seeds, extended.first) == (3, False, 2, "base")


def test_data_in_memory_is_written_once_and_searched(tmp_path: Path, asked: list[tune.SearchConfig]) -> None:
    rows = [(f"e{i}", "next", f"e{(i + 1) % 30}") for i in range(30)]
    features = {"size": (["e1", "e2"], [[1.0], [2.0]])}
    for _ in range(2):
        tune.search(rows[5:], valid=rows[:5], features=features, storage=tmp_path, trials=1)
    tune.search(rows[5:], valid=rows[:5], test=rows[:2], storage=tmp_path)
    first, again, other = (Path(config.data) for config in asked)
    assert first == again != other
    assert first.parent == tmp_path / "graphs"
    data = imf.prepare(first)
    assert data.fingerprint == imf.prepare(rows[5:], valid=rows[:5]).fingerprint
    assert [(modality.name, int(modality.mask.sum())) for modality in data.modalities] == [("size", 2)]
    assert imf.read_graph(other).open_test().shape == (2, 3)
    with pytest.raises(imf.ImfError, match="belong to data in memory"):
        tune.search(first, valid=rows)


def test_a_space_from_python_is_that_of_the_file(tmp_path: Path, asked: list[tune.SearchConfig]) -> None:
    write_graph(tmp_path / "graph")
    (tmp_path / "space.yaml").write_text(
        "train.lr: {low: 1e-4, high: 1e-2, log: true}\nmodel.dim: {choices: [16, 32]}\nmodel.decision: uniform\n"
    )
    python = {"train.lr": (1e-4, 1e-2), "model.dim": [16, 32], "model.decision": "uniform"}
    spaces = []
    for space in (tmp_path / "space.yaml", python):
        tune.search(tmp_path / "graph", space=space, storage=tmp_path)
        spaces.append(make_space(asked[-1]))
    assert spaces[0].fingerprint == spaces[1].fingerprint
    assert "'model.decision': 'uniform'" in asked[-1].call
    stored = json.loads(json.dumps(asked[-1].inherited()))  # what a resumed study finds in its journal
    assert make_space(tune.SearchConfig.build({**stored, "storage": tmp_path})).fingerprint == spaces[0].fingerprint
    tune.search(tmp_path / "graph", space={"train.lrr": (1, 2)}, storage=tmp_path)
    with pytest.raises(imf.ImfError, match=r"train\.lrr is unknown"):
        make_space(asked[-1])


def make_space(config: tune.SearchConfig) -> tune.SearchSpace:
    from tune.hosts.resources import ClusterResources
    from tune.plan.plan import make_plan

    return make_plan(config, ClusterResources.local()).space


def test_each_search_of_a_process_shows_its_cluster_its_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tune.pipeline as pipeline

    modes: list[str | None] = []  # None: Ray, which is imported, looks for the token itself

    def note(config: tune.SearchConfig, console: Console) -> pipeline.Session:
        modes.append(os.environ.get("RAY_AUTH_MODE"))
        return pipeline.Session(config.study_dir)

    monkeypatch.setattr(pipeline, "search", note)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    for address in ("local", "127.0.0.1:6379", "local"):
        tune.search("unicode", storage=tmp_path, address=address)
        assert "RAY_AUTH_MODE" not in os.environ
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the user's wish
    tune.search("unicode", storage=tmp_path, address="local")
    assert modes == ["disabled", None, "disabled", "token"] and os.environ["RAY_AUTH_MODE"] == "token"


def test_recommenders_say_which_call_asks_them(tmp_path: Path) -> None:
    data = prepare_recommend(InteractionConfig(path=str(write_interactions(tmp_path / "data"))))
    config = RecommendConfig().updated(parse_overrides([*SMALL_RECOMMENDER]))
    folder = tmp_path / "s"
    for seed in (0, 1):
        place = folder / "final" / f"trial-003-seed-{seed}" / "best"
        place.parent.mkdir(parents=True)
        save_recommender(place, build_model(config, data), config, data.interactions)
    (folder / "trials.json").write_text(json.dumps([record.to_json() for record in RECORDS[:4]]))
    with pytest.raises(imf.ImfError, match=r"holds a recommender(?s:.*)ItemRecommender\.load\(folder\)"):
        imf.load(place)
    assert len(ItemRecommender.load(place).recommend("user 1", k=2)) == 2  # the call that is named
    with pytest.raises(imf.ImfError, match=r"models of the task recommend(?s:.*)study\.predictor\(\)"):
        _ = tune.Study.load(folder).pool


def test_a_refused_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(imf.ImfError, match="unknown search setting 'trails'; did you mean 'trials'"):
        tune.search("unicode", trails=3, storage=tmp_path)


def test_a_study_is_opened_without_ray() -> None:
    code = "import sys, tune; tune.Study, tune.SearchConfig, tune.SearchSpace; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tune.interface" in loaded
    assert {"ray", "mlflow", "optuna"} & loaded == set()
