"""What a trial has reported reaches the driver once, also across the death of either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imf_core.config import Config
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.prepare.link_data import LinkData, save_prepared
from imf_core.runtime import Shard
from imf_core.train.progress import EpochReport
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.journal import Journal
from tune.study.searcher import StudySearch
from tune.trial.out_of_memory import reduced_settings
from tune.trial.reporter import Reporter, has_ended
from tune.trial.worker import Job, run_job, written_state


def epoch(number: int) -> EpochReport[RankingMetrics]:
    metrics = RankingMetrics.of(np.array([number]))
    return EpochReport(number, 1.0, {"total": 1.0}, metrics, 1 / number, number, 0.5)


def test_reports_on_their_way_come_again_as_they_were(tmp_path: Path) -> None:
    first: list[dict[str, Any]] = []
    reporter = Reporter(tmp_path, first.append, {"num_parameters": 7}, Shard())
    for number in range(1, 6):
        reporter(epoch(number))
    assert [numbers["epoch"] for numbers in first] == [1, 2, 3, 4, 5]
    for known, expected in ((0, [1, 2, 3, 4, 5]), (2, [3, 4, 5]), (5, [5]), (9, [5])):
        again: list[dict[str, Any]] = []
        later = Reporter(tmp_path, again.append, {"num_parameters": 7}, Shard())
        later.catch_up(known)
        assert again == [first[number - 1] for number in expected]
    later(epoch(4))  # trained again from an earlier save
    later(epoch(5))
    assert len(again) == 1
    later(epoch(6))
    assert again[-1]["epoch"] == 6
    said = json.loads((tmp_path / "reported.json").read_text())
    assert (said["epoch"], said["began"]) == (6, 4)


def test_what_is_kept_of_a_long_trial_is_bounded(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, lambda numbers: None, {}, Shard())
    for number in range(1, 201):
        reporter(epoch(number))
    kept = json.loads((tmp_path / "reported.json").read_text())["reports"]
    assert [numbers["epoch"] for numbers in kept] == list(range(137, 201))


def test_other_ranks_report_and_write_nothing(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    Reporter(tmp_path, heard.append, {}, Shard(1, 2))(epoch(1))
    assert len(heard) == 1
    assert not list(tmp_path.iterdir())


def test_a_trial_that_goes_on_is_told_what_is_known_of_it(tmp_path: Path) -> None:
    space = SearchSpace.from_values({"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}, Config(), ("structure",))
    with Journal(tmp_path) as journal:
        journal.append("study")
        search = StudySearch(space, journal)
        first = search.suggest("a")
        assert isinstance(first, dict)
        assert "known" not in first
        for number in (1, 2, 3):
            search.on_trial_result("a", {"best_mrr": 0.1 * number, "epoch": number})
    later = StudySearch(space, History.of(journal.events))
    assert later.suggest("b") == {**first, "known": 3}


class Killed(Exception):
    """Stands for the death of a worker."""


@pytest.mark.parametrize(
    ("part", "known"),
    [
        ("reported.json", 1), ("state/state.safetensors", 1),
        *(
            pytest.param(part, known, marks=pytest.mark.slow) for known in (0, 1, 2)
            for part in ("reported.json", "state/progress.json", "state/state.safetensors", "smaller.json", "outcome.json")
        ),
    ],
)
def test_a_trial_one_of_whose_files_was_cut_short_ends_as_the_unbroken_one(
    toy: LinkData, tmp_path: Path, part: str, known: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config.build({"model": {"dim": 8, "relation_dim": 4}, "train": {"max_epochs": 3, "batch_size": 32}})
    save_prepared(toy, tmp_path / "data")

    def job(name: str, known: int = 0) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Job(config.model_dump(), str(tmp_path / "data"), str(folder), save_seconds=0, known=known)

    heard: dict[str, dict[int, float]] = {"unbroken": {}, "broken": {}}  # the driver counts an epoch once

    def hear(name: str, last: int = 9) -> Callable[[dict[str, Any]], None]:
        def report(numbers: dict[str, Any]) -> None:
            if numbers["epoch"] > last:
                raise Killed
            heard[name].setdefault(numbers["epoch"], numbers["mrr"])

        return report

    expected = run_job(job("unbroken"), hear("unbroken"))
    with pytest.raises(Killed):
        run_job(job("broken"), hear("broken", last=2))
    heard["broken"] = {epoch: mrr for epoch, mrr in heard["broken"].items() if epoch <= known}  # the driver died too
    file = tmp_path / "broken" / part
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if file.exists() else b'{"train.batch')
    assert (reduced_settings(file.parent), written_state(file.parent)) == ({}, (None, ""))
    assert run_job(job("broken", known), hear("broken")) == expected
    assert heard["broken"] == heard["unbroken"]
    assert part in ("smaller.json", "outcome.json") or "anew" in caplog.text


@pytest.mark.parametrize("patience", [5, 1])
def test_a_trial_in_parts_is_the_unbroken_one_and_says_when_it_has_ended(toy: LinkData, tmp_path: Path, patience: int) -> None:
    """Paused after epochs 1 and 3: equal curves and equal weights, each epoch trained and reported once, one end."""
    train = {"max_epochs": 5, "batch_size": 32, "patience": patience, "lr": 0.05}
    config = Config.build({"model": {"dim": 8, "relation_dim": 4}, "train": train})
    save_prepared(toy, tmp_path / "data")
    heard: dict[str, list[dict[str, Any]]] = {"whole": [], "parts": []}

    def job(name: str, until: int | None, known: int = 0) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        where = (config.model_dump(), str(tmp_path / "data"), str(folder))
        return Job(*where, save_seconds=1e9, keep=True, known=known, until=until)

    expected = run_job(job("whole", None), heard["whole"].append)
    assert expected is not None
    results = []
    for until in (1, 3, 5):
        known = int(heard["parts"][-1]["epoch"]) if heard["parts"] else 0
        results.append(run_job(job("parts", until, known), heard["parts"].append))
        assert (results[-1] is not None) == ("ended" in heard["parts"][-1]) == has_ended(tmp_path / "parts")
        assert (tmp_path / "parts" / "best").exists() == (results[-1] is not None)
        if results[-1] is not None:
            break
    assert results[:-1] == [None] * (len(results) - 1) and results[-1] == expected
    epochs = {numbers["epoch"]: numbers["mrr"] for numbers in heard["parts"]}
    assert epochs == {numbers["epoch"]: numbers["mrr"] for numbers in heard["whole"]}
    assert [float(numbers["epoch"]) for numbers in heard["whole"]] == sorted(epochs)
    weights = [(tmp_path / name / "best" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
