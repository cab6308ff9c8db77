"""The comparison of searches: what it reads from journals, what it says, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import efficiency, start_points
from benchmarks.efficiency import Outcome, mean_of, ratio


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


def test_the_ratio_is_of_the_times_to_the_same_value() -> None:
    ours, other = Outcome.of(events((10, 0.3), (20, 0.41)), 100), Outcome.of(events((40, 0.35), (80, 0.4)), 100)
    assert ratio(ours, other) == pytest.approx(20 / 80)
    assert ratio(other, ours) is None  # it never got there


def test_the_mean_curve_is_the_mean_of_the_best_so_far() -> None:
    one, two = Outcome.of(events((10, 0.2), (30, 0.4)), 50), Outcome.of(events((20, 0.3)), 50)
    mean = mean_of([one, two])
    assert [at for at, _ in mean.curve] == [10.0, 20.0, 30.0]
    assert [best for _, best in mean.curve] == pytest.approx([0.1, 0.25, 0.35])
    assert mean.trials == 4 and mean.seconds_to(0.2) == 20.0


def test_a_study_that_reported_nothing_found_nothing() -> None:
    empty = Outcome.of(events(), 10)
    assert empty.final == 0.0 and ratio(empty, empty) is None


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_comparison_runs(tmp_path: Path) -> None:
    small = ["--set", "model.dim=8", "--set", "model.relation_dim=8", "--set", "train.max_epochs=4"]
    done = CliRunner().invoke(efficiency_app(), [
        "--budget", "60s", "--out", str(tmp_path), "--cache", str(tmp_path / "cache"), *small
    ], catch_exceptions=False)
    assert done.exit_code == 0
    facts = json.loads((tmp_path / "search_efficiency.json").read_text())["unicode"]
    assert {"time_ratio_vs_tpe", "time_ratio_vs_random"} <= facts.keys()
    for name in (efficiency.OURS, efficiency.TPE, efficiency.RANDOM):
        (run,) = facts[name]
        assert run["trials"] >= 1 and run["curve"][-1][0] <= 60 and 0 < run["final_mrr"] < 1
    assert facts[efficiency.TPE][0]["pruned"] == facts[efficiency.RANDOM][0]["pruned"] == 0
    page = (tmp_path / "search_efficiency.md").read_text()
    assert "| ours |" in page and (tmp_path / "img" / "search_efficiency.png").stat().st_size > 5000
    again = CliRunner().invoke(efficiency_app(), ["--budget", "60s", "--out", str(tmp_path), "--cache", str(tmp_path / "cache"),
                                                  *small])
    assert again.exit_code == 0  # nothing is run twice


def efficiency_app() -> object:
    import typer

    app = typer.Typer(add_completion=False)
    app.command()(efficiency.main)
    return app
