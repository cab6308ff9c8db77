"""Stores of tracking: those that are refused, and the registered model that answers by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from imf_core.errors import ConfigError
from tune.tracking.tracker import Tracker

SETTINGS = {"trials": 4}


def open_study(place: Path, study: str, experiment: str = "imf", **more: Any) -> Tracker:
    return Tracker.open(f"sqlite:///{place / 'mlflow.db'}", experiment, place / "artifacts", study, SETTINGS, **more)


def test_stores_that_cannot_work_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # MLF-6
    monkeypatch.chdir(tmp_path)
    for uri in ("./mlruns", "mlruns", f"file://{tmp_path}/mlruns"):
        with pytest.raises(ConfigError, match=r"sqlite:///.*migrate-filestore|migrate-filestore.*sqlite:///"):
            Tracker.open(uri, "imf", tmp_path / "artifacts", "s", {})
    tracker = Tracker.open(f"sqlite:///{os.path.relpath(place / 'mlflow.db')}", "imf", place / "artifacts", "relative", {})
    assert tracker.tracking_uri == f"sqlite:///{place / 'mlflow.db'}"
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
    monkeypatch.setattr("tune.tracking.tracker.MlflowClient", lambda uri: client)
    with pytest.raises(ConfigError, match="--serve-artifacts"):
        Tracker.open("http://tracker.example:5000", "imf", "/tmp/artifacts", "s", {})


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
    tracker = open_study(place, "winner")
    assert tracker.register_model(checkpoint, "imf-cities", tags={"best_validation_mrr": "0.4"}) == "1"
    assert tracker.register_model(checkpoint, "imf-cities") == "2"
    tracker.finish()
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
