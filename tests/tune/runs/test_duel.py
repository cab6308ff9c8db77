"""The two best trials with another seed: who is compared, who wins, and that a later session keeps to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_search import SMALL, write_graph

from imf_core.config_base import parse_overrides
from tune.budget.allotment import Pace
from tune.hosts.resources import ClusterResources, Node
from tune.plan.plan import Plan, make_plan
from tune.runs.final_runs import FinalRuns, duel, fought_duel, last_duel, rival_of
from tune.runs.within_budget import pooled
from tune.settings import SearchConfig
from tune.study.history import History
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord


def trial(number: int, best: float | None, state: str = "completed") -> TrialRecord:
    return TrialRecord(number, f"trial-{number:03d}", TrialState(state), {}, best, 3, 4, 10.0)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    home = tmp_path_factory.mktemp("plan")
    given = {"data": str(write_graph(home / "graph")), "storage": str(home), "study": "s", "trials": 6}
    settings = SearchConfig.build({**given, "overrides": parse_overrides(SMALL), "budget_seconds": "60s"})
    return make_plan(settings, ClusterResources((Node(2.0),)))


def test_the_second_best_is_a_rival_unless_it_is_clearly_worse() -> None:
    best, near, far = trial(0, 0.400), trial(1, 0.390), trial(2, 0.380)
    assert rival_of(best, [far, near, best]) == near
    assert rival_of(best, [far, best]) is None
    assert rival_of(best, [best, trial(3, 0.399, "failed"), trial(4, None, "diverged")]) is None


def ran(*values: float | None, state: str = "completed") -> dict[str, tuple[TrialRecord, Path]]:
    names = ("trial-000-seed-1", "trial-001-seed-1")
    return {name: (trial(9, value, state), Path("best")) for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize(
    ("first", "second", "again", "winner"),
    [
        (trial(0, 0.40), trial(1, 0.39), (0.38, 0.38), "trial-000"),  # means 0.39 and 0.385
        (trial(0, 0.40), trial(1, 0.39), (0.36, 0.39), "trial-001"),
        (trial(0, 0.40), trial(1, 0.39, "pruned"), (0.37, 0.38), "trial-001"),  # paused: its own value says less
        (trial(0, 0.40), trial(1, 0.40), (0.38, 0.38), "trial-000"),
    ],
)
def test_the_mean_of_both_seeds_decides(
    plan: Plan, first: TrialRecord, second: TrialRecord, again: tuple[float, float], winner: str
) -> None:
    finals = FinalRuns.of(plan, plan.base, [0, 1, 2], "trial-000", ("trial-001", plan.base))
    history = History()
    fought = duel(history, first, second, [0, 1, 2], finals, ran(*again))
    assert fought is not None and fought["winner"] == winner
    assert fought_duel(history, first, second) == fought and fought_duel(history, second, first) is None
    told = {"first": "trial-000", "second": "trial-001", "winner": winner, "seed": 1, "mrr": fought["mrr"]}
    assert last_duel(history) == told


@pytest.mark.parametrize("runs", [{}, ran(0.4, None), ran(0.4, 0.5, state="failed")])
def test_a_run_that_is_missing_decides_nothing(plan: Plan, runs: dict[str, Any]) -> None:
    finals = FinalRuns.of(plan, plan.base, [0, 1], "trial-000", ("trial-001", plan.base))
    history = History()
    assert duel(history, trial(0, 0.4), trial(1, 0.39), [0, 1], finals, runs) is None
    assert history.events == [] and last_duel(history) is None


def test_the_rivals_run_comes_after_the_second_seed_and_has_the_name_of_its_own_final_run(plan: Plan) -> None:
    finals = FinalRuns.of(plan, plan.base, [0, 1, 2], "trial-000", ("trial-001", plan.base.updated({"train.lr": 0.001})))
    names = list(finals.variants)
    assert names[:4] == ["trial-000-seed-0", "trial-000-seed-1", "trial-001-seed-1", "trial-000-seed-2"]
    run = finals.variants[finals.rival_run]
    assert (run.train.lr, run.train.seed) == (0.001, 1)
    alone = FinalRuns.of(plan, plan.base, [0], "trial-000", ("trial-001", plan.base))  # one seed: nothing to compare
    assert alone.rival_run == "" and "trial-001-seed-1" not in alone.variants


def test_no_pool_is_made_where_scoring_would_take_much_of_the_budget(plan: Plan) -> None:
    """Six models, 0.7 of an epoch each: more than a tenth of a minute from 1.5 s an epoch on."""
    assert pooled(plan, None) == pooled(plan, Pace(1.0, 1.0)) == 6
    assert pooled(plan, Pace(2.0, 1.0)) == 0
