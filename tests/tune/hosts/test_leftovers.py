"""What a killed driver has left is ended by number and time of creation, and nothing else is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from imf_core.errors import ResourceError
from tune.hosts.leftovers import ProcessRecord, end_leftovers, records_folder


@pytest.fixture
def sleeper() -> Iterator[psutil.Popen]:
    process = psutil.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield process
    if process.is_running():
        process.kill()
    process.wait()


def written(folder: Path, driver: tuple[int, float], *processes: tuple[int, float]) -> Path:
    file = folder / f"{socket.gethostname()}-{driver[0]}.json"
    file.write_text(json.dumps({"driver": [driver], "processes": processes}))
    return file


def test_only_those_of_a_dead_driver_are_ended(sleeper: psutil.Popen, tmp_path: Path) -> None:
    me, found = psutil.Process(), (sleeper.pid, sleeper.create_time())
    alive = written(tmp_path, (me.pid, me.create_time()), found)
    assert end_leftovers(tmp_path) == 0 and alive.exists() and sleeper.is_running()
    reused = written(tmp_path, (me.pid, me.create_time() - 3600), (sleeper.pid, sleeper.create_time() - 3600))
    assert end_leftovers(tmp_path) == 0 and not reused.exists() and sleeper.is_running()  # another process of that number
    written(tmp_path, (me.pid, me.create_time() - 3600), found)
    assert end_leftovers(tmp_path) == 1
    assert not sleeper.is_running()


def test_the_record_names_descendants_and_is_removed(sleeper: psutil.Popen, tmp_path: Path) -> None:
    record = ProcessRecord([sleeper], tmp_path)
    record.update()
    content = json.loads(record.file.read_text())
    assert content["driver"][0][0] == os.getpid() and content["processes"] == [[sleeper.pid, sleeper.create_time()]]
    record.remove()
    assert not record.file.exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"driver": [[1]], "processes": "x"}'])
def test_a_damaged_record_names_nobody(tmp_path: Path, content: str) -> None:
    file = tmp_path / f"{socket.gethostname()}-1.json"
    file.write_text(content)
    assert end_leftovers(tmp_path) == 0 and not file.exists()


def test_the_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert records_folder().stat().st_mode & 0o777 == 0o700
    records_folder().rmdir()
    (tmp_path / f"imf-search-{os.getuid()}").symlink_to("/")
    with pytest.raises(ResourceError, match="belongs to another user"):
        records_folder()


DRIVER = """
import sys, time
from pathlib import Path
import tune.hosts.leftovers as leftovers
from tune.hosts.cluster import ray_cluster
from tune.hosts.resources import ClusterResources, Node, plan_resources
from tune.settings import SearchConfig

folder = Path(sys.argv[1])
leftovers.records_folder = lambda: folder
settings = SearchConfig.build({"data": str(folder), "storage": str(folder), "workers": 2})
machine = ClusterResources((Node(2.0),))
with ray_cluster(settings, machine, plan_resources(2, 1, 0.0, None, 1, machine, 2**30), lambda failure: None):
    time.sleep(8)
    print("ready", flush=True)
    time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_after_a_killed_driver_nothing_of_its_ray_is_left(tmp_path: Path, repository: Path) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(repository)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert driver.stdout is not None and driver.stdout.readline().strip() == "ready"
    (file,) = tmp_path.glob("*.json")
    ids = [psutil.Process(pid) for pid, _ in json.loads(file.read_text())["processes"] if psutil.pid_exists(pid)]
    names = " ".join(" ".join(process.cmdline()) for process in ids)
    assert "dashboard" in names and "agent" in names and "raylet" in names
    driver.kill()
    driver.wait()
    assert end_leftovers(tmp_path) > 0
    assert [process for process in ids if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert not file.exists()
