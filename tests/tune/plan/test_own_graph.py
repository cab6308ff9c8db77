"""A user's folder with nothing but `train.tsv`, `images/` and `descriptions.tsv`, and the four commands of the README."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imf_core.data.bundled.unicode import bundled_path

BASE, MARK = "canonical_base", "canonical_mark"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mygraph/`: letters, the letters and marks they are made of, their glyphs and their names."""
    folder = tmp_path_factory.mktemp("home")
    graph, source = folder / "mygraph", bundled_path("unicode")
    (graph / "images").mkdir(parents=True)
    lines = [line for split in ("train", "valid", "test") for line in (source / f"{split}.tsv").read_text().splitlines()]
    wanted = [line for line in lines if line.startswith("LATIN SMALL LETTER") and line.split("\t")[1] in (BASE, MARK, "script")]
    names = {name for line in wanted for name in (line.split("\t")[0], line.split("\t")[2])}
    (graph / "train.tsv").write_text("".join(f"{line}\n" for line in wanted))
    texts = dict(line.split("\t", 1) for line in (source / "descriptions.tsv").read_text().splitlines())
    (graph / "descriptions.tsv").write_text("".join(f"{name}\t{texts[name]}\n" for name in sorted(names)))
    for name in names:
        picture = source / "images" / f"{name}.png"
        if picture.exists():
            shutil.copy(picture, graph / "images")
    return folder


def run(home: Path, *command: str) -> str:
    environment = {**os.environ, "HOME": str(home), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.cluster
def test_four_commands_from_a_folder_to_an_answer(home: Path, repository: Path) -> None:
    imf = str(Path(sys.executable).parent / "imf")
    audited = run(home, imf, "audit", "mygraph")
    assert "no validation" in audited and "no test" in audited
    encoded = run(home, imf, "encode", "mygraph")
    assert "text" in encoded and "image" in encoded
    written = sorted(path.name for path in (home / "mygraph" / "modalities").iterdir())
    assert written == ["image.safetensors", "text.safetensors"]
    searched = run(
        home, sys.executable, str(repository / "tune" / "search.py"), "--data", "mygraph", "--trials", "2", "--seeds", "1",
        "--study", "mine", "--set", "train.max_epochs=3", "--set", "model.dim=16", "--set", "model.relation_dim=8",
    )
    assert "set aside from train" in searched  # the validation split that the folder lacks
    assert "no test split" in searched
    summary = json.loads((home / "results" / "mine" / "summary.json").read_text())
    assert summary["best_validation_mrr"] > 0
    asked = run(home, imf, "predict", "results/mine/best", "--head", "LATIN SMALL LETTER E WITH ACUTE", "-r", BASE, "--json")
    answers = json.loads(asked)
    assert len(answers) == 5
    assert all("entity" in answer for answer in answers)
