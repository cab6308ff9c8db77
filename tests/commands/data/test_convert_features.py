"""`imf convert-features`: matrices and names come through, nothing in the file is ever run."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.config import DataConfig
from imf_core.data.features.feature_files import read_features
from imf_core.errors import DataError, ImfError
from imf_core.prepare.link_data import prepare

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
NAMES = ["e0", "e1", "New York", "café"]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def names(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return tmp_path / "names.txt"


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert-features", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: object) -> ImfError:
    result = CliRunner().invoke(app, ["convert-features", *map(str, arguments)])
    assert isinstance(result.exception, ImfError), (result.exception, result.output)
    return result.exception


def write(path: Path, content: object) -> Path:
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".npz":
        assert isinstance(content, dict)
        np.savez(path, **content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.npy", MATRIX), ("x.npy", MATRIX.astype(np.float64)), ("x.npy", MATRIX.astype(np.int16)),
        ("x.npz", {"features": MATRIX}), ("x.pt", torch.from_numpy(MATRIX)), ("x.pth", torch.from_numpy(MATRIX).bfloat16()),
        ("x.pth", {"features": torch.from_numpy(MATRIX)}), ("x.bin", torch.from_numpy(MATRIX)),
        ("x.pkl", torch.from_numpy(MATRIX)), ("x.pth", {"features": torch.from_numpy(MATRIX), "epoch": 3}),
    ],
)
def test_a_matrix_with_a_list_of_names(tmp_path: Path, names: Path, file: str, content: object) -> None:
    out = tmp_path / "graph" / "image.safetensors"
    said = convert(write(tmp_path / file, content), out, "--names", names)
    assert said.startswith("4 rows, 3 wide")
    found = read_features(out)
    assert found.names == tuple(NAMES)
    assert found.matrix.dtype == np.float32
    assert np.array_equal(found.matrix, MATRIX)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("x.pth", {name: torch.from_numpy(row) for name, row in zip(NAMES, MATRIX, strict=True)}),
        ("x.pth", {name: torch.from_numpy(row)[None] for name, row in zip(NAMES, MATRIX, strict=True)}),
        ("x.pth", {"names": NAMES, "matrix": torch.from_numpy(MATRIX)}),
        ("x.npz", {"names": np.array(NAMES), "matrix": MATRIX}),
        ("x.npz", dict(zip(NAMES, MATRIX, strict=True))),
    ],
)
def test_names_in_the_file(tmp_path: Path, file: str, content: object) -> None:
    convert(write(tmp_path / file, content), tmp_path / "out.safetensors")
    found = read_features(tmp_path / "out.safetensors")
    assert dict(zip(found.names, found.matrix.tolist(), strict=True)) == dict(zip(NAMES, MATRIX.tolist(), strict=True))


def test_one_of_several_by_its_key(tmp_path: Path, names: Path) -> None:
    file = write(tmp_path / "x.npz", {"a": MATRIX, "b": MATRIX + 1})
    assert "--key" in fails(file, tmp_path / "out.safetensors", "--names", names).remedy
    convert(file, tmp_path / "out.safetensors", "--names", names, "--key", "b")
    assert np.array_equal(read_features(tmp_path / "out.safetensors").matrix, MATRIX + 1)
    assert "no entry 'c'; it has a, b" in str(fails(file, tmp_path / "out.safetensors", "--names", names, "--key", "c"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.npy", MATRIX[:3], "3 rows but 4 names"),
        ("x.npy", MATRIX[0], "not a matrix of numbers"),
        ("x.npy", np.array([["a"] * 3] * 4), "not a matrix of numbers"),
        ("x.pth", [1.0, 2.0], "it holds list, no matrix"),
        ("x.pth", {"epoch": 3}, "not clear what the features are"),
        ("x.pth", {"a": torch.ones(2), "b": torch.ones(3)}, "not clear what the features are"),
    ],
)
def test_what_cannot_be_converted(tmp_path: Path, names: Path, file: str, content: object, message: str) -> None:
    error = fails(write(tmp_path / file, content), tmp_path / "out.safetensors", "--names", names)
    assert message in str(error)
    assert not (tmp_path / "out.safetensors").exists()


def test_places_and_formats(tmp_path: Path, names: Path) -> None:
    file = write(tmp_path / "x.npy", MATRIX)
    assert "--names" in fails(file, tmp_path / "out.safetensors").remedy
    assert "OUT.safetensors" in fails(file, tmp_path / "out.pkl", "--names", names).remedy
    assert "format is not known" in str(fails(names, tmp_path / "out.safetensors", "--names", names))
    for absent in ("x.pth", "y.npy"):
        assert "no such file" in str(fails(tmp_path / absent, tmp_path / "out.safetensors", "--names", names)).lower()


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_canary_never_appears(tmp_path: Path, names: Path, suffix: str, protocol: int) -> None:
    canary, file = tmp_path / "canary", tmp_path / f"img_features{suffix}"
    file.write_bytes(pickle.dumps(Bomb(canary), protocol=protocol))
    fails(file, tmp_path / "out.safetensors", "--names", names)
    torch_file = tmp_path / "saved.pth"
    torch.save({"features": Bomb(canary)}, torch_file)
    fails(torch_file, tmp_path / "out.safetensors", "--names", names)
    np.save(tmp_path / "objects.npy", np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    fails(tmp_path / "objects.npy", tmp_path / "out.safetensors", "--names", names)
    assert not canary.exists()
    pickle.loads(file.read_bytes())  # noqa: S301  # the bomb is live: this test could fail
    assert canary.exists()


def test_a_plain_pickle_is_refused_with_a_way_out(tmp_path: Path, names: Path) -> None:
    """Even one of numbers alone: telling it from a bomb would take reading it."""
    for content in (MATRIX, MATRIX.tolist(), dict(zip(NAMES, MATRIX, strict=True))):
        (tmp_path / "img_features.pkl").write_bytes(pickle.dumps(content))
        error = fails(tmp_path / "img_features.pkl", tmp_path / "out.safetensors", "--names", names)
        assert "numpy.save" in error.remedy


def test_training_refuses_pickles_and_names_the_command(tmp_path: Path) -> None:
    """MM-6 from the graph folder: the pickle is not opened, the harmless array is used."""
    graph = tmp_path / "graph"
    (graph / "modalities").mkdir(parents=True)
    (graph / "train.tsv").write_text("e0\tr\te1\ne1\tr\te2\n")
    (graph / "valid.tsv").write_text("e0\tr\te2\n")
    canary = tmp_path / "canary"
    file = graph / "modalities" / "img_features.pkl"
    for content in (pickle.dumps(Bomb(canary)), pickle.dumps(MATRIX)):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"img_features.pkl: pickled features are not opened") as caught:
            prepare(DataConfig(path=str(graph)))
        assert f"imf convert-features {file} {file.with_suffix('.safetensors')}" in caught.value.remedy
    assert not canary.exists()
    file.unlink()
    np.save(graph / "modalities" / "sound.npy", MATRIX)
    (graph / "modalities" / "sound.names.txt").write_text("e0\ne1\ne2\ne7\n")
    (sound,) = prepare(DataConfig(path=str(graph))).modalities
    assert (sound.name, sound.unknown, sound.mask.all()) == ("sound", 1, True)
