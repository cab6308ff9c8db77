"""The cluster file that is shipped, and the checker that reads it before `ray up` does (SUB-4 and SUB-5, offline part)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from asked_for import MUST_RUN, cannot_run

ROOT = Path(__file__).resolve().parents[2]
FILLED = {
    "CHANGE-ME-address-of-the-head": "10.88.0.10", "CHANGE-ME-address-of-a-worker": "10.88.0.11, 10.88.0.12",
    "CHANGE-ME-user-on-all-machines": "someone", "CHANGE-ME-shared-folder": "/shared/imf",
}


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster_check", ROOT / "cluster" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with token and key, and a small repository with the shipped file, filled in."""
    if shutil.which("rsync") is None or shutil.which("ssh") is None:
        pytest.skip("the launcher's own needs, rsync and ssh, are not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t" * 64)
    key = tmp_path / "key"
    key.write_text("-")
    key.chmod(0o600)
    root = tmp_path / "root"
    (root / "imf_core" / "data").mkdir(parents=True)
    (root / "imf_core" / "data" / "code.py").write_text("x = 1\n")
    monkeypatch.chdir(root)
    write(root, {**FILLED, "CHANGE-ME-private-key-file": str(key)})
    return root


def write(root: Path, words: dict[str, str]) -> None:
    text = (ROOT / "cluster" / "cluster.yaml").read_text()
    for placeholder, word in words.items():
        assert placeholder in text
        text = text.replace(placeholder, word)
    (root / "cluster.yaml").write_text(text)


def test_the_shipped_file_names_every_gap_with_its_line(check: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, "cluster/check.py", "cluster.yaml"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    lines = (ROOT / "cluster" / "cluster.yaml").read_text().splitlines()
    gaps = [line for line in done.stderr.splitlines() if "is left to fill in" in line]
    for gap in gaps:
        _, number, rest = gap.split(":", 2)
        assert rest.split()[0] in lines[int(number) - 1]
    assert {gap.split()[1] for gap in gaps} == {*FILLED, "CHANGE-ME-private-key-file"}


def test_the_root_link_leads_to_the_file() -> None:
    assert (ROOT / "cluster.yaml").is_symlink()
    assert os.readlink(ROOT / "cluster.yaml") == "cluster/cluster.yaml"


def test_a_filled_file_passes(check: ModuleType, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert "~/imf gets 2 files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cluster_name: imf", "cluster_name: imf\nworkers: 3", "'workers' was unexpected"),
        ("10.88.0.12", "10.88.0.10", "10.88.0.10 is listed twice"),
        ("cluster_name: imf", "cluster_name: imf\nmin_workers: 1", "min_workers is 1, but there are 2 worker_ips"),
        ("worker_ips: [10.88.0.11, 10.88.0.12]", "", "worker_ips"),
        ("/key", "/absent", "ssh-keygen"),
        ("~/imf: .\n", "~/imf: ./imf_core\n", "is not the repository"),
        ("auth_token: ~/.ray/auth_token", "auth_token: ~/.ray/none/auth_token", "ray get-auth-token --generate"),
        ("  ssh_user", " ssh_user: [", "invalid YAML"),
        ("type: local", "type: lokal", "lokal"),
    ],
)
def test_what_is_wrong_is_named(check: ModuleType, place: Path, old: str, new: str, said: str) -> None:
    file = place / "cluster.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    found = check.check_file(file, place)
    assert any(said in problem for problem in found), found
    assert all(problem.startswith("cluster.yaml") for problem in found)


def test_a_key_that_others_may_read_is_refused(check: ModuleType, place: Path) -> None:
    (place.parent / "key").chmod(0o644)
    (found,) = check.check_file(place / "cluster.yaml", place)
    assert "chmod 600" in found


def test_sub_5_a_state_file_of_another_user_is_named(check: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "STATES", place.parent)
    assert check.check_file(place / "cluster.yaml", place) == []
    (place.parent / "cluster-imf.state").write_text("{}")
    assert check.check_file(place / "cluster.yaml", place) == []
    monkeypatch.setattr(check.os, "access", lambda path, mode: not str(path).endswith(".state"))
    (found,) = check.check_file(place / "cluster.yaml", place)
    assert "cluster-imf.state belongs to another user" in found


