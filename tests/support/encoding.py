"""A small graph with texts and pictures, and the command `imf encode` on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.errors import ImfError

ENTITIES = ("e0", "e1", "e2", "e3", "e4")


def write_graph(folder: Path) -> Path:
    """MM-1: pictures of e0, e2, e4 and the unknown e9; texts of e0 to e3, the last one empty."""
    (folder / "images").mkdir(parents=True)
    (folder / "entities.txt").write_text("".join(f"{name}\n" for name in ENTITIES))
    (folder / "train.tsv").write_text("e0\tr\te1\ne1\tr\te2\ne2\tr\te3\ne3\tr\te4\n")
    (folder / "valid.tsv").write_text("e0\tr\te2\n")
    (folder / "test.tsv").write_text("e0\tr\te3\n")
    (folder / "descriptions.tsv").write_text("e0\tfirst text\ne1\tsecond text\ne2\tthird one\ne3\t\n")
    for name in ("e0", "e2", "e4", "e9"):
        draw(folder / "images" / f"{name}.png", int(name[1]))
    return folder


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)


def run(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout


def fails(*arguments: object) -> ImfError:
    result = CliRunner().invoke(app, ["encode", *map(str, arguments)])
    assert isinstance(result.exception, ImfError), (result.exception, result.output)
    return result.exception
