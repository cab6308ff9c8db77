"""The comparison of searches: what it reads from journals, what it says, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_search import write_graph
from typer.testing import CliRunner

from benchmarks import efficiency, efficiency_one, efficiency_pykeen, start_points
from benchmarks.efficiency import OURS, Outcome, summary_of, time_ratio
from tune.plan.opening import open_study


def events(*reports: tuple[float, float], start: float = 100.0) -> list[dict[str, object]]:
    made: list[dict[str, object]] = [{"event": "study", "at": 50.0}, {"event": "session", "at": start}]
    made += [{"event": "ask", "at": start + 1, "trial": "trial-000"}, {"event": "ask", "at": start + 2, "trial": "trial-001"}]
    made += [{"event": "report", "at": start + at, "trial": "trial-000", "numbers": {"best_mrr": mrr}} for at, mrr in reports]
    return made


def test_the_best_so_far_is_read_from_the_journal() -> None:
    told = [{"event": "tell", "at": 160.0, "trial": "trial-000", "value": 0.45, "stopped": True}]
    outcome = Outcome.of([*events((10, 0.2), (20, 0.1), (30, 0.4)), *told], 50.0)
    assert outcome.curve == [(10.0, 0.2), (30.0, 0.4)]  # what came after its time does not count
    assert (outcome.final, outcome.trials, outcome.pruned) == (0.4, 2, 1)
    assert outcome.seconds_to(0.3) == 30.0 and outcome.seconds_to(0.5) is None
    assert (outcome.best_at(5), outcome.best_at(10), outcome.best_at(29)) == (0.0, 0.2, 0.2)


def test_the_first_trials_are_those_that_began_first() -> None:
    later = {"event": "report", "at": 140.0, "trial": "trial-001", "numbers": {"best_mrr": 0.5}}
    outcome = Outcome.of([*events((10, 0.2), (60, 0.9)), later], 50.0)
    assert outcome.each == (0.2, 0.5)  # what the first one reported after its time does not count
    assert (outcome.best_of(1), outcome.best_of(2), outcome.best_of(3)) == (0.2, 0.5, None)
    facts = {"graph": start_points.facts_of({efficiency.OURS: [outcome] * 2, efficiency.DRAWN: [outcome] * 2}, {"more": []})}
    page = "\n".join(start_points.page_of(json.loads(json.dumps(facts))))
    few = "fewer trials"
    assert f"| with start points | 0.2000 ± 0.0000 | {few} | {few} | {few} | 0.5000 ± 0.0000 | 2, 2 |" in page


def run(*curve: tuple[float, float], worth: float | None = None, pool: float | None = None) -> Outcome:
    return Outcome(list(curve), 3, 1, 100.0, worth=worth, pool=pool)


def test_the_ratio_is_of_the_times_to_the_same_value() -> None:
    ours, other = run((10, 0.3), (20, 0.41)), run((40, 0.35), (80, 0.4))
    assert time_ratio(ours, other, 0.4) == pytest.approx(20 / 80)
    assert time_ratio(other, ours, 0.41) == pytest.approx(200 / 20)  # it never gets there: twice its time
    assert time_ratio(ours, other, 0.405) == pytest.approx(20 / 100)  # the other does not: all its time


def test_a_paused_trial_counts_as_stopped_unless_it_went_on() -> None:
    legs = [{"event": kind, "at": 120.0, "trial": "trial-000"} for kind in ("pause", "resume", "pause")]
    assert Outcome.of([*events((10, 0.2)), *legs], 50.0).pruned == 1
    assert Outcome.of([*events((10, 0.2)), *legs[:2]], 50.0).pruned == 0


def test_the_summary_has_a_ratio_and_a_difference_for_each_rival_and_graph() -> None:
    """The goal is 99 % of what the rival's winners are worth on the graph: 0.396, and 0.297."""
    outcomes = {
        "a": {
            OURS: [run((20, 0.4), worth=0.41, pool=0.43), run((40, 0.4), worth=0.39, pool=0.42)],
            "tpe": [run((80, 0.4), worth=0.4), run((80, 0.4), worth=0.4)],
            "seeds": [run((50, 0.38), worth=0.42), run((50, 0.38), worth=0.42)],
        },
        "b": {OURS: [run((10, 0.3), worth=0.3)], "tpe": [run((10, 0.2), worth=0.3)]},
    }
    told = summary_of(outcomes)
    tpe = told["tpe"]
    assert tpe["time_ratio_median"] == pytest.approx(0.25)  # of 0.25, 0.5 and 0.1
    assert 0.1 <= tpe["time_ratio_lower"] <= 0.25 <= tpe["time_ratio_upper"] <= 0.5
    assert tpe["final_difference"] == pytest.approx(0.0)
    assert tpe["final_difference_lower"] <= 0 <= tpe["final_difference_upper"]
    assert tpe["by_graph"]["a"]["time_ratio_median"] == pytest.approx(0.375)
    assert tpe["by_graph"]["b"]["time_ratio_upper"] == pytest.approx(0.1)
    assert told["seeds"]["final_difference"] == pytest.approx(0.005)  # the pool against the pooled seeds
    assert told["seeds"]["time_ratio_median"] == pytest.approx(0.6)  # single models: 20 and 40 s to 0.376, of 50
    assert "ours" not in told


