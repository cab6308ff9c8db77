"""The alias `champion`: it moves to a better model of the same data and metric, and to no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tune.tracking.registry import DATA, METRIC, SCORE, create_model, crown, version_of
from tune.tracking.tracker import Tracker

RUN = "0" * 32


@pytest.fixture
def client(place: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}")


def add(client: MlflowClient, name: str, score: str = "", data: str = "d" * 64, metric: str = "MRR", run: str = RUN) -> str:
    tags = {DATA: data, METRIC: metric, **({SCORE: score} if score else {})}
    return str(client.create_model_version(name, "/nowhere", run, tags=tags).version)


@pytest.mark.parametrize(
    ("old", "new", "line", "champion"),
    [
        ({"score": "0.4988"}, {"score": "0.5012"}, "version 2 (0.5012) replaces version 1 (0.4988)", "2"),
        ({"score": "0.5012"}, {"score": "0.4988"}, "version 1 (0.5012) stays; version 2 has 0.4988", "1"),
        ({"score": "0.5"}, {"score": "0.5"}, "version 1 (0.5000) stays; version 2 has 0.5000", "1"),
        ({"score": "0.9"}, {"score": "0.95", "data": "e" * 64}, "other data (fingerprint dddddddddddd, now eeeeeeeeeeee)", "1"),
        ({"score": "0.1", "metric": "NDCG"}, {"score": "0.5"}, "another metric (NDCG, now MRR)", "1"),
        ({}, {"score": "0.5"}, "version without a validation MRR", "1"),
        ({"score": "0.5"}, {}, "version without a validation MRR", "1"),
    ],
)
def test_the_champion_is_replaced_only_by_a_better_one(
    client: MlflowClient, old: dict[str, str], new: dict[str, str], line: str, champion: str, request: pytest.FixtureRequest
) -> None:
    name = f"imf-{request.node.callspec.id}"
    for _ in range(2):
        create_model(client, name)  # the second search finds it
    first = crown(client, name, add(client, name, **old))
    assert first.startswith(f"champion of {name}: version 1 (") and first.endswith("), the first")
    said = crown(client, name, add(client, name, **new))
    assert said.startswith(f"champion of {name}: version") and line in said
    assert str(client.get_model_version_by_alias(name, "champion").version) == champion
    if "not compared" in said:
        assert said.startswith(f"champion of {name}: version 1 stays") and said.endswith("or choose another --model-name")


def test_a_deleted_champion_leaves_the_place_free(client: MlflowClient) -> None:
    create_model(client, "imf-deleted")
    crown(client, "imf-deleted", add(client, "imf-deleted", "0.9"))
    client.delete_model_version("imf-deleted", "1")
    assert crown(client, "imf-deleted", add(client, "imf-deleted", "0.4")).endswith("version 2 (0.4000), the first")


def test_a_study_finds_its_own_version(client: MlflowClient, place: Path) -> None:
    create_model(client, "imf-own")
    tracker = Tracker.open(client.tracking_uri, "imf", place / "artifacts", "own", {})
    tracker.finish()
    tags = {SCORE: "0.4", DATA: "d" * 64}
    add(client, "imf-own", "0.4")  # of another study
    assert version_of(client, "imf-own", tracker.parent_id, tags) is None
    add(client, "imf-own", "0.4", run=tracker.parent_id)
    found = version_of(client, "imf-own", tracker.parent_id, tags)
    assert found is not None and str(found.version) == "2"
    assert version_of(client, "imf-own", tracker.parent_id, {**tags, SCORE: "0.5"}) is None  # extended, with another winner
