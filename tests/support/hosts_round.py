"""A whole life of a cluster, run by lab.sh in the network of its hosts; writes what it saw as JSON for `test_hosts.py`.

`prepare` first makes a folder LAB_DIR with all that is needed, outside; then, within, `python hosts_round.py` with LAB_DIR and
LAB_VENV set leaves LAB_DIR/facts.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAB, VENV = Path(os.environ.get("LAB_DIR", "")), Path(os.environ.get("LAB_VENV", ""))
HEAD, WORKERS = "10.88.0.10", ("10.88.0.11", "10.88.0.12", "10.88.0.13")
CLIENT, STUDIES = LAB / "client", LAB / "shared" / "studies"
REPOSITORY = CLIENT / "root"
SHARED = "/mnt/shared/studies"
SMALL = (
    "model.dim=16", "model.relation_dim=8", "train.batch_size=64", "model.dropout_context=0.1", "model.modalities=[]",
    "train.memory_budget_mb=64",
)
# What makes hosts on one small machine quick to notice a death; not for real clusters.
QUICK = {
    "RAY_memory_monitor_refresh_ms": 0, "RAY_health_check_initial_delay_ms": 0, "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 2000, "RAY_health_check_failure_threshold": 5, "AUTOSCALER_UPDATE_INTERVAL_S": 1,
    "RAY_gcs_rpc_server_reconnect_timeout_s": 20,
}
facts: dict[str, Any] = {"seconds": {}}


def prepare(lab: Path, root: Path) -> Path:
    """A checkout as a user has it, with a mark in it; the shipped cluster file filled in; a graph on the shared storage.

    Returns:
        the checkout. It holds this file and lab.sh, too.
    """
    checkout = lab / "client" / "root"
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, capture_output=True, check=True).stdout
    for name in map(os.fsdecode, filter(None, names.split(b"\0"))):
        if os.path.lexists(root / name):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, checkout / name, follow_symlinks=False)
    file = checkout / "cluster" / "cluster.yaml"
    text = file.read_text()
    for gap, word in {
        "CHANGE-ME-address-of-the-head": HEAD, "CHANGE-ME-address-of-a-worker": ", ".join(WORKERS),
        "CHANGE-ME-user-on-all-machines": "root", "CHANGE-ME-private-key-file": str(lab / "id"),
        "CHANGE-ME-shared-folder": SHARED,
        "--head --port=6379": "--head --num-cpus=0 --port=6379",  # as the file says: keeps trials off the head
    }.items():
        assert gap in text, gap
        text = text.replace(gap, word)
    file.write_text(text)
    quick = " ".join(f"{name}={value}" for name, value in QUICK.items())
    (lab / "bashrc").write_text(  # of each host: no package index can be reached, and what is installed is enough
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0\n"
        f"export {quick}\n"
    )
    return checkout


def mark() -> None:
    with (REPOSITORY / "imf_core" / "__init__.py").open("a") as module:
        module.write(f"# {time.time()}\n")


def run(name: str, *command: str, timeout: float = 420) -> tuple[int, str]:
    """Run a command of the client to its end; its output goes to a file, too."""
    began = time.monotonic()
    with (LAB / f"{name}.log").open("w") as log:
        done = subprocess.run(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=timeout,
            check=False,
        )
    facts["seconds"][name] = round(time.monotonic() - began)
    print(f"{name}: status {done.returncode} after {facts['seconds'][name]} s", flush=True)
    return done.returncode, plain(LAB / f"{name}.log")


def plain(file: Path) -> str:
    """What a terminal would have shown."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.read_text(errors="replace")).replace("\r", "")


def submit(*arguments: str) -> tuple[str, ...]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return ("ray", "submit", "cluster.yaml", "tune/search.py", "--", *settings, "--data", "/mnt/shared/graph", *arguments)


SEARCH = ("--workers", "2", "--cpus-per-worker", "2", "--seeds", "1", "--scheduler", "none", "--save-seconds", "0")
EPOCHS = 16
LONG = (*SEARCH, "--trials", "2", "--set", f"train.max_epochs={EPOCHS}", "--set", f"train.patience={EPOCHS}")


