"""`ray up`, `ray submit` and the rest, for real: four hosts with an address, an sshd and a Ray each, in namespaces.

A worker host is cut off in the middle of a search, then the head is killed. About ten minutes; `make test-cluster`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosts_round
import pytest
from asked_for import cannot_run
from small_search import write_graph

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(3000)]


def lacking() -> str | None:
    """What keeps hosts from being made on this machine."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux: it makes network and process namespaces"
    tools = ("ip", "unshare", "nsenter", "setsid", "rsync", "ssh", "ssh-keygen", "/usr/sbin/sshd")
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install openssh-server openssh-client rsync iproute2"
    if Path("/tmp") in Path(sys.prefix).resolve().parents:
        return f"needs an environment that is not below /tmp, which the hosts replace: {sys.prefix}"
    probe = "ip link add imf0 type veth peer name imf1 && mount -t tmpfs none /mnt"
    done = subprocess.run(["unshare", "--net", "--mount", "sh", "-c", probe], capture_output=True, check=False)
    return f"may not make namespaces here: {done.stderr.decode().strip()}" if done.returncode else None


@pytest.fixture(scope="module")
def facts(repository: Path) -> Iterator[dict[str, Any]]:
    """What `hosts_round.py` saw; its logs are kept where a test fails."""
    if reason := lacking():
        cannot_run(reason)
    lab = Path(tempfile.mkdtemp(prefix="imf-lab-", dir="/var/tmp"))
    checkout = hosts_round.prepare(lab, repository)
    write_graph(lab / "shared" / "graph")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IMF_", "PYTHONPATH"))}
    here = checkout / "tests" / "support"
    done = subprocess.run(
        ["bash", str(here / "lab.sh"), "3", sys.executable, str(here / "hosts_round.py")], stdin=subprocess.DEVNULL,
        env={**environment, "LAB_DIR": str(lab), "LAB_VENV": sys.prefix}, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, f"see {lab}\n{done.stdout}\n{done.stderr}"
    yield json.loads((lab / "facts.json").read_text())
    shutil.rmtree(lab)


def whole(trial: dict[str, Any], epochs: int) -> bool:
    """Completed, each epoch once."""
    return trial["state"] == "completed" and [epoch for epoch, _ in trial["curve"]] == list(range(1, epochs + 1))


def test_the_shipped_file_filled_in_passes_the_check_and_comes_up(facts: dict[str, Any]) -> None:
    assert facts["check"][0] == 0, facts["check"][1]
    assert facts["up"][0] == 0, facts["up"][1]


def test_sub_1_a_submitted_search_runs_on_all_hosts_with_the_client_s_code(facts: dict[str, Any]) -> None:
    status, log = facts["first"]
    assert status == 0, log
    assert "the cluster has 6 CPU and 0 GPU on 4 machines" in log
    for place in range(4):
        assert f"10.88.0.{10 + place}" in log.partition("nodes")[2]
    assert f"code {facts['code']}" in log
    assert [(trial["state"], trial["epochs"]) for trial in facts["trials"]] == [("completed", 4)] * 2


def test_a_refused_argument_ends_with_a_status_and_its_message(facts: dict[str, Any]) -> None:
    status, log = facts["badly"]
    assert status == 1
    assert "trials = 0 is invalid" in log


def test_a_ray_job_runs_the_search_with_the_folder_it_brings(facts: dict[str, Any]) -> None:
    status, log = facts["job"]
    assert status == 0, log
    assert "succeeded" in log
    assert [(trial["state"], trial["epochs"]) for trial in facts["job trials"]] == [("completed", 3)] * 2


def test_exec_and_rsync_down_bring_results_and_the_best_checkpoint(facts: dict[str, Any]) -> None:
    assert facts["exec"][0] == 0
    assert "IMF_STORAGE=/mnt/shared/studies" in facts["exec"][1]
    assert facts["down"][0] == 0, facts["down"][1]
    assert facts["answers"] == 3
    assert set(facts["came down"]) >= {"leaderboard.csv", "report.html", "summary.json", "best"}


def test_mlflow_is_read_through_the_tunnel_and_has_every_run(facts: dict[str, Any]) -> None:
    roles = Counter({tag["key"]: tag["value"] for tag in run["data"]["tags"]}["role"] for run in facts["runs"])
    assert roles["study"] == 1 and roles["trial"] == 2
    assert roles["final"] in (1, 2) and roles.total() == 3 + roles["final"]  # several branches: structure alone besides
    assert {run["info"]["status"] for run in facts["runs"]} == {"FINISHED"}
    (study,) = (run for run in facts["runs"] if {"key": "role", "value": "study"} in run["data"]["tags"])
    assert {"key": "code", "value": facts["code"]} in study["data"]["params"]  # case SUB-3: the hash is logged


def test_neither_mlflow_nor_the_dashboard_is_open_and_ray_asks_for_the_token(facts: dict[str, Any]) -> None:
    assert facts["open"] == []
    assert facts["gcs"] is True
    status, log = facts["without token"]
    assert status != 0
    assert "InvalidAuthToken" in log


def test_a_worker_host_that_is_cut_off_costs_no_trial(facts: dict[str, Any]) -> None:
    assert len(facts["hosts of a trial"]) == 2  # its two workers were on two hosts
    assert facts["cut off"] in facts["hosts of a trial"]
    assert facts["second"] == 0, facts["second log"]
    found = facts["second trials"]
    assert len(found) == 2
    assert all(whole(trial, hosts_round.EPOCHS) for trial in found)
    assert max(trial["retries"] for trial in found) >= 1


def test_sub_5_after_that_too_few_nodes_are_refused_by_address(facts: dict[str, Any]) -> None:
    status, log = facts["too few"]
    assert status == 1
    assert f"3 of 4 nodes, missing {facts['address cut off']}" in log


def test_a_killed_head_comes_back_and_the_search_goes_on(facts: dict[str, Any]) -> None:
    assert facts["third"] != 0
    assert facts["up again"][0] == 0, facts["up again"][1]
    status, log = facts["resumed"]
    assert status == 0, log
    assert f"3 of 4 nodes, missing {facts['address cut off']}" in log  # said, and gone on without it
    assert "resuming: 0 of 2 trials have ended, 2 are left, 1 of them interrupted" in log
    assert facts["epochs before"] >= 1
    assert facts["began again"] > 1  # the interrupted trial, from its checkpoint
    interrupted, other = facts["third trials"]
    assert whole(other, hosts_round.EPOCHS)
    assert (interrupted["state"], interrupted["epochs"]) == ("completed", hosts_round.EPOCHS)
    # Epochs that were on their way to the head when it died are the only ones that its curve may lack.
    lacking = set(range(1, hosts_round.EPOCHS + 1)) - {epoch for epoch, _ in interrupted["curve"]}
    assert lacking <= set(range(facts["epochs before"] + 1, facts["began again"]))
    assert {run["info"]["status"] for run in facts["runs at the end"]} == {"FINISHED"}


def test_sub_3_the_driver_s_code_replaces_older_code_on_the_workers(facts: dict[str, Any]) -> None:
    """`ray rsync-up` brought the head back to the code of the study, the workers kept another in ~/imf."""
    assert f"code {facts['code']}" in facts["resumed"][1]
    assert facts["code of a worker"] != facts["code"]


def test_ray_down_ends_the_cluster(facts: dict[str, Any]) -> None:
    assert facts["ray down"][0] == 0, facts["ray down"][1]
