"""A study on an MLflow server that asks for user and password: `mlflow server --app-name basic-auth` on loopback."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_server import mlflow_server
from small_search import empty_database, run_search, search_here, write_graph

pytestmark = [
    pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="MLflow's basic-auth needs Flask-WTF (extra dev)"),
]

ADMIN, PASSWORDS = ("root", "root-password-1"), {"ada": "password-of-ada-1", "eve": "password-of-eve-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server with the users `ada` and `eve`, who may write only to experiments of their own."""
    from mlflow.server.auth.client import AuthServiceClient

    home = tmp_path_factory.mktemp("server")
    users = home / "auth.ini"
    users.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{home / 'users.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"  # else a password is hashed for each request, which takes longer than all else
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of this test",
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0], "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
    }
    arguments = ("--app-name", "basic-auth", "--artifacts-destination", str(home / "artifacts"))
    (home / "runs.db").write_bytes(empty_database())
    with mlflow_server(home, home / "runs.db", *arguments, **settings) as address, pytest.MonkeyPatch.context() as patch:
        log_in(patch, *ADMIN)
        for user, password in PASSWORDS.items():
            AuthServiceClient(address).create_user(user, password)
        yield address


@pytest.fixture(scope="module")
def home(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `ada` has searched."""
    place = tmp_path_factory.mktemp("ada")
    write_graph(place / "graph")
    arguments = ("--data", "graph", "--trials", "2", "--seeds", "1", "--study", "s", "--set", "train.max_epochs=2")
    with pytest.MonkeyPatch.context() as patch:
        log_in(patch, "ada", PASSWORDS["ada"])
        patch.setenv("MLFLOW_TRACKING_URI", server)
        done = run_search(Path(__file__).parents[3], place, *arguments, "--set", "model.modalities=[]")
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def log_in(patch: pytest.MonkeyPatch, user: str, password: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def test_a_study_and_its_trials_are_on_the_server(
    server: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the driver writes to the server: trials need no credentials, on whatever machine they run."""
    log_in(monkeypatch, "ada", PASSWORDS["ada"])
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("imf-search").experiment_id
    (study,) = client.search_runs([experiment], "tags.role = 'study'")
    assert (study.info.run_name, study.info.status) == ("s", "FINISHED") and study.data.metrics["test_mrr"] > 0
    trials = client.search_runs([experiment], "tags.role = 'trial'")
    assert sorted(run.data.tags["mlflow.runName"] for run in trials) == ["trial 000", "trial 001"]
    assert all(client.get_metric_history(run.info.run_id, "mrr") for run in trials)
    report = Path(client.download_artifacts(study.info.run_id, "report.html", str(tmp_path)))
    assert report.read_bytes() == (home / "results" / "s" / "report.html").read_bytes()
    assert client.get_model_version_by_alias("imf-graph", "champion").run_id == study.info.run_id
    assert not (home / "results" / "mlflow.db").exists()


def test_the_password_is_in_no_file_of_the_study(home: Path) -> None:
    files = [file for file in home.rglob("*") if file.is_file()]
    assert home / "results" / "s" / "journal.jsonl" in files
    assert [file for file in files if PASSWORDS["ada"].encode() in file.read_bytes()] == []


@pytest.mark.parametrize(
    ("user", "password", "says"),
    [
        ("", "", "asks for credentials, and none are set (HTTP 401"),
        ("ada", "wrong", "does not accept the credentials (HTTP 401"),
        ("eve", PASSWORDS["eve"], "forbids what the search has to do: make and write runs in an experiment (HTTP 403"),
    ],
)
def test_who_may_not_write_is_told_before_any_training(
    server: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str, password: str, says: str
) -> None:
    log_in(monkeypatch, user, password)
    arguments = ("--data", str(home / "graph"), "--trials", "2", "--study", "refused", "--tracking-uri", server)
    done = search_here(tmp_path, *arguments)
    told = " ".join(done.stderr.split())
    assert done.returncode == 2 and says in told and "Traceback" not in told
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN" in told
    assert not (tmp_path / "results" / "refused" / "trials").exists()
