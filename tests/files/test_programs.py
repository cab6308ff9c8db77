"""Printed commands: a program of this Python environment is found whatever PATH says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imf_core.files.programs import command_line, installed, program


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of an environment that is not activated: `imf` and `python`; PATH has another `python`."""
    for folder, names in {"venv/bin": ("imf", "python"), "usr/bin": ("python", "git")}.items():
        for name in names:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"#!/bin/sh\necho {folder} $1\n")
            file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "usr/bin"))
    return tmp_path / "venv/bin"


def test_a_program_of_this_environment_is_called_by_its_path(bin_dir: Path) -> None:
    assert program("imf") == f"{bin_dir}/imf"
    assert program("python") == f"{bin_dir}/python"  # not the one on PATH, which lacks the packages
    assert (program("git"), program("nowhere")) == ("git", "nowhere")
    assert [installed(name) for name in ("imf", "git", "nowhere")] == [True, True, False]


def test_its_name_does_where_the_environment_is_activated(bin_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bin_dir))
    assert (program("imf"), program("python")) == ("imf", "python")


def test_a_line_runs_as_it_is_printed(bin_dir: Path) -> None:
    line = command_line(["imf", "a name's blank"])
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "venv/bin a name's blank\n"
