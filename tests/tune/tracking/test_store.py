"""Stores of tracking: those that are refused, and the registered model that answers by name."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError

from imf_core.errors import ConfigError
from tune.sources import git_commit
from tune.tracking import store
from tune.tracking.registry import DATA, METRIC, SCORE, Registered
from tune.tracking.tracker import Tracker
from tune.uris import sqlite_url

SETTINGS = {"trials": 4}


def open_study(place: Path, study: str, experiment: str = "imf", **more: Any) -> Tracker:
    return Tracker.open(f"sqlite:///{place / 'mlflow.db'}", experiment, place / "artifacts", study, SETTINGS, **more)


def test_stores_that_cannot_work_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # MLF-6
    monkeypatch.chdir(tmp_path)
    for uri in ("./mlruns", "mlruns", f"file://{tmp_path}/mlruns"):
        with pytest.raises(ConfigError, match=r"sqlite:///.*migrate-filestore|migrate-filestore.*sqlite:///"):
            Tracker.open(uri, "imf", tmp_path / "artifacts", "s", {})
    tracker = Tracker.open(sqlite_url(os.path.relpath(place / "mlflow.db")), "imf", place / "artifacts", "relative", {})
    assert tracker.tracking_uri == sqlite_url(place / "mlflow.db")
    tracker.finish()
    assert list(tmp_path.iterdir()) == []

    client = MlflowClient(tracker.tracking_uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ConfigError, match=r"restore.*another experiment name"):
        open_study(place, "s", experiment="gone")

    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot store a file"):
        Tracker.open(tracker.tracking_uri, "unwritable", tmp_path / "file" / "artifacts", "unwritable", {})
    assert not tracker._runs("attributes.status = 'RUNNING'")

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="cannot be reached"):
        Tracker.open("http://127.0.0.1:9", "imf", tmp_path / "artifacts", "s", {})


def test_a_server_that_keeps_artifacts_in_its_own_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:  # MLF-6
    experiment = SimpleNamespace(experiment_id="1", lifecycle_stage="active", artifact_location="/srv/mlflow/1")
    client = SimpleNamespace(get_experiment_by_name=lambda name: experiment)
    monkeypatch.setattr("tune.tracking.store.MlflowClient", lambda uri: client)
    with pytest.raises(ConfigError, match="--serve-artifacts"):
        Tracker.open("http://tracker.example:5000", "imf", "/tmp/artifacts", "s", {})


@pytest.fixture
def refusing() -> Iterator[HTTPServer]:
    """A server that answers every request with the status and the text in `answer`."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = self.server.answer  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusal)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("body", ["<html>no</html>", '{"message": "no"}'], ids=["text", "json"])
@pytest.mark.parametrize(
    ("status", "token", "says"),
    [
        (401, "", "asks for credentials, and none are set .HTTP 401.*set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASS"),
        (401, "wrong", "does not accept the credentials .HTTP 401.*correct MLFLOW_TRACKING_USERNAME.*MLFLOW_TRACKING_TOKEN"),
        (403, "weak", "forbids.*HTTP 403.*ask for the permission.*MLFLOW_TRACKING_TOKEN.*--allowed-hosts"),
        (500, "", "cannot be reached"),
    ],
)
def test_refused_credentials_are_named_before_anything_is_trained(
    refusing: HTTPServer, status: int, token: str, says: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing.answer = status, body  # type: ignore[attr-defined]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    uri = f"http://127.0.0.1:{refusing.server_port}"
    with pytest.raises(ConfigError) as caught:
        Tracker.open(uri, "imf", tmp_path / "artifacts", "s", {})
    assert re.search(says, " ".join(str(caught.value).split())), caught.value
    assert caught.value.value == uri


def test_a_study_says_what_it_is_trained_on_and_where_it_is_from(place: Path) -> None:
    tracker = open_study(place, "told", tags={"mlflow.note.content": "A search."})
    fingerprint = "0123456789abcdef" * 4
    tracker.log_data("/graphs/flags", fingerprint, {"entities": 5, "train_triples": 7})
    tracker.log_results({"test_mrr": 0.4, "hits@10": 0.5}, "It began.")
    tracker.finish()
    again = open_study(place, "told", resume=True)
    again.log_data("/graphs/flags", fingerprint, {"entities": 5, "train_triples": 7})
    again.log_results({"test_mrr": 0.3, "test_mrr_std": 0.01}, "It ended.")
    again.finish()
    run = again.client.get_run(tracker.parent_id)
    assert run.data.metrics == {"test_mrr": 0.3, "test_mrr_std": 0.01, "hits_at_10": 0.5}  # a later session replaces
    tags = run.data.tags
    assert tags["mlflow.note.content"] == "It ended."
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == (sys.argv[0], "LOCAL")
    assert tags["mlflow.user"]
    assert tags.get("mlflow.source.git.commit", "") == git_commit()
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("flags", fingerprint[:36])
    assert json.loads(data.dataset.profile) == {"entities": 5, "train_triples": 7}
    assert mlflow.data.get_source(data.dataset).uri == "/graphs/flags"
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}


