"""The folder of a finished study, read; and what is wrong with it, said with the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imf_core.errors import DataError
from imf_core.study_reader import StudyFolder, summary_beside


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    folder = tmp_path / "demo"
    for name in ("trials/t1", "trials/t0", "trials/t2", "final/t1-seed-10", "final/t1-seed-0", "final/t1-without-text"):
        (folder / name / "best").mkdir(parents=True)
    (folder / "trials" / "t2" / "best").rmdir()  # it was not kept
    (folder / "summary.json").write_text(json.dumps({"study": "demo", "checkpoint": "results/demo/best"}))
    (folder / "trials.json").write_text('[{"number": 0}]')
    return StudyFolder(folder)


def test_a_study_is_read(study: StudyFolder) -> None:
    assert study.summary()["study"] == "demo"
    assert study.trials() == [{"number": 0}]
    assert [path.parent.name for path in study.trial_checkpoints()] == ["t0", "t1"]
    assert [path.parent.name for path in study.final_checkpoints()] == ["t1-seed-0", "t1-seed-10"]
    assert [path.parent.name for path in study.final_checkpoints(0)] == ["t1-seed-0"]


@pytest.mark.parametrize("content", [None, '{"study"', "[1]"])
def test_a_summary_that_cannot_be_used_is_named(study: StudyFolder, content: str | None) -> None:
    study.summary_file.unlink()
    if content is not None:
        study.summary_file.write_text(content)
    with pytest.raises(DataError, match=r"summary\.json: not the summary of a study") as caught:
        study.summary()
    assert caught.value.path == str(study.summary_file)
    assert "finished study" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "cannot read"), ("{", "cannot read"), ("{}", "not a list"), ("[1]", "not a list")]
)
def test_trials_that_cannot_be_used_are_named(study: StudyFolder, content: str | None, problem: str) -> None:
    study.trials_file.unlink()
    if content is not None:
        study.trials_file.write_text(content)
    with pytest.raises(DataError, match=problem) as caught:
        study.trials()
    assert caught.value.path == str(study.trials_file)
    assert caught.value.remedy


def test_a_checkpoint_finds_the_study_that_it_is_the_best_of(study: StudyFolder, tmp_path: Path) -> None:
    assert summary_beside(study.path / "best")["study"] == "demo"
    assert summary_beside(study.path / "other") == {}
    assert summary_beside(tmp_path / "nowhere" / "best") == {}
    study.summary_file.write_text("[1]")
    assert summary_beside(study.path / "best") == {}
    study.summary_file.write_text('{"study"')
    with pytest.raises(DataError, match=r"summary\.json: cannot be read"):
        summary_beside(study.path / "best")
