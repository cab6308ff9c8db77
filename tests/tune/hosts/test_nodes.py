"""Nodes that differ, or do not share the storage, are refused by name before any trial (cases SUB-3, SUB-4, SUB-6, TRAIN-3)."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from imf_core.errors import ConfigError, ResourceError
from imf_core.prepare.link_data import LinkData, save_prepared
from tune.hosts import node_report
from tune.hosts.node_report import NodeReport, data_digest, report_node
from tune.hosts.nodes import common_interface, refuse_unfit, show_nodes
from tune.settings import SearchConfig
from tune.sources import code_digest, refuse_other_code
from tune.trial.worker import Job, run_job

DRIVER = NodeReport(
    name="head", address="10.0.0.1", python="3.11.9", ray="2.60.0", torch="2.13.0", version="0.1.0", code="c3d4", data="abcd",
    storage="", free=50 * 2**30, cpus=4, gpus=1, interface="eth0", resolves="10.0.0.1",
)
OTHER = replace(DRIVER, name="worker2", address="10.0.0.3")


@pytest.mark.parametrize(
    ("field", "value"),
    [("python", "3.11.8"), ("ray", "2.59.0"), ("torch", "2.12.0"), ("version", "0.2.0"), ("code", "a1b2"), ("data", "ffff")],
)
def test_sub_6_a_node_that_differs_is_named_with_both_values(field: str, value: str) -> None:
    refuse_unfit(DRIVER, [DRIVER, OTHER])
    ours = getattr(DRIVER, field)
    with pytest.raises(ResourceError, match=rf"node worker2 \(10.0.0.3\) has .*{value}, the driver has {ours}"):
        refuse_unfit(DRIVER, [DRIVER, replace(OTHER, **{field: value})])


def test_train_3_a_node_without_the_storage_is_named() -> None:
    blind = replace(OTHER, storage="does not see /home/ray/results/s")
    with pytest.raises(ResourceError, match=r"worker2 \(10.0.0.3\): does not see /home/ray/results/s") as caught:
        refuse_unfit(DRIVER, [DRIVER, blind])
    assert "--storage" in caught.value.remedy


def test_sub_4_data_that_is_other_or_missing_is_told_with_path_size_and_hash(toy: LinkData, tmp_path: Path) -> None:
    save_prepared(toy, tmp_path / "data")
    good = data_digest(tmp_path / "data")
    assert json.loads((tmp_path / "data" / "vocabulary.json").read_text())["arrays_sha256"].startswith(good)
    file = tmp_path / "data" / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    bad = data_digest(tmp_path / "data")
    assert bad.startswith(f"!{file} has {file.stat().st_size:,} bytes with SHA-256 ")
    assert good in bad
    with pytest.raises(ResourceError, match=r"node worker2 \(10.0.0.3\): the data .*arrays.safetensors has"):
        refuse_unfit(DRIVER, [DRIVER, replace(OTHER, data=bad)])
    assert "cannot be read" in data_digest(tmp_path / "absent")


def test_a_node_looks_at_itself(toy: LinkData, tmp_path: Path) -> None:
    save_prepared(toy, tmp_path / "data")
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "driver").write_text("x")
    said = NodeReport(**report_node(str(tmp_path / "data"), str(tmp_path / "nodes"), "127.0.0.1"))
    assert (said.code, said.storage, said.data) == (code_digest(), "", data_digest(tmp_path / "data"))
    assert said.interface  # the loopback one, whatever it is called
    assert said.free > 0
    assert [file.name.rpartition("-")[0] for file in (tmp_path / "nodes").iterdir() if file.name != "driver"] == [said.name]


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_report, "SEEN_SECONDS", 0.0)
    said = report_node(str(tmp_path / "data"), str(tmp_path / "nodes"), "127.0.0.1")
    assert said["storage"] == f"does not see {tmp_path}"


def test_sub_3_a_worker_with_other_code_refuses_a_trial(toy: LinkData, tmp_path: Path) -> None:
    """Also on a node that joined after the table was printed."""
    refuse_other_code("")
    refuse_other_code(code_digest())
    job = Job({}, str(tmp_path), str(tmp_path / "trial"), code="a1b2")
    with pytest.raises(ConfigError, match=rf"has the code {code_digest()}, the driver has a1b2"):
        run_job(job, lambda numbers: None)


def test_the_table_fits_a_terminal_and_names_every_node_and_what_differs() -> None:
    said = io.StringIO()
    other = replace(OTHER, free=100 * 2**20, code="ffff", storage="does not see /s")
    show_nodes(Console(file=said, width=80), [DRIVER, other])
    lines = [line.split() for line in said.getvalue().splitlines()]
    assert ["head", "10.0.0.1", "c3d4", "shared", "50", "GiB", "4", "1"] in lines
    assert ["worker2", "10.0.0.3", "ffff", "does", "not", "see", "/s", "0", "GiB", "4", "1"] in lines
    text = " ".join(said.getvalue().split())
    assert "the same on all nodes: Python 3.11.9, Ray 2.60.0, torch 2.13.0, imf-search 0.1.0, data abcd" in text
    assert "worker2 (10.0.0.3) has 100 MiB free" in text


def test_host_names_that_lead_to_loopback_are_got_round_or_named() -> None:
    astray = replace(OTHER, resolves="127.0.1.1")
    assert common_interface([DRIVER, OTHER]) is None
    assert common_interface([astray]) is None
    assert common_interface([DRIVER, astray]) == "eth0"
    with pytest.raises(ResourceError, match=r"worker2 \(10.0.0.3\): its host name resolves to 127.0.1.1"):
        common_interface([replace(DRIVER, interface="ens5"), astray])


def test_sub_6_a_relative_path_is_that_of_the_driver_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial runs in another folder, on another node: what it is told of paths is absolute."""
    (tmp_path / "datasets" / "DB15K").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings = SearchConfig.build({"data": "./datasets/DB15K", "storage": "studies"})
    assert settings.data == str(tmp_path / "datasets" / "DB15K")
    assert settings.base_config().data.path == settings.data  # what is logged
    assert settings.study_dir.is_relative_to(tmp_path / "studies")
