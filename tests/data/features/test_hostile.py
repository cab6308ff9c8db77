"""Features and arrays of odd kinds, or that announce what they do not hold: converted, or refused with a remedy."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails, run
from safetensors.torch import save_file

from imf_core.data.features.feature_files import read_features
from imf_core.errors import DataError
from imf_core.recommend.data.pair_files import read_pairs

MATRIX = torch.tensor([[1.0, -2.0], [0.5, 0.0], [4.0, 8.0]])


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """A `.npy` file of so many bytes as its header has."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def names_beside(folder: Path, count: int = 3) -> str:
    file = folder / "names.txt"
    file.write_text("".join(f"e{number}\n" for number in range(count)))
    return str(file)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int64"])
def test_numbers_of_every_width_are_read(tmp_path: Path, dtype: str) -> None:
    matrix = MATRIX.abs().to(getattr(torch, dtype))
    names = torch.frombuffer(bytearray(b"a\nb\nc"), dtype=torch.uint8)
    save_file({"matrix": matrix, "names": names}, tmp_path / "image.safetensors")
    features = read_features(tmp_path / "image.safetensors")
    assert features.names == ("a", "b", "c")
    assert np.array_equal(features.matrix.astype(np.float32), matrix.float().numpy())


@pytest.mark.parametrize(
    "made",
    [
        lambda: MATRIX.to(torch.bfloat16), lambda: MATRIX.to(torch.float8_e4m3fn), MATRIX.to_sparse, MATRIX.to_sparse_csr,
        lambda: torch.quantize_per_tensor(MATRIX, 0.5, 0, torch.qint8), lambda: MATRIX.T.contiguous().T,
        lambda: torch.nn.Parameter(MATRIX), lambda: {"features": MATRIX.half(), "names": ["e0", "e1", "e2"]},
    ],
)
def test_tensors_of_every_kind_are_converted(tmp_path: Path, made: Callable[[], object]) -> None:
    torch.save(made(), tmp_path / "image.pt")
    out = str(tmp_path / "image.safetensors")
    run("convert-features", str(tmp_path / "image.pt"), out, "--names", names_beside(tmp_path))
    assert np.array_equal(read_features(Path(out)).matrix, MATRIX.numpy())


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: MATRIX.to("meta"), "without data"), (lambda: torch.tensor(3.0), "not a matrix"),
        (lambda: torch.empty(3, 0), "not a matrix"), (lambda: MATRIX.to(torch.complex64), "not a matrix"),
        (lambda: torch.sparse_coo_tensor(torch.tensor([[0], [0]]), torch.ones(1), (2**40, 3)), "most of which are not stored"),
        (lambda: torch.zeros(1).expand(2**33, 4), "most of which are not stored"),
        (lambda: torch.nested.nested_tensor([MATRIX, MATRIX]), r"torch's restricted reader refuses it|a nested tensor"),
    ],
)
def test_tensors_that_hold_no_matrix_are_refused(tmp_path: Path, made: Callable[[], object], told: str) -> None:
    torch.save(made(), tmp_path / "image.pt")
    out = str(tmp_path / "image.safetensors")
    error = fails("convert-features", str(tmp_path / "image.pt"), out, "--names", names_beside(tmp_path))
    assert isinstance(error, DataError)
    with pytest.raises(DataError, match=rf"image\.pt: .*({told})"):
        raise error


SIZES = ["(1048576, 6291456)", "(99999999999999999999, 2)", "(-1, 2)", "(3,)", "()", "(3, 0)", "((3, 2),)", "3", "{}" * 3]


@pytest.mark.parametrize("content", [
    *(header(shape) for shape in SIZES), header("(3, 2)", "'|O'"), header("(3, 2)", "[('a', '<f4')]"),
    header("(3, 2)", "'" * 3), b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00\x10\x00" + b"(" * 16,
    b"", b"PK\x03\x04", packed(a=header("(9, 9)")),
])
def test_arrays_that_are_none_or_announce_more_than_they_hold(tmp_path: Path, content: bytes) -> None:
    names_beside(tmp_path)
    for name in ("image.npy", "image.npz"):
        (tmp_path / name).write_bytes(content)
        (tmp_path / "image.names.txt").write_text("a\nb\nc\n")
        out = str(tmp_path / "o.safetensors")
        error = fails("convert-features", str(tmp_path / name), out, "--names", names_beside(tmp_path))
        assert name in str(error)
        assert error.remedy
        with pytest.raises(DataError, match=name):
            read_pairs(tmp_path / name)
    with pytest.raises(DataError, match=r"image\.npy"):
        read_features(tmp_path / "image.npy")


def saved(*, drop: str = "", **parts: object) -> bytes:
    values = {
        "format": np.array(b"csr"), "indptr": np.array([0, 1, 2]), "indices": np.array([0, 1]), "data": np.array([1.0, 2.0]),
        "shape": np.array([2, 3]), **parts,
    }
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in values.items() if name != drop})
    return buffer.getvalue()


def test_the_matrix_of_these_tests_is_one(tmp_path: Path) -> None:
    (tmp_path / "interactions.npz").write_bytes(saved())
    assert len(read_pairs(tmp_path / "interactions.npz").rows) == 2


@pytest.mark.parametrize("content", [
    b"no zip", saved(drop="shape"), saved(drop="format"), saved(format=np.array(b"coo")), saved(format=np.array(["csr"])),
    saved(shape=np.array([2, 1])), saved(shape=np.array([2])), saved(shape=np.array(2)), saved(shape=np.array([2.5, 3])),
    saved(shape=np.array([2, 2**62])), saved(shape=np.array([-1, 3])), saved(indptr=np.array([0, 2])),
    saved(indptr=np.array([0, 9, 2])), saved(indptr=np.array([[0, 1, 2]])), saved(indptr=np.array([0.0, 1, 2])),
    saved(indptr=np.array(["a", "b", "c"])), saved(indices=np.array([0, 7])), saved(indices=np.array([0, -1])),
    saved(indices=np.array([0])), saved(data=np.array([1.0])), saved(data=np.array(["x", "y"])), saved(data=np.array(1.0)),
])
def test_a_csr_matrix_whose_parts_disagree_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "interactions.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"interactions\.npz") as caught:
        read_pairs(tmp_path / "interactions.npz")
    assert caught.value.remedy


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["image.npy", "image.npz", "image.pt", "image.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "loop", "pipe"])
def test_a_folder_a_loop_of_links_or_a_pipe_where_a_file_is_meant(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    {"folder": file.mkdir, "loop": lambda: file.symlink_to(name), "pipe": lambda: os.mkfifo(file)}[kind]()
    (tmp_path / "image.names.txt").write_text("a\n")
    error = fails("convert-features", str(file), str(tmp_path / "o.safetensors"), "--names", names_beside(tmp_path))
    assert name in str(error)
    if name in ("image.npy", "image.safetensors"):
        with pytest.raises(DataError, match=name):
            read_features(file)
    if name in ("image.npy", "image.npz"):
        with pytest.raises(DataError, match=name):
            read_pairs(file)
