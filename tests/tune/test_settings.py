"""SearchConfig: durations, absolute paths, tracking stores (case MLF-6), names, the base configuration, the environment."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from rich.console import Console
from sqlalchemy import create_engine, text

from imf_core.errors import ConfigError, ResourceError
from tune.durations import parse_duration
from tune.environment import environment
from tune.pipeline import search
from tune.plan.disk import refuse_unwritable
from tune.plan.opening import search_config
from tune.settings import SearchConfig
from tune.study.journal import Journal
from tune.study.sampler import export_study
from tune.uris import database_of, sqlite_url, without_password


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20m", 1200), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("90", 90), (90, 90), (" 1H 5s ", 3605),
        ("0.5", 0.5),
    ],
)
def test_duration(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "20 minutes", "m", "30m1h", "1h1h", "-5", "0", "0s", "nan", "inf", "1h x"])
def test_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 90s, 20m") as caught:
        parse_duration(text)
    assert caught.value.value == text


def test_defaults_are_complete_and_absolute(tmp_path: Path) -> None:
    config = SearchConfig.build({})
    assert config.data == "unicode"
    assert re.fullmatch(r"unicode-\d{8}-\d{4}", config.study)
    assert config.storage == tmp_path / "results"
    assert config.study_dir == tmp_path / "results" / config.study
    assert config.tracking_uri == f"sqlite:///{tmp_path}/results/mlflow.db"
    assert (config.trials, config.workers, config.seeds, config.max_failures) == (12, 1, 3, 1)
    assert config.cpus_per_worker is None
    assert config.concurrency is None
    assert SearchConfig.model_validate(config.model_dump()) == config


def test_a_second_study_of_the_same_minute_gets_its_own_name(tmp_path: Path) -> None:
    first = SearchConfig.build({})
    first.study_dir.mkdir(parents=True)
    second = SearchConfig.build({})
    assert second.study != first.study
    assert not second.study_dir.exists()


def test_relative_paths_are_resolved_at_the_driver(tmp_path: Path) -> None:
    (tmp_path / "graphs" / "DB 15K").mkdir(parents=True)
    (tmp_path / "space.yaml").write_text("train.lr: {low: 0.001, high: 0.01}")
    config = SearchConfig.build({"data": "graphs/DB 15K", "space": "space.yaml", "storage": "out", "budget_seconds": "1h30m"})
    assert config.data == str(tmp_path / "graphs" / "DB 15K")
    assert config.study.startswith("DB-15K-")
    assert config.space == tmp_path / "space.yaml"
    assert config.storage == tmp_path / "out"
    assert config.budget_seconds == 5400
    assert SearchConfig.build({"data": "./nowhere"}).data == str(tmp_path / "nowhere")


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:./mlruns", "file:///tmp/mlruns", "/tmp/mlruns"])
def test_file_store_is_refused_with_both_ways_out(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchConfig.build({"tracking_uri": uri})
    assert f"sqlite:///{tmp_path}/results/mlflow.db" in caught.value.remedy
    assert "mlflow migrate-filestore" in caught.value.remedy
    assert caught.value.value == uri


def test_tracking_uri_forms(tmp_path: Path) -> None:
    assert SearchConfig.build({"tracking_uri": "sqlite:///sub/mlflow.db"}).tracking_uri == f"sqlite:///{tmp_path}/sub/mlflow.db"
    for uri in ("sqlite:////var/x.db", "http://127.0.0.1:5000", "https://host", "postgresql+psycopg2://u@h/d", "databricks"):
        assert SearchConfig.build({"tracking_uri": uri}).tracking_uri == uri
    for uri in ("sqlite:///:memory:", "sqlite://", "sqlite:x.db", "ftp://host"):
        with pytest.raises(ConfigError, match="tracking URI"):
            SearchConfig.build({"tracking_uri": uri})
    with pytest.raises(ConfigError, match="write sqlite:///"):
        SearchConfig.build({"tracking_uri": "mlflow.db"})


def test_the_tracking_uri_of_the_shell_is_used_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = f"sqlite:///{tmp_path}/results/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert SearchConfig.build({}).tracking_uri == "http://tracker:5000"
    assert SearchConfig.build({"tracking_uri": "https://other"}).tracking_uri == "https://other"
    assert SearchConfig.build({"tracking_uri": ""}).tracking_uri == local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert SearchConfig.build({}).tracking_uri == local
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(ConfigError, match=r"'./mlruns' \(MLFLOW_TRACKING_URI\) is a file store") as caught:
        SearchConfig.build({})
    assert caught.value.remedy.startswith("unset MLFLOW_TRACKING_URI or write sqlite:///")


def test_the_password_of_a_tracking_uri_is_not_shown() -> None:
    hidden = "postgresql+psycopg2://me:***@db:5432/mlflow?sslmode=require"
    assert without_password("postgresql+psycopg2://me:se:cret@db:5432/mlflow?sslmode=require") == hidden
    for uri in ("http://host:5000", "sqlite:////a@b/x:y/mlflow.db", "https://me@host:443/p", "databricks"):
        assert without_password(uri) == uri


@pytest.mark.parametrize("then", ["http://first:5000", None], ids=["server", "local"])
def test_a_resumed_study_keeps_its_tracking_uri(then: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if then:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", then)
    first = SearchConfig.build({"study": "s", "trials": 3})
    with Journal(tmp_path / "results" / "s") as journal:
        journal.append("study", settings=first.inherited())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://second:5000")
    assert search_config({"study": "s", "resume": True}).tracking_uri == first.tracking_uri
    given = search_config({"study": "s", "resume": True, "tracking_uri": "http://third:5000"})
    assert given.tracking_uri == "http://third:5000"
    (tmp_path / "results").rename(tmp_path / "moved")
    moved = search_config({"study": "s", "extend": 2, "storage": "moved"})
    assert moved.tracking_uri == (then or f"sqlite:///{tmp_path}/moved/mlflow.db")  # the local store moves with its studies


def test_a_data_set_has_a_registered_model(tmp_path: Path) -> None:
    (tmp_path / "graphs" / "DB 15K").mkdir(parents=True)
    assert SearchConfig.build({}).model_name == "imf-unicode"
    assert SearchConfig.build({"task": "recommend"}).model_name == "imf-codepages"
    assert SearchConfig.build({"data": "graphs/DB 15K/"}).model_name == "imf-DB-15K"
    assert SearchConfig.build({"model_name": "my flags"}).model_name == "my flags"
    for name in ("a/b", "a:b", " a", "x" * 201):
        with pytest.raises(ConfigError, match="model_name"):
            SearchConfig.build({"model_name": name})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"trial": 3}, "trial"), ({"trials": 0}, "trials"), ({"study": "../x"}, "study"), ({"space": "none.yaml"}, "space"),
        ({"warm_start": "none"}, "warm_start"), ({"scheduler": "median"}, "scheduler"), ({"storage": "s3://b/x"}, "storage"),
        ({"budget_seconds": "soon"}, "budget"), ({"reduction_factor": 1.0}, "reduction_factor"), ({"seed": -1}, "seed"),
    ],
)
def test_faults_name_the_setting(values: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SearchConfig.build(values)
    assert caught.value.key == key


def test_unknown_setting_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'trials'"):
        SearchConfig.build({"trial": 3})


def test_base_config(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {path: graph}\nmodel: {dim: 32}\ntrain: {lr: 0.01}\n")
    (tmp_path / "graph").mkdir()
    config = SearchConfig.build({"config": "base.yaml", "overrides": {"train.lr": 0.02}, "seed": 7})
    base = config.base_config()
    assert (base.model.dim, base.train.lr, base.train.seed, base.data.path) == (32, 0.02, 7, str(tmp_path / "graph"))
    chosen = SearchConfig.build({"config": "base.yaml", "overrides": {"data.train": "elsewhere/mine.tsv"}}).base_config().data
    assert (chosen.path, chosen.train) == (str(tmp_path / "graph"), str(tmp_path / "elsewhere" / "mine.tsv"))
    assert SearchConfig.build({"overrides": {"data.path": "unicode", "train.seed": 3}}).base_config().train.seed == 3
    assert SearchConfig.build({"preset": "published"}).base_config().train.loss == "bce"
    with pytest.raises(ConfigError, match="give one of them"):
        SearchConfig.build({"preset": "paper", "config": "base.yaml"})
    with pytest.raises(ConfigError, match="lr"):
        SearchConfig.build({"overrides": {"train.lrr": 1}}).base_config()


def test_environment_is_set_once_and_respects_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where there is no token of Ray's
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED", "TUNE_GLOBAL_CHECKPOINT_S"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "1"
    joined = environment("ray-head:6379")
    assert "RAY_AUTH_MODE" not in joined
    assert "RAY_AUTH_MODE" not in os.environ
    assert joined["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "1"
    assert environment()["RAY_AUTH_MODE"] == "disabled"


def test_settings_import_nothing_heavy(repository: Path) -> None:
    code = "import sys, tune.settings; print(sorted({'ray', 'optuna', 'mlflow', 'torch'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_zero_is_given_on_the_command_line_too() -> None:
    chosen = search_config({"keep": 0, "save_seconds": 0.0, "seed": 0, "resume": False, "overrides": {}, "trials": None})
    assert (chosen.keep, chosen.save_seconds) == (0, 0.0)
    assert chosen.given("seed") and not chosen.given("trials") and not chosen.given("overrides")
    with pytest.raises(ConfigError, match="trials = 0"):
        search_config({"trials": 0})


@pytest.mark.parametrize("name", ["a?b", "a%2Fb", "with space", "a#b", "Zürich", "100%", "a&b=c", "a+b", "x;y"])
def test_databases_in_folders_of_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    url = sqlite_url(folder / "m.db")
    with create_engine(url).connect() as connection:
        connection.execute(text("create table t (x)"))
        connection.commit()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*.db")] == [Path(name, "m.db")]
    assert database_of(url) == str(folder / "m.db")
    config = SearchConfig.build({"storage": str(folder)})
    assert database_of(str(config.tracking_uri)) == str(folder / "mlflow.db")
    assert SearchConfig.build({"tracking_uri": url}).tracking_uri == url
    study = optuna.create_study()
    export_study(study, folder / "optuna.db")
    assert (folder / "optuna.db").stat().st_size > 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(**arguments: object) -> None:
        raise OSError(number, os.strerror(number), str(arguments["dir"]))

    refuse_unwritable(tmp_path / "results" / "s")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"nothing can be written into .*file: Not a directory"):
        refuse_unwritable(tmp_path / "file")
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    monkeypatch.setattr("tune.pipeline.planned", lambda *arguments: pytest.fail("it was planned"))
    with pytest.raises(ResourceError, match=f"nothing can be written into {tmp_path}: {os.strerror(number)}") as caught:
        search(SearchConfig.build({"storage": str(tmp_path / "results"), "study": "s"}), Console())
    assert "--storage" in caught.value.remedy