def test_a_rival_without_a_journal_leaves_its_curve(tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(json.dumps({"curve": [[5, 0.1], [6, 0.05], [7, 0.2], [200, 0.9]], "trials": 4}))
    (tmp_path / "retrained.json").write_text(json.dumps({"mrr": 0.3, "pool": None}))
    outcome = efficiency.outcome_in(tmp_path, 100.0)
    assert outcome.curve == [(5.0, 0.1), (7.0, 0.2)]
    assert (outcome.trials, outcome.worth, outcome.pool) == (4, 0.3, None)


def test_pykeens_trials_become_a_curve() -> None:
    assert efficiency_pykeen.curve_of([(130.0, 0.2), (110.0, 0.1), (120.0, None)], 100.0) == [(10.0, 0.1), (30.0, 0.2)]
    assert efficiency_pykeen.mrr_in({"metrics": {"both": {"realistic": {"inverse_harmonic_mean_rank": 0.25}}}}) == 0.25


def test_a_study_that_reported_nothing_found_nothing() -> None:
    empty = Outcome.of(events(), 10)
    assert empty.final == 0.0 and empty.seconds_to(0.1) is None


SETTINGS = ["model.dim=8", "model.relation_dim=4", "train.batch_size=64", "train.max_epochs=2", "train.precision=fp32"]


def test_seeds_of_the_default_settings_are_pooled(tmp_path: Path) -> None:
    graph, folder = str(write_graph(tmp_path / "graph")), tmp_path / "cache" / "graph-seeds"
    folder.mkdir(parents=True)
    efficiency_one.main(folder, graph, 3.0, 0, "seeds", SETTINGS)
    kept = sorted((folder / "seeds").glob("*/best"))
    assert (folder / "done").exists() and kept
    efficiency_one.retrain(folder, graph, 3.0, 0, "seeds", SETTINGS)
    outcome = efficiency.outcome_in(folder, 3.0)
    assert outcome.trials >= len(kept) and outcome.worth == outcome.pool and 0 < (outcome.worth or 0) < 1
    assert outcome.curve == sorted(outcome.curve) and all(at <= 3.0 for at, _ in outcome.curve)


def test_one_epoch_each_and_then_the_best_are_finished(tmp_path: Path) -> None:
    """The start points and random ones, 20 in all, each with one epoch; then each in turn, the best first."""
    graph, folder = str(write_graph(tmp_path / "graph")), tmp_path / "cache" / "graph-one-epoch"
    plan = efficiency_one.plan_of(folder, graph, 60.0, 0, "one-epoch", SETTINGS)
    with open_study(plan) as study:
        search = efficiency_one.one_epoch_first(plan, study)
        search.left, values, order = 20, {}, []
        for number in range(24):
            suggested: Any = search.suggest(str(number))
            order.append((suggested["name"], suggested.get("known", 0), suggested["until"]))
            values.setdefault(suggested["name"], 0.1 + 0.01 * (7 * number % 20))
            result = {"epoch": suggested["until"], "mrr": values[suggested["name"]], "best_mrr": values[suggested["name"]]}
            search.on_trial_result(str(number), result)
            search.on_trial_complete(str(number), {**result, **({"ended": 1.0} if suggested["until"] == 2 else {})})
    assert [leg[1:] for leg in order] == [(0, 1)] * 20 + [(1, 2)] * 4
    assert [name for name, *_ in order[20:]] == sorted(values, key=lambda name: -values[name])[:4]
    assert plan.start_points and len(set(values)) == 20


BUDGET = 150  # seconds: five searches that start side by side on two cores need a minute before the first epoch


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_the_comparison_runs(tmp_path: Path) -> None:
    small = ["--set", "model.dim=8", "--set", "model.relation_dim=8", "--set", "train.max_epochs=4"]
    arguments = ["--budget", f"{BUDGET}s", "--seeds", "1", "--out", str(tmp_path), "--cache", str(tmp_path / "cache"), *small]
    done = CliRunner().invoke(efficiency_app(), arguments, catch_exceptions=False)
    assert done.exit_code == 0
    facts = json.loads((tmp_path / "search_efficiency.json").read_text())
    assert facts["summary"].keys() == {"tpe", "random", "tpe-started", "one-epoch", "seeds"}
    for name in (efficiency.OURS, *facts["summary"]):
        (one,) = facts["graphs"]["unicode"][name]
        assert one["trials"] >= 1 and one["curve"][-1][0] <= BUDGET and 0 < one["final_mrr"] < 1 and 0 < one["worth"] < 1
    assert facts["graphs"]["unicode"]["tpe"][0]["pruned"] == 0
    page = (tmp_path / "search_efficiency.md").read_text()
    assert "| ours |" in page and (tmp_path / "img" / "search_efficiency.png").stat().st_size > 5000
    began = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*/log.txt")}
    assert CliRunner().invoke(efficiency_app(), arguments).exit_code == 0
    assert began == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").glob("*/log.txt")}  # nothing is run twice


def efficiency_app() -> object:
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(efficiency.main)
    return app
