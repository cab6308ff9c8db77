"""The same from Python and from the command line, on the tiny graph; and data in memory against the same data in files."""

from __future__ import annotations

import json
from pathlib import Path

import command_line
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tiny_checkpoint import tiny_graph, tiny_pool

import imf_core as imf
from imf_core.data.formats.readers import read_raw
from imf_core.errors import CheckpointError, ConfigError, DataError

SMALL = {"model.dim": 8, "model.relation_dim": 4, "train.max_epochs": 2, "train.batch_size": 16}
FLAGS = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny graph; ids follow the first appearance, as they do in memory."""
    folder = tiny_graph(tmp_path_factory.mktemp("both") / "graph")
    (folder / "entities.txt").unlink()
    (folder / "relations.txt").unlink()
    return folder


@pytest.fixture(scope="module")
def trained(graph: Path) -> imf.Model:
    return imf.train(imf.prepare(graph), SMALL)


@pytest.fixture(scope="module")
def pool(graph: Path) -> Path:
    return tiny_pool(graph, graph.parent)


def rows_of(graph: Path) -> dict[str, list[tuple[str, ...]]]:
    return {
        split: [tuple(line.split("\t")) for line in (graph / f"{split}.tsv").read_text().splitlines()]
        for split in ("train", "valid", "test")
    }


def test_training_gives_the_same_weights_and_figures(graph: Path, trained: imf.Model, tmp_path: Path) -> None:
    command_line.run("train", str(tmp_path / "line"), "--data", str(graph), *FLAGS)
    trained.save(tmp_path / "python")
    line, python = (load_file(tmp_path / way / "model.safetensors") for way in ("line", "python"))
    assert line.keys() == python.keys()
    assert all(np.array_equal(line[name], python[name]) for name in line)
    ours, theirs = (json.loads((tmp_path / way / "config.json").read_text()) for way in ("line", "python"))
    costs = [config["metrics"].pop("cost") for config in (ours, theirs)]
    assert ours == theirs
    assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 10**8 for cost in costs)
    assert "0." in repr(trained) and "structure" in repr(trained)


def test_training_continues_and_learns_from_a_teacher(graph: Path, pool: Path, tmp_path: Path) -> None:
    command_line.run(
        "train", str(tmp_path / "line"), "--data", str(graph), "--from", str(pool / "ce"), "--distil", str(pool / "pool"),
        "--set", "train.max_epochs=1",
    )
    python = imf.train(graph, {"train.max_epochs": 1}, start=pool / "ce", teacher=pool / "pool")
    line = imf.load(tmp_path / "line")
    assert {**python.metrics, "cost": None} == {**line.metrics, "cost": None}
    assert python.config == line.config
    with pytest.raises(CheckpointError, match=r"model\.dim cannot change"):
        imf.train(graph, {"model.dim": 32}, start=pool / "ce")


@pytest.mark.parametrize("name", ["ce", "pool"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_gives_the_same_figures(pool: Path, name: str, split: str) -> None:
    line = json.loads(command_line.run("evaluate", str(pool / name), "--split", split, "--json"))
    assert line.pop("notes") is not None
    assert imf.evaluate(pool / name, split=split).as_dict() == line
    assert imf.evaluate(imf.load(pool / name), imf.read_graph(pool / "graph"), split).as_dict() == line


def test_a_model_in_memory_is_the_one_that_is_loaded(graph: Path, trained: imf.Model, tmp_path: Path) -> None:
    loaded = imf.load(trained.save(tmp_path / "model"))
    assert isinstance(loaded, imf.Model)
    for split in ("valid", "test"):
        assert imf.evaluate(trained, split=split) == imf.evaluate(loaded, split=split)
    assert trained.predictor().tails("e3", "next", k=3) == loaded.predictor().tails("e3", "next", k=3)


def test_answers_are_the_same(pool: Path) -> None:
    for name in ("ce", "pool"):
        line = json.loads(command_line.run("predict", str(pool / name), "--head", "e1", "-r", "next", "--json"))
        python = imf.load(pool / name).predictor().tails("e1", "next", k=5)
        listed = line["answers"] if isinstance(line, dict) else line
        assert [answer.entity for answer in python] == [answer["entity"] for answer in listed]
    assert isinstance(imf.load(pool / "pool"), imf.Ensemble)
    assert imf.Ensemble.load(pool / "pool").weights == imf.load(pool / "pool").weights


def test_the_audit_is_the_same(graph: Path) -> None:
    line = json.loads(command_line.run("audit", str(graph), "--json"))
    python = json.loads(json.dumps(imf.audit(graph).to_json()))
    assert python == line
    assert json.loads(json.dumps(imf.prepare(graph).audit().to_json())) == line


def test_encoded_features_are_the_same(graph: Path, tmp_path: Path) -> None:
    command_line.run("encode", str(graph), "--text", "ngrams", "--out", str(tmp_path / "line"))
    views = imf.encode(graph, text="ngrams", out=tmp_path / "python")
    assert views["text"].modality.mask.sum() == 20
    line, python = (load_file(tmp_path / way / "text.safetensors") for way in ("line", "python"))
    assert all(np.array_equal(line[name], python[name]) for name in ("matrix", "names"))


# --- data in memory -----------------------------------------------------------------------------------------------------


def as_frame(rows: list[tuple[str, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["head", "relation", "tail"]).assign(more=1)


class Polars:
    """Stands for a frame of polars, which is not installed here: what is used of one."""

    def __init__(self, rows: list[tuple[str, ...]]) -> None:
        self.columns = ["tail", "head", "relation"]
        self.rows = pd.DataFrame(rows, columns=["head", "relation", "tail"])

    def __getitem__(self, name: str) -> pd.Series:
        return self.rows[name]


@pytest.mark.parametrize("form", [list, as_frame, Polars])
def test_a_graph_in_memory_is_that_of_the_files(graph: Path, form) -> None:
    rows = rows_of(graph)
    ours = imf.read_graph(form(rows["train"]), valid=form(rows["valid"]), test=form(rows["test"]))
    theirs = imf.read_graph(graph)
    assert ours.fingerprint == theirs.fingerprint
    assert np.array_equal(ours.open_test(), theirs.open_test())
    same = ("splits", "relation_names", "baseline", "problems", "categories", "links")
    reports = imf.audit(form(rows["train"]), valid=form(rows["valid"]), test=form(rows["test"])), imf.audit(graph)
    assert [getattr(reports[0], name) for name in same] == [getattr(reports[1], name) for name in same]


def test_triples_with_features_train_as_a_folder_does(graph: Path, trained: imf.Model) -> None:
    rows, folder = rows_of(graph), imf.prepare(graph)
    names = folder.graph.entities.names
    features = {
        modality.name: {names[row]: modality.matrix[row] for row in np.flatnonzero(modality.mask)}
        for modality in folder.modalities
    }
    data = imf.prepare(rows["train"], valid=rows["valid"], test=rows["test"], features=features)
    assert [modality.name for modality in data.modalities] == [modality.name for modality in folder.modalities]
    model = imf.train(data, SMALL)
    assert {**model.metrics, "cost": None} == {**trained.metrics, "cost": None}
    assert imf.evaluate(model, data, "test") == imf.evaluate(trained, folder, "test")
    made = imf.prepare(folder.graph, features={"sound": (list(names), np.ones((len(names), 2)))})
    assert made.graph is folder.graph
    assert made.audit().coverage[0].present == len(names)


def test_given_features_go_before_those_of_the_folder(graph: Path) -> None:
    data = imf.prepare(graph, features={"sound": (["e0", "nobody"], np.eye(2)), "smell": {"e1": [1.0]}})
    assert {modality.name: int(modality.mask.sum()) for modality in data.modalities} == {"text": 20, "sound": 1, "smell": 1}
    assert next(modality for modality in data.modalities if modality.name == "sound").unknown == 1


def test_settings_of_the_data_reach_it(graph: Path, tmp_path: Path) -> None:
    rows = rows_of(graph)
    assert imf.prepare(rows["train"], {"data.text": "names"}).modalities[0].mask.all()
    split = imf.read_graph(rows["train"], {"data.test_size": "10%"}, valid=rows["valid"])
    assert len(split.open_test()) == 4
    (tmp_path / "train.tsv").write_bytes((graph / "train.tsv").read_bytes())
    model = imf.train(tmp_path, {**SMALL, "train.max_epochs": 1, "data.test_size": 0.1})
    assert imf.evaluate(model, split="test").count == 2 * len(model.graph.open_test()) > 0


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda graph: imf.prepare([("a", "r")]), DataError, "train: row 1 is no triple"),
        (lambda graph: imf.prepare([("a", "r", "b"), ("a", "r", None)]), DataError, "train: row 2: the tail is no name"),
        (lambda graph: imf.prepare([("a", "r", "b\tc")]), DataError, "row 1: the tail is no name"),
        (lambda graph: imf.prepare([("a", "r", float("nan"))]), DataError, "row 1: the tail is no name"),
        (lambda graph: imf.prepare(["abc"]), DataError, "row 1 is no triple"),
        (lambda graph: imf.prepare(pd.DataFrame({"head": ["a"]})), DataError, "no column 'relation'"),
        (lambda graph: imf.prepare(7), DataError, "int is no graph"),
        (lambda graph: imf.prepare(graph, valid=[("a", "r", "b")]), DataError, "belong to triples in memory"),
        (lambda graph: imf.prepare(graph, features={"x": (["e1"], ["one"])}), DataError, "no matrix of numbers"),
        (lambda graph: imf.prepare(graph, features={"x": (["e1"], [1.0])}), DataError, "no matrix: shape"),
        (lambda graph: imf.prepare(graph, {"data.txt": "names"}), ConfigError, r"unknown setting data\.txt"),
        (lambda graph: imf.train(imf.prepare(graph), {"data.text": "names"}), ConfigError, "prepared already"),
        (lambda graph: imf.prepare(imf.read_graph(graph), {"data.test_size": 0.2}), ConfigError, "made already"),
        (imf.load, CheckpointError, "missing"),
    ],
)
def test_what_cannot_be_used_is_named(graph: Path, call, kind, message: str) -> None:
    with pytest.raises(kind, match=message) as refused:
        call(graph)
    assert isinstance(refused.value, imf.ImfError)
    assert refused.value.remedy


def test_whole_numbers_are_names(graph: Path) -> None:
    made = imf.read_graph([(1, "r", np.int64(2)), (2, "r", 1)], valid=[(1, "r", 1)])
    assert made.entities.names == ("1", "2")


def test_the_audit_shows_itself_with_its_names_escaped() -> None:
    hostile = "<script>alert(1)</script>\x1b[31m"
    report = imf.audit([(hostile, hostile, "b"), ("b", "next", hostile)], valid=[(hostile, hostile, "b")])
    shown = report._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown and "\x1b" not in shown
    assert "Problems" in shown and "training" in shown


def test_a_written_graph_is_read_as_it_was(graph: Path, tmp_path: Path) -> None:
    from imf_core.interface.data import write_folder

    data = imf.prepare(graph)
    again = imf.prepare(write_folder(data, tmp_path / "out"))
    assert again.fingerprint == data.fingerprint
    assert np.array_equal(again.graph.open_test(), data.graph.open_test())
    for ours, theirs in zip(again.modalities, data.modalities, strict=True):
        assert (ours.name, ours.mask.tolist()) == (theirs.name, theirs.mask.tolist())
        assert np.array_equal(ours.matrix, theirs.matrix)
    assert read_raw(tmp_path / "out").entities.names == data.graph.entities.names
