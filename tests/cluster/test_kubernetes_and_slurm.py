"""The Kubernetes objects against a closed subset of KubeRay's schema, and the Slurm script with stand-ins for its commands."""

from __future__ import annotations

import copy
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = yaml.safe_load((ROOT / "tests" / "fixtures" / "kuberay_schema.yaml").read_text())
OBJECTS = [item for item in yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text()) if item]


def faults(value: dict[str, Any]) -> list[str]:
    kind = SCHEMA["kinds"][value["kind"]]
    validator = Draft7Validator({**kind, "definitions": SCHEMA["definitions"]})
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(value)]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = (item for item in OBJECTS if item["kind"] == kind)
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_the_ray_objects_suit_the_schema(kind: str) -> None:
    assert faults(of_kind(kind)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "workerGroupSpecs", 0, "minReplica"), 1),
        (("spec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "img"), "x"),
        (("spec", "authOptions", "mode"), "on"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "memory"), "8 Gi"),
    ],
)
def test_the_schema_sees_a_mistake(path: tuple[Any, ...], value: Any) -> None:
    wrong: Any = copy.deepcopy(of_kind("RayCluster"))
    place = wrong
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert len(faults(wrong)) == 1


def test_versions_and_names_agree() -> None:
    cluster, job = of_kind("RayCluster"), of_kind("RayJob")
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py(\d+)", (ROOT / "cluster" / "Dockerfile").read_text(), re.M)
    assert base is not None
    assert base[1] == cluster["spec"]["rayVersion"] == pins()["ray"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    head, _ = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    env = {item["name"]: item["value"] for item in head["env"]}
    assert int(env["IMF_GROWS_TO"]) == 1 + group["maxReplicas"]
    claims = {item["metadata"]["name"] for item in OBJECTS if item["kind"] == "PersistentVolumeClaim"}
    for spec in (cluster["spec"]["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        used = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert used == set(volumes)
        kept = [volume["persistentVolumeClaim"] for volume in volumes.values() if "emptyDir" not in volume]
        assert {volume["claimName"] for volume in kept} <= claims


def test_the_head_stays_and_is_not_open() -> None:
    cluster = of_kind("RayCluster")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert '\\"trial\\"' in spec["headGroupSpec"]["rayStartParams"]["resources"]
    assert "tolerations" not in spec["headGroupSpec"]["template"]["spec"]  # preemptible nodes are tainted
    assert spec["workerGroupSpecs"][0]["template"]["spec"]["tolerations"]
    assert "0.0.0.0" not in (ROOT / "cluster" / "kuberay.yaml").read_text()
    assert of_kind("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": {"ray.io/cluster": cluster["metadata"]["name"]}}


def test_the_entrypoint_is_a_search_that_the_command_line_takes() -> None:
    from tune.options import OPTIONS

    words = shlex.split(of_kind("RayJob")["spec"]["entrypoint"])
    assert words[:2] == ["python", "/home/ray/imf/tune/search.py"]
    known = {f"--{(option.flag or option.field).replace('_', '-')}" for option in OPTIONS}
    assert {word for word in words if word.startswith("--")} <= known


def run_in_group(command: list[str], variables: dict[str, str]) -> int:
    """Run a script in a process group of its own and end what it leaves behind, as Slurm does."""
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        return process.wait(timeout=60)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_hands_on_arguments_and_status_and_ends_what_it_started(tmp_path: Path, status: int) -> None:
    tools, home = tmp_path / "tools", tmp_path / "home"
    for folder in (tools, home / "venv" / "bin", home / "code" / "cluster"):
        folder.mkdir(parents=True)
    stand_ins = {
        "srun": 'echo "srun $*" >> "$RECORD"; sleep 30', "ray": 'echo "ray $*" >> "$RECORD"',
        "getent": "printf '127.0.1.1 STREAM\\n10.1.2.3 STREAM\\n'",
        # A search takes longer than what runs beside it takes to begin.
        "python": 'for _ in $(seq 100); do [ "$(grep -c ^srun "$RECORD")" = 2 ] && break; sleep 0.1; done; '
        f'printf "<%s>" "$@" >> "$RECORD"; echo >> "$RECORD"; exit {status}',
    }
    for name, text in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    (home / "code" / "cluster" / "mlflow_head.sh").write_text('echo "mlflow $*" >> "$RECORD"\n')
    record = tmp_path / "record"
    variables = {
        "HOME": str(home), "IMF_VENV": str(home / "venv"), "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record),
        "SLURM_JOB_ID": "123", "SLURM_JOB_NUM_NODES": "3", "SLURM_SUBMIT_DIR": str(home / "code"), "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "1", "IMF_STORAGE": str(tmp_path / "studies"),
    }
    done = run_in_group(["bash", str(ROOT / "cluster" / "slurm.sh"), "--data", "my graph", "--trials", "5"], variables)
    assert done == status
    lines = record.read_text().splitlines()
    head, workers = sorted(line for line in lines if line.startswith("srun"))[::-1]
    assert "--head" in head + workers
    assert any("--nodes=2 --ntasks=2" in line and "--address=10.1.2.3:20123" in line for line in (head, workers))
    (search,) = (line for line in lines if line.startswith("<"))
    assert search.endswith("<--address><10.1.2.3:20123><--expect-nodes><3><--data><my graph><--trials><5>")
    assert lines[-1] == "mlflow stop"
