"""The nodes of a cluster before the first trial: each looks at itself, a table says it, what does not fit is refused."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import imf_core
from imf_core.errors import ResourceError
from tune.hosts.node_report import SEEN_SECONDS, NodeReport, data_digest, look
from tune.sources import code_digest

_LOOK_SECONDS = 300.0  # of a node: it may have to fetch the code and to import torch from a slow disk
_LITTLE_DISK = 2 * 2**30
_ALIKE = {
    "python": "Python", "ray": "Ray", "torch": "torch", "version": "imf-search", "code": "code", "data": "data",
}


def look_at_all(prepared: Path, study_dir: Path, seconds: float = _LOOK_SECONDS) -> list[NodeReport]:
    """Have every living node look at itself; that of the driver comes first.

    Raises:
        ResourceError: a node does not answer, or what it writes does not arrive here.
    """
    folder = study_dir / f"nodes-{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        (folder / "driver").write_text("x", encoding="utf-8")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = ray.get_runtime_context().get_node_id()
        nodes.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        looks = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(prepared), str(folder), node["NodeManagerAddress"]
            ) for node in nodes
        ]
        deadline = time.monotonic() + seconds
        reports = [_answer(node, task, deadline) for node, task in zip(nodes, looks)]
        _refuse_unseen(reports, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return reports


def _answer(node: Mapping[str, Any], task: Any, deadline: float) -> NodeReport:
    place = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    have = node["Resources"]
    try:
        said = ray.get(task, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError as error:
        remedy = f"see /tmp/ray/session_latest/logs on {place}"
        raise ResourceError(f"node {place} does not answer", remedy=remedy, node=place) from error
    except ray.exceptions.RayError as error:
        gist = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ResourceError(
            f"node {place} cannot run our code: {gist}",
            remedy="install the versions of constraints.txt there (ray up cluster.yaml does), or take the node out", node=place,
        ) from error
    return NodeReport(**{**said, "cpus": float(have.get("CPU", 0.0)), "gpus": float(have.get("GPU", 0.0))})


def _refuse_unseen(reports: Sequence[NodeReport], folder: Path) -> None:
    """A node that writes into a folder of its own of the same name: what it wrote never comes here."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        seen = {file.name.rpartition("-")[0] for file in folder.iterdir()}
        blind = [report for report in reports if not report.storage and report.name not in seen]
        if not blind:
            return
        if time.monotonic() > deadline:
            raise _apart(blind[0].place, f"what it writes to {folder.parent} does not arrive at the driver")
        time.sleep(0.2)


def _apart(place: str, problem: str) -> ResourceError:
    return ResourceError(
        f"node {place}: {problem}; trials there could not be resumed elsewhere",
        remedy="put --storage on a file system that all nodes share under one path (NFS or the like)", node=place,
    )


def refuse_unfit(driver: NodeReport, reports: Sequence[NodeReport]) -> None:
    """Compare every node with the driver.

    Raises:
        ResourceError: nodes differ, each by its name.
    """
    differing = []
    for report in reports:
        if report.storage:
            raise _apart(report.place, report.storage)
        if report.data.startswith("!"):
            differing.append(f"node {report.place}: the data {report.data[1:]}")
        for field, what in _ALIKE.items():
            theirs, ours = getattr(report, field), getattr(driver, field)
            if theirs != ours and not theirs.startswith("!"):
                differing.append(f"node {report.place} has {what} {theirs}, the driver has {ours}")
    if differing:
        raise ResourceError(
            "the nodes of the cluster are not alike:\n  " + "\n  ".join(differing),
            remedy="bring versions and code to every machine anew: ray up cluster.yaml (it restarts Ray), or take the node out",
            differences=differing,
        )


def show_nodes(console: Console, reports: Sequence[NodeReport]) -> None:
    """Print the table of nodes, what is the same on all of them once, and a warning where a disk is nearly full."""
    shared = {field: {getattr(report, field) for report in reports} for field in _ALIKE}
    differing = [field for field, values in shared.items() if len(values) > 1]
    table = Table(title="nodes", box=None, header_style="bold")
    for column in ("node", "address", *(_ALIKE[field] for field in differing), "storage", "free disk", "CPU", "GPU"):
        table.add_column(column, overflow="fold", justify="right" if column in ("free disk", "CPU", "GPU") else "left")
    for report in reports:
        table.add_row(
            escape(report.name), report.address, *(escape(getattr(report, field)) for field in differing),
            escape(report.storage) or "shared", f"{report.free / 2**30:.0f} GiB", f"{report.cpus:g}", f"{report.gpus:g}",
        )
    console.print(table)
    same = ", ".join(f"{_ALIKE[field]} {escape(values.pop())}" for field, values in shared.items() if len(values) == 1)
    console.print(f"  on all of them: {same}", highlight=False)
    for report in reports:
        if report.free < _LITTLE_DISK:
            problem = f"{report.place} has {report.free / 2**20:.0f} MiB free on its temporary disk"
            console.print(f"  [bold yellow]warning[/]: {escape(problem)}, where Ray keeps logs and objects", highlight=False)


def check_nodes(prepared: Path, study_dir: Path, console: Console) -> list[NodeReport]:
    """Look at every node, print the table, refuse what does not fit.

    Args:
        prepared: folder of the study's prepared data.
        study_dir: the study's folder, which every node has to read and write.

    Raises:
        ResourceError: a node does not answer, differs from the driver, or does not share the storage.
    """
    reports = look_at_all(prepared, study_dir)
    show_nodes(console, reports)
    driver = NodeReport(
        name=socket.gethostname(), address="", python=platform.python_version(), ray=ray.__version__,
        torch=sys.modules["torch"].__version__, version=imf_core.__version__, code=code_digest(), data=data_digest(prepared),
        storage="", free=0,
    )
    refuse_unfit(driver, reports)
    return reports


def common_interface(reports: Sequence[NodeReport]) -> str | None:
    """Interface for worker groups that span nodes; None where they find it by themselves, by their host names.

    Gloo connects through the address of the host name, which on many systems is a loopback one (127.0.1.1).

    Raises:
        ResourceError: host names lead to loopback, and the interfaces of the nodes have different names.
    """
    astray = [report for report in reports if report.resolves.startswith("127.") and not report.address.startswith("127.")]
    if len(reports) < 2 or not astray:
        return None
    names = {report.interface for report in reports}
    if len(names) == 1 and "" not in names:
        return names.pop()
    report = astray[0]
    raise ResourceError(
        f"node {report.place}: its host name leads to {report.resolves}, so that workers on other nodes do not find it",
        remedy=f"write `{report.address} {report.name}` into /etc/hosts there, or set GLOO_SOCKET_IFNAME on every node",
        node=report.place,
    )
