"""Fitting a study into its budget before the first trial, and what later sessions make of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_search import SMALL, ready_database, run_search, write_graph

from imf_core.config_base import parse_overrides
from imf_core.errors import ResourceError
from tune.budget.allotment import Pace
from tune.budget.deadline import FinalsAllowed
from tune.hosts.resources import ClusterResources, Node
from tune.plan.opening import OpenStudy, open_study
from tune.plan.plan import Plan, make_plan
from tune.runs import within_budget as fitting
from tune.runs.within_budget import allotted, final_names, finals_within_budget, within_budget
from tune.settings import SearchConfig
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord
from tune.trial.measure import measure
from tune.trial.worker import Job

TWO_CPUS = ClusterResources((Node(2.0),))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("data") / "graph")


def plan_of(graph: Path, storage: Path, budget: str, **more: Any) -> Plan:
    given = {"data": str(graph), "storage": str(storage), "study": "s", "trials": 6, "overrides": parse_overrides(SMALL)}
    return make_plan(SearchConfig.build({**given, "budget_seconds": budget, **more}), TWO_CPUS)


def fitted(plan: Plan, study: OpenStudy) -> tuple[Plan, str]:
    console = Console(file=io.StringIO(), width=300)
    result = within_budget(plan, study, console)
    assert isinstance(console.file, io.StringIO)
    return result, console.file.getvalue()


def test_a_short_budget_shortens_the_trials_and_later_sessions_keep_to_it(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "measured_pace", lambda plan: Pace(4.0, 1.0))
    plan = plan_of(graph, tmp_path, "60s")
    assert final_names(plan) == ["seed 0", "seed 1", "the second best with seed 1", "seed 2", "on structure alone"]
    with open_study(plan) as study:
        shorter, told = fitted(plan, study)
        assert 2 <= shorter.base.train.max_epochs < plan.base.train.max_epochs == 6
        assert shorter.space.base.train == shorter.base.train
        assert shorter.space.config_for(plan.space.default_point()).train.max_epochs == shorter.base.train.max_epochs
        assert f"up to {shorter.base.train.max_epochs} epochs instead of 6" in told
        assert "left out at the end: the second best with seed 1, seed 2, on structure alone" in told
        decided = allotted(study.journal)
        assert decided is not None and decided["runs"] == 2
    monkeypatch.setattr(fitting, "measured_pace", lambda plan: pytest.fail("it is measured once"))
    again = plan_of(graph, tmp_path, "600s", resume=True)
    with open_study(again) as study:
        longer, told = fitted(again, study)  # trials of one study are equally long
        assert longer.base.train.max_epochs == shorter.base.train.max_epochs
        assert "5 final runs are likely to fit" in told


def test_without_a_budget_nothing_is_measured(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "measured_pace", lambda plan: pytest.fail("there is no budget"))
    plan = make_plan(SearchConfig.build({"data": str(graph), "storage": str(tmp_path), "study": "s"}), TWO_CPUS)
    with open_study(plan) as study:
        assert within_budget(plan, study, Console(file=io.StringIO())) is plan
        assert allotted(study.journal) is None and study.remaining() is None


def test_a_budget_that_does_not_hold_an_epoch_is_refused(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "measured_pace", lambda plan: Pace(90.0, 1.0))
    plan = plan_of(graph, tmp_path, "60s")
    refusal = r"(?s)an epoch takes about 1m30s.*--budget 18m02s or more"
    with open_study(plan) as study, pytest.raises(ResourceError, match=refusal):
        within_budget(plan, study, Console(file=io.StringIO()))


def test_the_final_runs_of_a_winner_are_chosen_once(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    winner = TrialRecord(0, "trial-000", TrialState.COMPLETED, {}, 0.3, 4, epochs=5, seconds=50.0)
    plan = plan_of(graph, tmp_path, "600s")
    with open_study(plan) as study:
        assert finals_within_budget(plan, study, winner) == FinalsAllowed(5)
        monkeypatch.setattr(OpenStudy, "remaining", lambda study: 0.0)
        assert finals_within_budget(plan, study, winner) == FinalsAllowed(5)  # a killed session goes on
        other = TrialRecord(1, "trial-001", TrialState.PRUNED, {}, 0.4, 3, epochs=3, seconds=30.0)
        assert finals_within_budget(plan, study, other) == FinalsAllowed(1, 3)


def test_measuring_trains_some_steps_and_leaves_nothing(graph: Path, tmp_path: Path) -> None:
    plan = plan_of(graph, tmp_path, "60s")
    with open_study(plan):
        before = sorted(tmp_path.rglob("*"))
        job = Job(plan.base.model_dump(), str(plan.prepared), "", task=plan.task)
        seconds, ready = measure(job.to_json(), workers=1)
        shared, _ = measure(job.to_json(), workers=1000)
        assert seconds is not None and shared is not None and 0 < shared < seconds and ready > 0
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_search_within_a_short_budget_has_a_tested_winner(tmp_path: Path, repository: Path) -> None:
    """Far more trials and epochs than fit: the winner is retrained and tested, and what was left out is said."""
    write_graph(ready_database(tmp_path) / "graph")
    settings = [*SMALL[1:], "train.max_epochs=3000", "train.patience=3000"]
    arguments = ("--data", "graph", "--study", "s", "--trials", "500", "--scheduler", "none", "--budget", "90s")
    done = run_search(repository, tmp_path, *arguments, settings=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epochs instead of 3000" in done.stdout
    assert "trials never began: the budget was over" in done.stdout
    assert "test (" in done.stdout and (tmp_path / "results" / "s" / "best" / "config.json").is_file()
