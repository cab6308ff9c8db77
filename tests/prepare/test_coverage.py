"""Coverage by looking: pictures, texts and feature files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imf_core.data.audit.report import Coverage
from imf_core.data.features.modality import Modality
from imf_core.prepare.coverage import coverage
from imf_core.prepare.entity_files import EntityFiles

ENTITIES = ("e0", "e1", "e2", "e3", "e4")


def pictures(folder: Path, *names: str) -> None:
    (folder / "images").mkdir()
    for name in names:
        (folder / "images" / name).write_bytes(f"no picture {name}".encode())


def features(path: Path, *names: str) -> None:
    path.parent.mkdir(exist_ok=True)
    Modality(path.stem, np.ones((len(names), 2), np.float32), np.ones(len(names), bool)).save(path, names)


def test_pictures_and_texts(tmp_path: Path) -> None:
    pictures(tmp_path, "e0.png", "e2.jpg", "e4.png", "e9.png", "notes.md")
    (tmp_path / "descriptions.tsv").write_text("e0\tone\ne1\ttwo\ne2\tthree\ne3\t\n")
    found = coverage(EntityFiles(tmp_path), ENTITIES)
    assert found == (Coverage("image", 3, 5, unknown=1), Coverage("text", 3, 5, empty=1))


def test_a_folder_without_modalities(tmp_path: Path) -> None:
    assert coverage(EntityFiles(tmp_path), ENTITIES) == ()


def test_several_pictures_of_an_entity(tmp_path: Path) -> None:
    pictures(tmp_path, "e0.png", "e0.jpg", "e1.png")
    assert coverage(EntityFiles(tmp_path), ENTITIES) == (Coverage("image", 2, 5, several=1),)


def test_feature_files_stand_in_place_of_what_they_are_named_after(tmp_path: Path) -> None:
    (tmp_path / "descriptions.tsv").write_text("e0\tone\n")
    features(tmp_path / "modalities" / "text.safetensors", "e1", "e2", "zz")
    features(tmp_path / "modalities" / "sound.safetensors", "e4")
    (tmp_path / "modalities" / ".hidden").write_text("")
    assert coverage(EntityFiles(tmp_path), ENTITIES) == (Coverage("sound", 1, 5), Coverage("text", 2, 5, unknown=1))


def test_a_pickled_feature_file_is_a_problem_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "modalities").mkdir()
    (tmp_path / "modalities" / "visual.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (entry,) = coverage(EntityFiles(tmp_path), ENTITIES)
    assert (entry.name, entry.present) == ("visual", 0)
    assert "pickle" in entry.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("e0\tone\ne1\n", "line 2: no tab between entity and text (found 'e1')"),
        ("e0\tone\ne0\ttwo\n", "1 entities are named twice (first: 'e0')"),
        ("zz\tone\nzz\ttwo\ne0\tthree\n", ""),  # unknown names are ignored, however often they come
    ],
)
def test_what_is_wrong_with_texts(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "descriptions.tsv").write_text(text)
    (entry,) = coverage(EntityFiles(tmp_path), ENTITIES)
    assert entry.present == 1
    assert entry.problem.endswith(problem) if problem else entry.problem == ""


def test_pictures_and_rows_that_several_entities_share(tmp_path: Path) -> None:
    pictures(tmp_path, "e0.png", "e0.jpg", "e1.png", "e2.png", "e3.png", "e4.png")
    for name, content in (("e0.png", b"x"), ("e0.jpg", b"x"), ("e1.png", b"flag"), ("e2.png", b"gulf"), ("e3.png", b"flag")):
        (tmp_path / "images" / name).write_bytes(content)
    (entry,) = coverage(EntityFiles(tmp_path), ENTITIES)
    assert entry.alike == (("e1", "e3"),)  # e0 shares its pictures with itself alone
    matrix = np.arange(50, dtype=np.float32).reshape(5, 10)
    matrix[4], matrix[2, :9] = matrix[1], matrix[1, :9]
    Modality("image", matrix, np.ones(5, bool)).save(tmp_path / "modalities" / "image.safetensors", ENTITIES)
    (entry,) = coverage(EntityFiles(tmp_path), ENTITIES)
    assert entry.alike == (("e1", "e4"),)
