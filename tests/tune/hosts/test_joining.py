"""A cluster is waited for, counted with what its autoscaler adds, and refused by the address that is missing (case SUB-5)."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from imf_core.errors import ConfigError, ResourceError
from tune.environment import environment, parse_address
from tune.hosts import joining
from tune.hosts.joining import Expected, count_resources, refuse_silent, staged_code, wait_for_nodes
from tune.hosts.resources import Node
from tune.settings import SearchConfig


def node(address: str, cpus: float = 2, gpus: float = 0, alive: bool = True, **more: float) -> dict[str, Any]:
    return {"NodeManagerAddress": address, "Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, **more}}


def bootstrap(folder: Path, **config: Any) -> Path:
    file = folder / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchConfig:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return SearchConfig.build({"data": "unicode", "storage": str(tmp_path), "address": "auto"})


def test_sub_5_the_machines_of_the_cluster_file_are_expected(tmp_path: Path, settings: SearchConfig) -> None:
    provider = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": ["127.0.0.2", "192.0.2.9"]}
    expected = Expected.of(settings, bootstrap(tmp_path, provider=provider))
    assert expected.count == 3
    assert expected.missing(["127.0.0.1", "127.0.0.2"]) == ["192.0.2.9"]
    assert Expected.of(settings, tmp_path / "absent") == Expected()


def test_sub_5_a_missing_machine_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Expected(3, ("127.0.0.1", "127.0.0.2", "192.0.2.9"))
    monkeypatch.setattr(joining.ray, "nodes", lambda: [node("127.0.0.1"), node("127.0.0.2", alive=False)])
    with pytest.raises(ResourceError, match=r"1 of 3 nodes, missing 127.0.0.2, 192.0.2.9") as caught:
        wait_for_nodes(expected, 0.0, False, Console(file=io.StringIO()))
    assert "--fewer-nodes" in caught.value.remedy
    said = io.StringIO()
    wait_for_nodes(expected, 0.0, True, Console(file=said, width=200))
    assert "1 of 3 nodes, missing 127.0.0.2, 192.0.2.9" in said.getvalue()


def test_a_worker_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray up` returns before the workers are there."""
    times = iter([1, 1, 2])
    monkeypatch.setattr(joining, "_POLL_SECONDS", 0.0)
    monkeypatch.setattr(joining.ray, "nodes", lambda: [node(f"127.0.0.{place}") for place in range(next(times))])
    wait_for_nodes(Expected(2), 60.0, False, Console(file=io.StringIO()))
    assert next(times, None) is None


def test_machines_that_the_launcher_s_autoscaler_adds_are_counted(tmp_path: Path, settings: SearchConfig) -> None:
    file = bootstrap(
        tmp_path, provider={"type": "aws"}, head_node_type="head", max_workers=8, available_node_types={
            "head": {"resources": {"CPU": 0, "trial": 1000}},
            "gpu": {"resources": {"CPU": 8, "GPU": 1}, "min_workers": 0, "max_workers": 20},
        },
    )
    expected = Expected.of(settings, file)
    assert expected.count == 0
    cluster = count_resources([node("10.0.0.1", 0, trial=1000), node("10.0.0.2", 8, 1)], expected, None)
    assert (cluster.gpus, cluster.cpus, cluster.to_come, cluster.controllers) == (8, 64, 7, 1000)


def test_machines_that_another_autoscaler_adds_are_like_the_largest() -> None:
    cluster = count_resources([node("10.0.0.1", 0), node("10.0.0.2", 8, 1)], Expected(), 4)
    assert cluster.nodes == (Node(0), Node(8, 1), Node(8, 1), Node(8, 1))
    assert cluster.to_come == 2


def test_the_driver_s_code_goes_along_unless_the_job_has_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    with staged_code() as shipped:
        folder = Path(shipped["working_dir"])
        assert sorted(path.name for path in folder.iterdir()) == ["imf_core", "tune"]
        assert (folder / "tune" / "trial" / "worker.py").is_file()
        assert list(folder.rglob("__pycache__")) == []
    assert not folder.exists()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}))
    with staged_code() as shipped:
        assert shipped == {}


def test_on_a_cluster_the_defaults_are_those_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("IMF_STORAGE", str(tmp_path / "shared"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    there = SearchConfig.build({"data": "unicode"})
    assert there.joins
    assert (there.address, there.max_failures) == ("auto", 4)
    assert (there.storage, there.tracking_uri) == (tmp_path / "shared", "http://127.0.0.1:5000")
    here = SearchConfig.build({"data": "unicode", "address": "local", "storage": str(tmp_path)})
    assert not here.joins
    assert (here.max_failures, here.tracking_uri) == (1, "http://127.0.0.1:5000")


def test_the_token_is_shown_to_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "RAY_AUTH_MODE" not in environment("auto")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    assert "RAY_AUTH_MODE" not in environment("auto")  # Ray, which has been imported, looks for the token itself
    monkeypatch.delitem(sys.modules, "ray")
    assert environment("auto")["RAY_AUTH_MODE"] == "token"
    assert parse_address(["search.py", "--address", "auto", "--trials", "2"]) == "auto"
    assert parse_address(["search.py", "--address=host:6379"]) == "host:6379"
    assert parse_address(["search.py", "--address"]) is None


def test_a_cluster_that_is_not_there_is_said(settings: SearchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(joining.ray, "init", refuse)
    with pytest.raises(ConfigError, match="cluster at auto cannot be joined: Could not find any"), joining.joined(
        settings, Console(file=io.StringIO())
    ):
        pass


@pytest.mark.parametrize("source", ["RAY_ADDRESS", "--address"])
def test_an_address_at_which_nothing_listens_is_named_at_once(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"  # nothing listens: a job of yesterday
        monkeypatch.setenv("RAY_ADDRESS", address if source == "RAY_ADDRESS" else "auto")
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}, which {source} names") as caught:
            refuse_silent(address)
        assert "--address local" in caught.value.remedy
    refuse_silent("auto")


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "something else listens there; its greeting is b'HTTP/1.1 '"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "its greeting is b'SSH-2.0-O'"),
        (b"", "timed out"),  # it waits for words of another protocol
        (bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), ""),  # HTTP/2, as every gRPC server
    ],
)
def test_what_listens_but_is_no_ray_is_named_within_seconds(
    monkeypatch: pytest.MonkeyPatch, greeting: bytes, told: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(greeting)
                over.wait(60)

        threading.Thread(target=answer, daemon=True).start()
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        try:
            if told:
                with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}, which --address names") as caught:
                    refuse_silent(address, seconds=0.5)
                assert told in caught.value.problem
            else:
                refuse_silent(address)
        finally:
            over.set()
