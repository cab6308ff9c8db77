"""Check the nodes of a cluster before the first trial: every node reports on itself and must agree with the driver."""

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
from tune.hosts.node_report import SEEN_SECONDS, NodeReport, data_digest, report_node, versions_of
from tune.sources import code_digest

_REPORT_SECONDS = 300.0  # a node may have to fetch the code and to import torch from a slow disk
_LITTLE_DISK = 2 * 2**30
_COMPARED = {
    "python": "Python", "ray": "Ray", "torch": "torch", "version": "imf-search", "code": "code", "data": "data",
    "parts": "parts",
}


def collect_reports(
    prepared: Path, study_dir: Path, seconds: float = _REPORT_SECONDS, packages: Sequence[str] = ()
) -> list[NodeReport]:
    """Let every living node report on itself; the driver's node comes first.

    Args:
        prepared: folder of the prepared data.
        study_dir: the study's folder.
        seconds: maximum time until all nodes have answered.
        packages: distributions with parts that the search may use.

    Raises:
        ResourceError: a node does not answer, or the driver does not see the file that it writes.
    """
    folder = study_dir / f"nodes-{uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        (folder / "driver").write_text("x", encoding="utf-8")
        nodes = [node for node in ray.nodes() if node["Alive"]]
        here = ray.get_runtime_context().get_node_id()
        nodes.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
        task = ray.remote(num_cpus=0, max_retries=0)(report_node)
        answers = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                str(prepared), str(folder), node["NodeManagerAddress"], tuple(packages)
            ) for node in nodes
        ]
        deadline = time.monotonic() + seconds
        reports = [_answer(node, answer, deadline) for node, answer in zip(nodes, answers)]
        _refuse_unshared(reports, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return reports


def _answer(node: Mapping[str, Any], answer: Any, deadline: float) -> NodeReport:
    label = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    resources = node["Resources"]
    try:
        values = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError as error:
        remedy = f"see /tmp/ray/session_latest/logs on {label}"
        raise ResourceError(f"node {label} does not answer", remedy=remedy, node=label) from error
    except ray.exceptions.RayError as error:
        gist = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise ResourceError(
            f"node {label} cannot run our code: {gist}",
            remedy="install the versions of constraints.txt there (ray up cluster.yaml does), or remove the node", node=label,
        ) from error
    return NodeReport(**{**values, "cpus": float(resources.get("CPU", 0.0)), "gpus": float(resources.get("GPU", 0.0))})


def _refuse_unshared(reports: Sequence[NodeReport], folder: Path) -> None:
    """Refuse a node whose files the driver does not see: it has a folder of the same name on its own disk."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        names = {file.name.rpartition("-")[0] for file in folder.iterdir()}
        unseen = [report for report in reports if not report.storage and report.name not in names]
        if not unseen:
            return
        if time.monotonic() > deadline:
            raise _unshared(unseen[0].label, f"the driver does not see the files that it writes to {folder.parent}")
        time.sleep(0.2)


def _unshared(label: str, problem: str) -> ResourceError:
    return ResourceError(
        f"node {label}: {problem}; its trials could not be resumed on other nodes",
        remedy="put --storage on a file system that all nodes share under the same path, for example NFS", node=label,
    )


def refuse_unfit(driver: NodeReport, reports: Sequence[NodeReport]) -> None:
    """Compare every node with the driver.

    Raises:
        ResourceError: nodes differ or do not share the storage; names each.
    """
    differing = []
    for report in reports:
        if report.storage:
            raise _unshared(report.label, report.storage)
        if report.data.startswith("!"):
            differing.append(f"node {report.label}: the data {report.data[1:]}")
        for field, title in _COMPARED.items():
            theirs, ours = getattr(report, field), getattr(driver, field)
            if theirs != ours and not theirs.startswith("!"):
                differing.append(f"node {report.label} has {title} {theirs}, the driver has {ours}")
    if differing:
        raise ResourceError(
            "the nodes of the cluster differ from the driver:\n  " + "\n  ".join(differing),
            remedy="install versions and code on every machine again: ray up cluster.yaml (restarts Ray); or remove the node",
            differences=differing,
        )


def show_nodes(console: Console, reports: Sequence[NodeReport]) -> None:
    """Print a table of the nodes, the values that they share, and a warning for each disk that is nearly full."""
    values_of = {field: {getattr(report, field) for report in reports} for field in _COMPARED}
    differing = [field for field, values in values_of.items() if len(values) > 1]
    table = Table(title="nodes", box=None, header_style="bold")
    for column in ("node", "address", *(_COMPARED[field] for field in differing), "storage", "free disk", "CPU", "GPU"):
        table.add_column(column, overflow="fold", justify="right" if column in ("free disk", "CPU", "GPU") else "left")
    for report in reports:
        table.add_row(
            escape(report.name), report.address, *(escape(getattr(report, field)) for field in differing),
            escape(report.storage) or "shared", f"{report.free / 2**30:.0f} GiB", f"{report.cpus:g}", f"{report.gpus:g}",
        )
    console.print(table)
    same = ", ".join(
        f"{_COMPARED[field]} {escape(values.pop())}" for field, values in values_of.items()
        if len(values) == 1 and values != {""})
    console.print(f"  the same on all nodes: {same}", highlight=False)
    for report in reports:
        if report.free < _LITTLE_DISK:
            problem = f"{report.label} has {report.free / 2**20:.0f} MiB free on its temporary disk"
            console.print(f"  [bold yellow]warning[/]: {escape(problem)}, where Ray keeps logs and objects", highlight=False)


def check_nodes(prepared: Path, study_dir: Path, console: Console, packages: Sequence[str] = ()) -> list[NodeReport]:
    """Collect a report from every node, print them, and compare them with the driver.

    Args:
        prepared: folder of the study's prepared data.
        study_dir: the study's folder, which every node must be able to read and write.
        console: for the table.
        packages: distributions with parts that the search may use; they must be the driver's everywhere.

    Raises:
        ResourceError: a node does not answer, differs from the driver, or does not share the storage.
    """
    reports = collect_reports(prepared, study_dir, packages=packages)
    show_nodes(console, reports)
    driver = NodeReport(
        name=socket.gethostname(), address="", python=platform.python_version(), ray=ray.__version__,
        torch=sys.modules["torch"].__version__, version=imf_core.__version__, code=code_digest(), data=data_digest(prepared),
        storage="", free=0, parts=versions_of(packages),
    )
    refuse_unfit(driver, reports)
    return reports


def common_interface(reports: Sequence[NodeReport]) -> str | None:
    """Network interface for worker groups that span nodes; None if Gloo can find it through the host names.

    Gloo connects through the address of the host name, which on many systems is a loopback address (127.0.1.1).

    Raises:
        ResourceError: host names resolve to loopback, and the interfaces of the nodes have different names.
    """
    loopback = [report for report in reports if report.resolves.startswith("127.") and not report.address.startswith("127.")]
    if len(reports) < 2 or not loopback:
        return None
    names = {report.interface for report in reports}
    if len(names) == 1 and "" not in names:
        return names.pop()
    report = loopback[0]
    raise ResourceError(
        f"node {report.label}: its host name resolves to {report.resolves}, so workers on other nodes cannot connect to it",
        remedy=f"write `{report.address} {report.name}` into /etc/hosts there, or set GLOO_SOCKET_IFNAME on every node",
        node=report.label,
    )