def test_the_commit_is_that_of_the_code_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lib" / "imf_core"
    package.mkdir(parents=True)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C")
    for command in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run([*git, str(tmp_path), *command], check=True)
    monkeypatch.setattr("imf_core.__file__", str(package / "__init__.py"))
    assert git_commit() == ""  # installed below a repository of something else
    package = tmp_path / "imf_core"
    monkeypatch.setattr("imf_core.__file__", str(package / "__init__.py"))
    head = subprocess.run([*git, str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert len(head) == 40 and git_commit() == head
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""  # without Git


class FakePredictor:
    """Stands in for the trained model; its answers come from the checkpoint folder."""

    def __init__(self, entities: list[str]) -> None:
        self.entities = entities

    @classmethod
    def load(cls, path: str) -> FakePredictor:
        return cls(json.loads((Path(path) / "entities.json").read_text()))

    def tails(self, head: str, relation: str, k: int, known: str = "drop") -> list[Any]:
        best = enumerate(self.entities[:k], start=1)
        return [SimpleNamespace(entity=entity, score=1.0 / rank, known=False) for rank, entity in best]

    def heads(self, tail: str, relation: str, k: int, known: str = "drop") -> list[Any]:
        return self.tails(tail, relation, k)[::-1]


@pytest.fixture
def fake_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imf_core.tasks.link.Predictor", FakePredictor)


@pytest.mark.usefixtures("fake_predictor")
def test_the_winner_is_a_registered_model_that_answers_by_name(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "best"
    checkpoint.mkdir()
    (checkpoint / "entities.json").write_text('["Berlin", "Rome", "Oslo"]')
    (checkpoint / "config.json").write_text("{}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://of.the.user:5000")
    tracker = open_study(place, "winner")
    scores = ("0.4", "0.5", "0.5")
    registered = [tracker.register_model(checkpoint, "imf-cities", {SCORE: score, METRIC: "m", DATA: "d"}) for score in scores]
    tracker.finish()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://of.the.user:5000"  # MLflow puts its own there
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert registered == [
        Registered("1", "champion of imf-cities: version 1 (0.4000), the first"),
        Registered("2", "champion of imf-cities: version 2 (0.5000) replaces version 1 (0.4000)"),
        Registered("2", "champion of imf-cities: version 2 (0.5000) stays"),  # of a resumed study: no second copy
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]  # no ./mlruns
    assert capfd.readouterr().out == ""
    version = tracker.client.get_model_version_by_alias("imf-cities", "champion")
    assert (str(version.version), version.tags["study"], version.run_id) == ("2", "winner", tracker.parent_id)
    model = mlflow.pyfunc.load_model("models:/imf-cities@champion")
    answers = model.predict(pd.DataFrame({"head": ["Germany", "Italy"], "relation": ["capital"] * 2}), params={"k": 2})
    assert list(answers.columns) == ["head", "relation", "tail", "rank", "score", "known"]
    assert answers["tail"].tolist() == ["Berlin", "Rome"] * 2
    assert answers["rank"].tolist() == [1, 2, 1, 2]
    heads = model.predict(pd.DataFrame({"tail": ["Germany"], "relation": ["capital_of"], "k": [1]}))
    assert heads.values.tolist() == [["Berlin", "capital_of", "Germany", 1, 1.0, False]]
    stored = [path for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "entities.json" for path in stored)
    assert not [path for path in stored if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    requirements = next(path for path in stored if path.name == "requirements.txt").read_text()
    assert f"mlflow=={mlflow.__version__}" in requirements
    assert "+cpu" not in requirements
    assert mlflow.get_tracking_uri() == tracker.tracking_uri
    beside = [path.name for path in place.parent.iterdir()]  # MLflow makes a folder of the name that stands in a `sqlite:` URL
    assert place.name in beside and "#" in place.name and not [name for name in beside if "%" in name]


def _later_database(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("create table alembic_version (version_num varchar(32) not null)")
        connection.execute("insert into alembic_version values ('0123456789ab')")


@pytest.mark.parametrize("make", [
    lambda file: file.write_bytes(b"no database" * 500), Path.mkdir, _later_database,
    lambda file: file.write_bytes(b"SQLite format 3\0" + bytes(84)),
], ids=["other bytes", "a folder", "of a later MLflow", "cut after its header"])
def test_a_database_that_is_none_is_named(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "mlflow.db")
    with pytest.raises(ConfigError, match=r"(?s)mlflow\.db cannot be read.*move it away: a "):
        open_study(tmp_path, "s")


def test_a_lock_is_waited_for_and_then_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy2(place / "mlflow.db", tmp_path / "mlflow.db")
    refused = OperationalError("select", {}, sqlite3.OperationalError("database is locked"))
    asked = 0

    def experiment(uri: str, name: str, root: str) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise refused
        return found(uri, name, root)

    found = store._experiment
    monkeypatch.setattr(store, "_experiment", experiment)
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    open_study(tmp_path, "s").finish()
    assert asked == 3 and caplog.text.count("is locked by another program") == 1
    asked = -(10**9)
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.0)
    with pytest.raises(ConfigError, match=r"(?s)mlflow\.db is locked.*end the program that holds it"):
        open_study(tmp_path, "s")
