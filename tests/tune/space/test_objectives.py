"""Several objectives: what may be asked, the Pareto front by hand, the sampler, and a study that resumes with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from imf_core.config import Config
from imf_core.errors import ConfigError
from tune.report.pareto import pareto_front
from tune.settings import SearchConfig
from tune.space.objectives import parse_objective
from tune.space.space import SearchSpace
from tune.study.journal import Journal
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord
from tune.study.sampler import export_study, importances, make_sampler
from tune.study.searcher import StudySearch

BRANCHES = ("structure", "text", "fused")
SPACE = SearchSpace.from_values({"include": "default", "model.dim": {"low": 16, "high": 128, "step": 8}}, Config(), BRANCHES)


def record(number: int, mrr: float | None, size: float, state: TrialState = TrialState.COMPLETED, **more: float) -> TrialRecord:
    return TrialRecord(number, f"trial-{number:03d}", state, {}, mrr, 1, 1, 1.0, metrics={"num_parameters": size, **more})


def test_the_front_by_hand() -> None:
    trials = [
        record(0, 0.30, 100), record(1, 0.25, 50), record(2, 0.25, 60), record(3, 0.20, 50), record(4, 0.31, 200),
        record(5, 0.40, 10, TrialState.PRUNED), record(6, 0.9, 1, TrialState.DIVERGED), record(7, None, 5),
        record(8, 0.30, 100),
    ]
    assert [trial.number for trial in pareto_front(trials, ["params"])] == [4, 0, 1]
    fast = [record(0, 0.3, 10, latency_ms=2.0), record(1, 0.3, 20, latency_ms=1.0), record(2, 0.3, 20, latency_ms=2.0)]
    assert [trial.number for trial in pareto_front(fast, ["params", "latency"])] == [0, 1]
    assert [trial.number for trial in pareto_front(fast, ["latency"])] == [1]
    assert pareto_front([], ["params"]) == [] and pareto_front([record(0, 0.3, 10)], ["latency"]) == []


@pytest.mark.parametrize(("text", "found"), [("mrr", ()), ("mrr,params", ("params",)), (" params , mrr", ("params",)),
                                             ("mrr,latency,params", ("latency", "params"))])
def test_what_may_be_asked(text: str, found: tuple[str, ...]) -> None:
    assert parse_objective(text) == found


@pytest.mark.parametrize(("text", "words"), [("mrr,parms", "did you mean 'params'"), ("params", "leaves out mrr"),
                                             ("mrr,mrr", "named twice"), ("", "unknown objective ''")])
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_objective(text)


def test_small_models_are_not_stopped_because_larger_ones_are_ahead(tmp_path: Path) -> None:
    given = {"storage": tmp_path, "objective": "mrr,params"}
    assert SearchConfig.build(given).scheduler == "none" and SearchConfig.build({"storage": tmp_path}).scheduler == "race"
    assert SearchConfig.build({**given, "scheduler": "asha"}).scheduler == "asha"
    with pytest.raises(ConfigError, match="a race compares MRR alone"):
        SearchConfig.build({**given, "scheduler": "race"})
    with pytest.raises(ConfigError, match="unknown objective"):
        SearchConfig.build({"storage": tmp_path, "objective": "mrr,flops"})


def search(folder: Path | None = None) -> StudySearch:
    journal = Journal(folder) if folder is not None else None
    if journal is not None and not journal.events:
        journal.append("study", name="s")
    return StudySearch(SPACE, journal, make_sampler(0, 3), costs=["num_parameters"])


def run(searcher: StudySearch, start: int, stop: int) -> list[dict[str, Any]]:
    """Trials whose MRR and size both grow with the width."""
    points = []
    for number in range(start, stop):
        point = searcher.suggest(f"ray{number}")
        assert isinstance(point, dict)
        width = point["params"]["model.dim"]
        points.append(point)
        result = {"best_mrr": width / 1000, "mrr": width / 1000, "epoch": 1, "num_parameters": width * 100}
        searcher.on_trial_result(f"ray{number}", result)
        searcher.on_trial_complete(f"ray{number}", result)
    return points


def test_optuna_is_told_both_and_draws_on(tmp_path: Path) -> None:
    searcher = search()
    run(searcher, 0, 12)
    assert [str(direction) for direction in searcher.study.directions] == ["2", "1"]  # maximise, minimise
    done = [trial for trial in searcher.study.trials if trial.user_attrs.get("trial_id")]
    assert len(done) == 12 and all(trial.values == [w / 1000, w * 100] for trial in done for w in [trial.params["model.dim"]])
    assert math.isclose(sum(importances(searcher.study).values()), 1.0)
    export_study(searcher.study, tmp_path / "optuna.db", {trial.user_attrs["trial_id"]: "pruned" for trial in done})
    import optuna

    copy = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert len(copy.directions) == 2 and len(copy.best_trials) >= 1


def test_a_trial_without_its_cost_is_no_point() -> None:
    searcher = search()
    searcher.suggest("ray0")
    searcher.on_trial_complete("ray0", {"best_mrr": 0.3, "mrr": 0.3, "epoch": 1})
    assert searcher.study.trials[0].state.name == "FAIL"


def test_an_interrupted_study_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    whole = run(search(tmp_path / "whole"), 0, 9)
    first = search(tmp_path / "broken")
    run(first, 0, 5)
    assert isinstance(first.history, Journal)
    first.history.close()
    second = search(tmp_path / "broken")
    assert [point["params"] for point in run(second, 5, 9)] == [point["params"] for point in whole[5:]]
