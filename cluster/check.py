"""Check a cluster file before using it: `python cluster/check.py cluster.yaml`, in the root of the repository.

Every problem is printed as `file:line: problem; remedy`. The exit status is 0 without problems, else 2. Nothing is started and
no machine is contacted, except with `--reach`: then every address must answer on its ssh port.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

PLACEHOLDER = re.compile(r"CHANGE-ME-([A-Za-z0-9-]*[A-Za-z0-9])")
STATES = Path("/tmp/ray")  # folder of the launcher's state files for on-premise clusters
UPLOAD_LIMIT = 200 * 2**20  # bytes
_LISTED = 5
_REACH_SECONDS = 5.0
_TOKEN_REMEDY = "make it: ray get-auth-token --generate"
_PATH_REMEDY = "correct the path; it is relative to the folder in which ray is run"


def placeholders(text: str, name: str) -> list[str]:
    """Placeholders that are left to fill in, outside comments."""
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        code = line if line.startswith("#SBATCH") else re.sub(r"(^|\s)#.*", "", line)
        for match in PLACEHOLDER.finditer(code):
            problems.append(f"{name}:{number}: {match[0]} is left to fill in; write the {match[1].replace('-', ' ')}")
    return problems


def line_of(text: str, key: str) -> int:
    """Number of the line with a key, 1 if there is none."""
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if re.match(rf"\s*(- )?{re.escape(key)}:", line)), 1)


def schema_problems(config: dict[str, Any], name: str) -> list[str]:
    """Problems that Ray's own schema and cross checks find."""
    import click
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config  # what the launcher calls; there is no public API

    try:
        validate_config(prepare_config(deepcopy(config)))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the file"
        return [f"{name}: {where}: {error.message}; see Ray's ray-schema.json for what is allowed"]
    except click.ClickException as error:
        return [f"{name}: {error.message}"]
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        return [f"{name}: Ray rejects it: {error or repr(error)}"]
    return []


def local_problems(config: Mapping[str, Any], text: str, name: str) -> list[str]:
    """Problems of on-premise clusters that the schema does not cover: addresses, worker counts, state file, ssh key."""
    provider, auth = config["provider"], config.get("auth") or {}
    head, workers = provider.get("head_ip"), list(provider.get("worker_ips") or [])
    where = f"{name}:{line_of(text, 'worker_ips')}"
    problems = []
    for address in sorted({str(item) for item in [head, *workers] if [head, *workers].count(item) > 1}):
        problems.append(f"{where}: {address} is listed twice; each machine is either the head or one worker")
    for field in ("min_workers", "max_workers"):
        if field in config and config[field] != len(workers):
            mismatch = f"{field} is {config[field]}, but there are {len(workers)} worker_ips"
            problems.append(f"{name}:{line_of(text, field)}: {mismatch}; leave it out")
    state = STATES / f"cluster-{config.get('cluster_name')}.state"
    if state.exists() and not os.access(state, os.W_OK):
        owner = f"{state} belongs to another user of this machine, so the launcher cannot write it"
        problems.append(f"{name}:{line_of(text, 'cluster_name')}: {owner}; choose another cluster_name, or have it removed")
    key = auth.get("ssh_private_key")
    if not key:
        return [*problems, f"{name}:{line_of(text, 'auth')}: no ssh_private_key; without it the head cannot start the workers"]
    file, where = Path(os.path.expanduser(key)), f"{name}:{line_of(text, 'ssh_private_key')}"
    if PLACEHOLDER.search(str(key)):
        return problems
    if not file.is_file():
        problems.append(f"{where}: there is no key {file}; create it: ssh-keygen -t ed25519 -N '' -f {file}")
    elif stat.S_IMODE(file.stat().st_mode) & 0o077:
        problems.append(f"{where}: other users may read the key {file}, so ssh refuses it; chmod 600 {file}")
    return problems