def wait_for(what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise TimeoutError("it did not come")


def started(study: str, epoch: int) -> tuple[str, str] | None:
    """Trial and host of rank 0 of one that is in the middle."""
    for file in sorted((STUDIES / study / "trials").glob("*/reported.json")):
        said = json.loads(file.read_text())
        if said["epoch"] >= epoch:
            return file.parent.name, said["host"]
    return None


def hosts_of(study: str) -> list[str]:
    """Hosts on which ranks of trials are at work, by the command lines of their processes."""
    busy = []
    for place in range(1, len(WORKERS) + 1):
        first = (LAB / f"worker{place}" / "pid").read_text()
        look = ["nsenter", "-t", first.strip(), "-p", "-m", "ps", "-eo", "args"]
        listing = subprocess.run(look, capture_output=True, text=True, check=False)
        if "RayTrainWorker" in listing.stdout:
            busy.append(f"worker{place}")
    return busy


def end_host(name: str, link: bool) -> None:
    """Take the network away, then the processes, as a machine goes that loses its power."""
    if link:
        subprocess.run(["ip", "link", "set", f"v{name}", "down"], check=True)
        time.sleep(1)
    os.kill(int((LAB / name / "pid").read_text()), signal.SIGKILL)


def trials(study: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((STUDIES / study / "trials.json").read_text())
    return found


def reachable(port: int) -> bool:
    try:
        socket.create_connection((HEAD, port), timeout=2).close()
    except OSError:
        return False
    return True


def mlflow(path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:5000/api/2.0/mlflow/{path}", json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def through_the_tunnel(what: Callable[[], Any]) -> Any:
    tunnel = subprocess.Popen(
        ["ray", "exec", "-p", "5000", "cluster.yaml", "sleep 300"], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )

    def healthy() -> bool:
        try:
            return bool(urllib.request.urlopen("http://127.0.0.1:5000/health", timeout=2).read())
        except OSError:
            return False

    try:
        wait_for(healthy, 60)
        return what()
    finally:
        os.killpg(tunnel.pid, signal.SIGTERM)
        tunnel.wait()


def first_search() -> None:
    """Submit, exec, rsync-down, MLflow through the tunnel; nothing open."""
    facts["badly"] = run("badly", *submit("--trials", "0"))
    facts["first"] = run("first", *submit("--study", "first", "--trials", "2", "--set", "train.max_epochs=4", *SEARCH))
    search = "python tune/search.py --study job --data /mnt/shared/graph --trials 2 --seeds 1 --scheduler none --concurrency 2"
    settings = "--set model.modalities=[] --set train.max_epochs=3 --set train.memory_budget_mb=64"
    where = "cd ~/imf && RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265"
    facts["job"] = run(
        "job", "ray", "exec", "cluster.yaml", f"{where} ray job submit --working-dir . -- {search} {settings}"
    )
    facts["job trials"] = trials("job")
    facts["exec"] = run("exec", "ray", "exec", "cluster.yaml", f"cat {SHARED}/first/summary.json; echo; env | grep ^IMF_")
    facts["down"] = run("down", "ray", "rsync-down", "cluster.yaml", f"{SHARED}/first/", str(CLIENT / "first"))
    facts["came down"] = sorted(os.listdir(CLIENT / "first"))
    ask = "from imf_core.predict import Predictor; print(len(Predictor.load('best').tails('thing 1', 'belongs to', k=3)))"
    answers = subprocess.run(
        [sys.executable, "-c", ask], cwd=CLIENT / "first", capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    facts["answers"] = int(answers.stdout)
    facts["trials"] = trials("first")
    facts["runs"] = through_the_tunnel(lambda: mlflow("runs/search", {
        "experiment_ids": [mlflow("experiments/search", {"max_results": 10})["experiments"][0]["experiment_id"]],
        "filter": "tags.study = 'first'",
    }))["runs"]
    facts["open"] = [port for port in (5000, 8265) if reachable(port)]
    facts["gcs"] = reachable(6379)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    facts["without token"] = run("without-token", "ray", "status", "--address", f"{HEAD}:6379", timeout=90)
    del os.environ["RAY_AUTH_MODE"]


def lost_worker() -> None:
    """A worker host is cut off in the middle of a trial that it takes part in."""
    search = subprocess.Popen(
        submit("--study", "second", *LONG), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        stdout=(LAB / "second.log").open("w"), stderr=subprocess.STDOUT,
    )
    _, host = wait_for(lambda: started("second", 5) or (search.poll() is not None and ("", "")))
    facts["hosts of a trial"] = hosts_of("second")
    facts["cut off"], began = host, time.monotonic()
    facts["address cut off"] = WORKERS[int(host.removeprefix("worker")) - 1]
    end_host(host, link=True)
    facts["second"] = search.wait(timeout=900)
    facts["seconds"]["second, from the cut"] = round(time.monotonic() - began)
    facts["second log"] = plain(LAB / "second.log")
    facts["second trials"] = trials("second")


def lost_head() -> None:
    """The head is killed in the middle, comes back with its disk, and the search is resumed without the lost worker."""
    search = subprocess.Popen(
        submit("--study", "third", "--fewer-nodes", "--node-wait", "5", *LONG), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
        stdout=(LAB / "third.log").open("w"), stderr=subprocess.STDOUT,
    )
    wait_for(lambda: started("third", 5) or search.poll() is not None)
    end_host("head", link=False)
    facts["third"] = search.wait(timeout=180)
    facts["third log"] = plain(LAB / "third.log")
    lines = (STUDIES / "third" / "journal.jsonl").read_text().splitlines()
    facts["epochs before"] = sum('"report"' in line for line in lines)
    subprocess.run(["bash", str(REPOSITORY / "tests" / "support" / "lab.sh"), "host", "head", HEAD], check=True)
    mark()  # the code on the way to the head is another than that of the workers: ours goes along
    facts["up again"] = run("up-again", "ray", "up", "-y", "cluster.yaml")
    resume = ("ray", "submit", "cluster.yaml", "tune/search.py", "--", "--study", "third", "--resume")
    facts["too few"] = run("too-few", *resume, "--node-wait", "45")
    unmark()
    run("rsync-up", "ray", "rsync-up", "cluster.yaml")
    facts["resumed"] = run("resumed", *resume, "--fewer-nodes", "--node-wait", "5", timeout=900)
    facts["third trials"] = trials("third")
    facts["began again"] = max(
        json.loads(file.read_text())["began"] for file in (STUDIES / "third" / "trials").glob("*/reported.json")
    )
    left = next(f"worker{place}" for place in (1, 2, 3) if f"worker{place}" != facts.get("cut off"))
    facts["code of a worker"] = code_of(LAB / left / "home" / "ray" / "imf")
    facts["runs at the end"] = through_the_tunnel(lambda: mlflow("runs/search", {
        "experiment_ids": [mlflow("experiments/search", {"max_results": 10})["experiments"][0]["experiment_id"]],
        "filter": "tags.study = 'third'",
    }))["runs"]
    facts["ray down"] = run("ray-down", "ray", "down", "-y", "cluster.yaml")


def unmark() -> None:
    """Back to the code with which the studies were begun."""
    module = REPOSITORY / "imf_core" / "__init__.py"
    module.write_text("".join(module.read_text().splitlines(keepends=True)[:-1]))


def code_of(folder: Path) -> str:
    """Digest of the sources in a folder, as the table of nodes has it."""
    digest = hashlib.sha256()
    for package in ("imf_core", "tune"):
        for file in sorted((folder / package).rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    os.environ.update({"HOME": str(CLIENT), "PATH": f"{VENV}/bin:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"})
    os.environ.pop("RAY_AUTH_MODE", None)
    mark()
    facts["code"] = code_of(REPOSITORY)
    subprocess.run(["ray", "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    steps = {"first": first_search, "worker": lost_worker, "head": lost_head}
    try:
        facts["check"] = run("check", sys.executable, "cluster/check.py", "cluster.yaml", "--reach")
        facts["up"] = run("up", "ray", "up", "-y", "cluster.yaml")
        for name in os.environ.get("LAB_STEPS", ",".join(steps)).split(","):
            steps[name]()
    finally:
        (LAB / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
