"""Files and folders that appear complete, with the permissions that the umask gives, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from imf_core.data.features.feature_files import Features, save_features
from imf_core.data.features.modality import Modality
from imf_core.files.atomic import atomic_file, atomic_folder, atomic_write_text
from imf_core.prepare.shared_form import save_shared


class Interrupted(Exception):
    """Stands for whatever ends a save in the middle."""


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_have_the_usual_mode(tmp_path: Path, umask: int) -> None:
    usual = 0o666 & ~umask
    assert mode(atomic_write_text(tmp_path / "a.json", "{}")) == usual
    with atomic_file(tmp_path / "b.safetensors") as scratch:
        save_file({"x": np.ones(2)}, scratch)  # makes a file that its owner alone may read
    save_features(tmp_path / "c.safetensors", Features(("a",), np.ones((1, 2), np.float32)))
    save_shared(tmp_path / "shared", {"train": np.ones((1, 3))}, [Modality("x", np.ones((1, 2)), np.ones(1, bool))], {})
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 5
    assert {mode(path) for path in written} == {usual}


def test_folders_and_all_in_them_have_the_usual_mode(tmp_path: Path, umask: int) -> None:
    outside = tmp_path / "outside"
    outside.touch(0o600)
    with atomic_folder(tmp_path / "best") as scratch:
        (scratch / "members" / "0").mkdir(parents=True)
        save_file({"x": np.ones(2)}, scratch / "members" / "0" / "model.safetensors")
        (scratch / "members" / "0").chmod(0o500)
        (scratch / "run.sh").touch()
        (scratch / "run.sh").chmod(0o700)
        (scratch / "link").symlink_to(outside)
    files = [tmp_path / "best" / "members" / "0" / "model.safetensors"]
    folders = [tmp_path / "best", tmp_path / "best" / "members", tmp_path / "best" / "members" / "0"]
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert {mode(path) for path in folders} == {0o777 & ~umask}
    assert mode(tmp_path / "best" / "run.sh") == 0o700 | 0o666 & ~umask
    assert mode(outside) == 0o600 & ~umask


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    path = atomic_write_text(tmp_path / "deep" / "a.txt", "old")

    def interrupted() -> None:
        with atomic_file(path) as scratch:
            scratch.write_text("half")
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted()
    assert path.read_text() == "old"
    with atomic_file(path) as scratch:
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_filled_folder_is_kept_where_it_may_not_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"), atomic_folder(target, replace=False) as scratch:
        (scratch / "theirs").touch()
    assert [path.name for path in target.iterdir()] == ["mine"]
    (target / "mine").rmdir()
    with atomic_folder(target, replace=False) as scratch:
        (scratch / "theirs").touch()
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_deleted_by_the_only_writer(tmp_path: Path) -> None:
    killed = atomic_folder(tmp_path / "best")
    left = killed.__enter__()  # and never left again
    (left / "half").touch()
    other = tmp_path / ".better.0123.part"
    other.mkdir()
    with atomic_folder(tmp_path / "best") as scratch:
        (scratch / "whole").touch()
    assert left.exists()  # another process may be writing it
    with atomic_folder(tmp_path / "best", alone=True) as scratch:
        (scratch / "whole").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "best"]
