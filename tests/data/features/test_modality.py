"""Modalities: aligned by name, missing rows masked, odd names survive, pickles and non-finite numbers refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from imf_core.data.features.modality import Modality, load_modality
from imf_core.errors import DataError

ENTITIES = ("e0", "e1", "e2", "e3", "e4")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_rows_find_their_entity_whatever_their_order(order: tuple[int, ...]) -> None:
    names, matrix = ("e0", "e2", "e4"), np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    made = Modality.aligned("image", matrix[list(order)], [names[i] for i in order], ENTITIES)
    assert made.matrix.tolist() == [[1, 2], [0, 0], [3, 4], [0, 0], [5, 6]]
    assert made.mask.tolist() == [True, False, True, False, True]
    assert (made.unknown, made.width, made.coverage) == (0, 2, 0.6)


def test_unknown_names_are_counted_and_shown() -> None:
    made = Modality.aligned("image", np.ones((4, 3)), ["e0", "e9", "e2", "nobody"], ENTITIES)
    assert made.unknown == 2
    assert made.describe() == "image: 2 of 5 entities (40.0 %), 3 wide, 2 rows of unknown names ignored"
    assert made.matrix.dtype == np.float32


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["e0", "e1"], "3 rows but 2 names"),
        (["e0", "e1", "e0"], "two rows for 'e0'"),
        (["x", "y", "z"], "none of the 5 entities has it"),
    ],
)
def test_names_that_do_not_fit(names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Modality.aligned("image", np.ones((3, 2)), names, ENTITIES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_numbers_are_refused_with_their_row(bad: float) -> None:
    matrix = np.ones((5, 2), np.float32)
    matrix[3, 1] = bad
    with pytest.raises(DataError, match=r"row 3 holds a non-finite number \(1 such rows\)"):
        Modality.aligned("text", matrix, ENTITIES, ENTITIES)


def test_a_non_finite_row_of_an_unknown_name_does_not_matter() -> None:
    made = Modality.aligned("text", np.array([[1.0], [np.nan]]), ["e1", "nobody"], ENTITIES)
    assert made.matrix.ravel().tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["structure", "fused", "a.b", "a b", "", "../up"])
def test_names_that_would_hide_a_branch_or_break_a_key(name: str) -> None:
    with pytest.raises(DataError, match="cannot name a modality"):
        Modality(name, np.ones((5, 1), np.float32), np.ones(5, bool))


def test_matrix_and_mask_have_to_agree() -> None:
    with pytest.raises(DataError, match="does not fit 4 mask entries"):
        Modality("text", np.ones((5, 1), np.float32), np.ones(4, bool))


def test_standardised_by_hand() -> None:
    matrix = np.array([[1, 10], [9, 9], [3, 14]], np.float32)
    made = Modality("text", matrix, np.array([True, False, True]))
    # centre (2, 12); deviations (-1, -2), (1, 2); common root mean square sqrt((1 + 4 + 1 + 4) / 4) = sqrt(2.5)
    expected = np.array([[-1, -2], [0, 0], [1, 2]]) / np.sqrt(2.5)
    assert np.allclose(made.standardised(), expected, atol=1e-6)
    assert made.standardised().dtype == np.float32


def test_standardised_of_equal_rows_is_zero() -> None:
    made = Modality("text", np.full((3, 2), 7.0, np.float32), np.ones(3, bool))
    assert made.standardised().tolist() == [[0, 0]] * 3


# --- files --------------------------------------------------------------------------------------------------------------

UNDECODABLE = b"\xff\xfe".decode("utf-8", "surrogateescape")
ODD = ("plain", "New York", "A:B|C", "\u00e9", "e\u0301", "\u3042", UNDECODABLE, "tab's \"end\"")


def test_safetensors_round_trip_with_odd_names(tmp_path: Path) -> None:
    mask = np.array([True, True, False, True, True, True, True, True])
    matrix = np.where(mask[:, None], np.arange(16, dtype=np.float32).reshape(8, 2), 0)
    made = Modality("image", matrix, mask)
    made.save(tmp_path / "image.safetensors", ODD)
    again = load_modality(tmp_path / "image.safetensors", ODD)
    assert again.name == "image"
    assert np.array_equal(again.matrix, matrix)
    assert np.array_equal(again.mask, mask)
    assert again.unknown == 0
    # In another graph's order the rows follow their names.
    turned = load_modality(tmp_path / "image.safetensors", ODD[::-1])
    assert np.array_equal(turned.matrix, matrix[::-1])


def test_npy_beside_its_names(tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", np.array([[1, 2], [3, 4]], np.int16))
    (tmp_path / "audio.names.txt").write_bytes(b"\xef\xbb\xbfe4\r\ne1\r\n")
    made = load_modality(tmp_path / "audio.npy", ENTITIES)
    assert made.name == "audio"
    assert made.matrix.tolist() == [[0, 0], [3, 4], [0, 0], [0, 0], [1, 2]]


def test_npy_without_names_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "audio.npy", np.ones((5, 2)))
    with pytest.raises(DataError, match=r"audio.names.txt is missing: features are aligned by name"):
        load_modality(tmp_path / "audio.npy", ENTITIES)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("suffix", [".pkl", ".pickle", ".pt", ".pth", ".npy", ".safetensors"])
def test_no_pickle_is_ever_opened(tmp_path: Path, suffix: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / f"image{suffix}"
    (tmp_path / "image.names.txt").write_text("e0\n")
    if suffix == ".npy":
        np.save(path, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(DataError) as caught:
        load_modality(path, ENTITIES)
    assert str(path) in str(caught.value)
    assert "What to do:" in str(caught.value)
    assert not canary.exists()


def test_a_pickle_named_npy_is_refused_too(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "image.npy"
    (tmp_path / "image.names.txt").write_text("e0\n")
    path.write_bytes(pickle.dumps(Bomb(canary)))
    with pytest.raises(DataError, match="no plain NumPy file"):
        load_modality(path, ENTITIES)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones(5), "not a matrix of numbers"),
        (np.ones((1, 2, 3)), "not a matrix of numbers"),
        (np.array([["a"]]), "not a matrix of numbers"),
        (np.array([[1j]]), "not a matrix of numbers"),
    ],
)
def test_arrays_that_are_no_matrix(tmp_path: Path, content: np.ndarray, message: str) -> None:
    np.save(tmp_path / "image.npy", content)
    (tmp_path / "image.names.txt").write_text("e0\n")
    with pytest.raises(DataError, match=message):
        load_modality(tmp_path / "image.npy", ENTITIES)


@pytest.mark.parametrize("damage", ["empty", "cut", "archive"])
def test_damaged_npy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "image.npy"
    (tmp_path / "image.names.txt").write_text("e0\n")
    if damage == "archive":
        with path.open("wb") as handle:
            np.savez(handle, matrix=np.ones((1, 2)))
    else:
        np.save(path, np.ones((1, 200)))
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"image.npy: (no plain NumPy file|an archive)"):
        load_modality(path, ENTITIES)


def test_damaged_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "image.safetensors"
    Modality("image", np.ones((5, 4), np.float32), np.ones(5, bool)).save(path, ENTITIES)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"image.safetensors: no safetensors file"):
        load_modality(path, ENTITIES)


def test_safetensors_without_names(tmp_path: Path) -> None:
    save_file({"matrix": np.ones((5, 2), np.float32)}, tmp_path / "image.safetensors")
    with pytest.raises(DataError, match="no tensor 'names'"):
        load_modality(tmp_path / "image.safetensors", ENTITIES)