def mount_problems(config: Mapping[str, Any], text: str, name: str, root: Path) -> list[str]:
    """Missing sources of `file_mounts`, code that is not the repository, and uploads that are too large."""
    where, problems = f"{name}:{line_of(text, 'file_mounts')}", []
    for target, source in (config.get("file_mounts") or {}).items():
        local = Path(root, os.path.expanduser(str(source)))
        if PLACEHOLDER.search(str(source)):
            continue
        if not local.exists():
            remedy = _TOKEN_REMEDY if local.name == "auth_token" else _PATH_REMEDY
            problems.append(f"{where}: {target} is copied from {local}, which does not exist; {remedy}")
        elif target == "~/imf" and not (local / "imf_core").is_dir():
            problems.append(f"{where}: {local} is not the repository (no imf_core in it); run ray in its root")
        elif local.is_dir():
            files = upload(local, config.get("rsync_exclude") or [])
            total = sum(size for size, _ in files)
            print(f"{name}: {target} gets {len(files)} files, {total / 2**20:.1f} MiB")
            if total > UPLOAD_LIMIT:
                largest = sorted(files, reverse=True)[:_LISTED]
                listed = "".join(f"\n    {size / 2**20:8.1f} MiB  {path}" for size, path in largest)
                limit = f"more than {UPLOAD_LIMIT / 2**20:.0f} MiB would be uploaded to every machine"
                problems.append(f"{where}: {limit}; exclude everything but code in rsync_exclude:{listed}")
    return problems


def upload(folder: Path, exclude: list[str]) -> list[tuple[int, str]]:
    """Size in bytes and path of every file that rsync would send, from a dry run."""
    with tempfile.TemporaryDirectory() as empty:
        rules = [part for pattern in exclude for part in ("--exclude", pattern)]
        command = ["rsync", "-an", "--out-format=%l %n", *rules, f"{folder}/", empty]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    sizes = (line.partition(" ") for line in lines)
    return [(int(size), path) for size, _, path in sizes if size.isdigit() and not path.endswith("/")]


def reach_problems(addresses: list[str], name: str, seconds: float = _REACH_SECONDS) -> Iterator[str]:
    """Addresses whose ssh port does not answer."""
    for address in addresses:
        try:
            socket.create_connection((address, 22), timeout=seconds).close()
        except OSError as error:
            remedy = "start the machine or its sshd, or correct the address"
            yield f"{name}: {address} does not answer on port 22 ({error}); {remedy}"


def check_file(file: Path, root: Path, *, reach: bool = False) -> list[str]:
    """All problems of a cluster file.

    Args:
        file: a file for `ray up`, Kubernetes objects, or a Slurm script.
        root: the folder in which `ray up` will be run.
        reach: also try the ssh ports.
    """
    name = os.path.relpath(file)
    try:
        text = file.read_text(encoding="utf-8")
        documents = [] if file.suffix == ".sh" else [item for item in yaml.safe_load_all(text) if item]
    except OSError as error:
        return [f"{name}: cannot be read: {error.strerror}"]
    except yaml.YAMLError as error:
        return [f"{name}: invalid YAML: {error}"]
    problems = placeholders(text, name)
    if file.suffix == ".sh" or any("kind" in item for item in documents):
        return problems
    if len(documents) != 1 or not isinstance(documents[0], dict):
        return [f"{name}: not a single mapping; start from cluster/cluster.yaml"]
    config = documents[0]
    problems += schema_problems(config, name)
    missing = [tool for tool in ("rsync", "ssh") if shutil.which(tool) is None]
    problems += [f"{tool} is not installed here, but the launcher needs it; install it on every machine" for tool in missing]
    if (config.get("provider") or {}).get("type") == "local":
        problems += local_problems(config, text, name)
    if not missing:
        problems += mount_problems(config, text, name, root)
    if reach and not problems:
        provider = config["provider"]
        problems += reach_problems([str(item) for item in (provider["head_ip"], *provider["worker_ips"])], name)
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Check the files named on the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=[Path("cluster.yaml")])
    parser.add_argument("--reach", action="store_true", help="also try the ssh port of each machine")
    given = parser.parse_args(arguments)
    problems = [problem for file in given.files for problem in check_file(file, Path.cwd(), reach=given.reach)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("no problems: nothing is left to fill in, and Ray accepts it")
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