def test_sub_4_the_upload_leaves_out_what_is_no_code(check: ModuleType, place: Path) -> None:
    """`.gitignore` does not decide: data, results and runs stay here by name, and imf_core/data goes along."""
    (place / ".gitignore").write_text("imf_core/\n")
    runs = ("mlruns/0/x", "results/s/x", "data/graph/train.tsv", "old.db")
    for left in (*runs, ".git/objects/x", ".venv/bin/x", "tune/__pycache__/x"):
        (place / left).parent.mkdir(parents=True, exist_ok=True)
        (place / left).write_text("x")
    exclude = yaml.safe_load((place / "cluster.yaml").read_text())["rsync_exclude"]
    assert {path for _, path in check.upload(place, exclude)} == {".gitignore", "cluster.yaml", "imf_core/data/code.py"}


def test_sub_4_an_upload_that_is_too_large_lists_the_largest(check: ModuleType, place: Path) -> None:
    for number in range(6):
        with (place / f"dump{number}").open("wb") as stream:
            stream.truncate((60 + number) * 2**20)  # sparse
    (found,) = check.check_file(place / "cluster.yaml", place)
    lines = found.splitlines()
    assert "200 MiB" in lines[0]
    assert [line.split() for line in lines[1:]] == [[f"{65 - n}.0", "MiB", f"dump{5 - n}"] for n in range(5)]


def test_an_address_that_does_not_answer_is_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(check.socket, "create_connection", refuse)
    (found,) = check.reach_problems(["192.0.2.9"], "cluster.yaml")
    assert "192.0.2.9 does not answer" in found


@pytest.mark.parametrize("name", ["cluster.yaml", "aws.yaml", "gcp.yaml"])
def test_sub_5_a_shipped_file_suits_ray_and_names_nobody(check: ModuleType, name: str) -> None:
    text = (ROOT / "cluster" / name).read_text()
    config = yaml.safe_load(text)
    assert check.schema_problems(config, name) == []
    for fixed in ("10.", "192.168.", "ssh-rsa", "PRIVATE KEY", "/home/", "/Users/", "ami-", "AKIA"):
        assert fixed not in text
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("0.0.0.0" not in command for command in starts)
    (head,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert '"trial"' in head  # controllers of trials with several workers: on the head alone
    assert all('"trial"' not in command for command in config["worker_start_ray_commands"])


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_in_a_cloud_the_head_stays_and_the_workers_may_go(name: str) -> None:
    kinds = yaml.safe_load((ROOT / "cluster" / name).read_text())["available_node_types"]
    spot = ("spot", "preemptible")
    assert not any(word in str(kinds["head"]) for word in spot)
    assert any(word in str(kinds["gpu"]) for word in spot)
    assert kinds["head"]["resources"]["CPU"] == 0
    assert kinds["gpu"]["resources"]["GPU"] == 1
    assert (kinds["gpu"]["min_workers"], kinds["gpu"]["max_workers"]) == (0, 8)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "kuberay.yaml", "slurm.sh"])
def test_every_file_has_gaps_that_are_named_before_use(check: ModuleType, name: str) -> None:
    found = check.check_file(ROOT / "cluster" / name, ROOT)
    assert any("is left to fill in" in problem for problem in found)


def test_sub_5_every_worker_of_own_machines_is_started(check: ModuleType, place: Path) -> None:
    from ray.autoscaler._private.util import prepare_config

    prepared = prepare_config(yaml.safe_load((place / "cluster.yaml").read_text()))
    workers = prepared["available_node_types"]["local.cluster.node"]
    assert (workers["min_workers"], workers["max_workers"]) == (2, 2)


@pytest.mark.parametrize("script", ["setup_host.sh", "mlflow_head.sh", "submit.sh", "slurm.sh"])
def test_the_scripts_are_sound_shell_and_listen_to_nobody_else(script: str) -> None:
    text = (ROOT / "cluster" / script).read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert "0.0.0.0" not in text


def test_a_host_without_the_shared_folder_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "cluster" / "setup_host.sh"), "/proc/nowhere"], env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 1
    assert "the shared folder /proc/nowhere cannot be written to" in done.stderr


@pytest.mark.parametrize(("asked", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_check_that_was_asked_for_fails_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, asked: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(MUST_RUN, asked)
    with pytest.raises(outcome, match="apt-get install rsync"):
        cannot_run("needs rsync: apt-get install rsync")
    recipe = (ROOT / "Makefile").read_text().partition("\ntest-cluster:")[2].partition("\n\n")[0]
    assert f"{MUST_RUN}=1" in recipe
