"""A user's folder with nothing but `train.tsv`, `images/` and `descriptions.tsv`, and the four commands of the README."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
from small_search import ready_database, search_here

from imf_core.data.bundled.unicode import bundled_path

BASE, MARK = "canonical_base", "canonical_mark"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mygraph/`: vowels, the letters and marks they are made of, their glyphs and their names."""
    folder = tmp_path_factory.mktemp("home")
    graph, source = folder / "mygraph", bundled_path("unicode")
    (graph / "images").mkdir(parents=True)
    lines = [line for split in ("train", "valid", "test") for line in (source / f"{split}.tsv").read_text().splitlines()]
    vowels = tuple(f"LATIN SMALL LETTER {vowel}" for vowel in "AEIOU")
    wanted = [line for line in lines if line.startswith(vowels) and line.split("\t")[1] in (BASE, MARK, "script")]
    names = {name for line in wanted for name in (line.split("\t")[0], line.split("\t")[2])}
    (graph / "train.tsv").write_text("".join(f"{line}\n" for line in wanted))
    texts = dict(line.split("\t", 1) for line in (source / "descriptions.tsv").read_text().splitlines())
    (graph / "descriptions.tsv").write_text("".join(f"{name}\t{texts[name]}\n" for name in sorted(names)))
    for name in names:
        picture = source / "images" / f"{name}.png"
        if picture.exists():
            shutil.copy(picture, graph / "images")
    return folder


@pytest.fixture(scope="module")
def searched(home: Path) -> tuple[Path, str]:
    """The folder of the study and what the search printed. The space offers a modality that is not there."""
    ready_database(home)
    written = run(home, "encode", "mygraph")
    assert "text" in written and "image" in written
    (home / "space.yaml").write_text(
        'model.modalities: {choices: [["text"], ["sound"]]}\ntrain.lr: {low: 0.001, high: 0.01}\n'
    )
    small = ("train.max_epochs=3", "model.dim=16", "model.relation_dim=8")
    arguments = ("--trials", "5", "--seeds", "1", "--study", "mine", "--space", "space.yaml", "--max-failures", "0")
    arguments += ("--test-size", "10%")
    done = search_here(home, "--data", "mygraph", *arguments, settings=small)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "results" / "mine", done.stdout


def run(home: Path, *arguments: str) -> str:
    with contextlib.chdir(home):
        return command_line.run(*arguments)


@pytest.mark.cluster
def test_four_commands_from_a_folder_to_an_answer(home: Path, searched: tuple[Path, str]) -> None:
    command = [str(Path(sys.executable).parent / "imf"), "audit", "mygraph"]  # as it is installed
    audited = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=280, check=True).stdout
    assert "no validation" in audited and "no test" in audited
    written = sorted(path.name for path in (home / "mygraph" / "modalities").iterdir())
    assert written == ["image.safetensors", "text.safetensors"]
    study, printed = searched
    assert "set aside from train" in printed  # the validation split that the folder lacks
    assert "triples set aside from train as test" in printed  # on request
    assert "validation structure alone: " in printed and "(without text:" in printed  # the winner has text alone, which names
    assert [event["event"] for event in map(json.loads, (study / "journal.jsonl").read_text().splitlines())].count("test") == 1
    summary = json.loads((study / "summary.json").read_text())
    tested = json.loads(run(home, "evaluate", "results/mine/best", "--split", "test", "--json"))
    assert tested["mrr"] == pytest.approx(summary["test"]["mrr"]["mean"], abs=1e-6)
    assert summary["best_validation_mrr"] > 0
    asked = run(home, "predict", "results/mine/best", "--head", "LATIN SMALL LETTER E WITH ACUTE", "-r", BASE, "--json")
    answers = json.loads(asked)
    assert len(answers) == 5
    assert all("entity" in answer for answer in answers)


@pytest.mark.cluster
def test_failed_trials_are_told_and_the_others_go_on(searched: tuple[Path, str]) -> None:
    """A modality that is not there fails its trials alone."""
    study, printed = searched
    trials = json.loads((study / "trials.json").read_text())
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert len(trials) == 5
    assert 1 <= len(failed) <= 4
    for trial in failed:
        assert "modality 'sound' is not there; found: image, text" in trial["reason"]
        assert trial["best_mrr"] is None
    assert "modality 'sound' is not there" in printed
