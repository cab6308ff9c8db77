"""Run one rival of `benchmarks.efficiency` in this process, without finalising, so that test is not opened.

    python -m benchmarks.efficiency_one FOLDER DATA SECONDS SEED RIVAL [SETTING=VALUE ...]
    python -m benchmarks.efficiency_one --retrain FOLDER DATA SECONDS SEED RIVAL [SETTING=VALUE ...]

With `--retrain` the winner of the finished search is trained again with fresh seeds, and what it is worth goes into a file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.efficiency import (
    CURVE_FILE,
    FRESH_SEEDS,
    ONE_EPOCH,
    ONE_EPOCH_TRIALS,
    OURS,
    RETRAINED_FILE,
    SEEDS,
    settings_of,
)
from benchmarks.portfolio import start_values
from imf_core.config_base import Settings, parse_overrides
from imf_core.ensemble.pool import Pool, distinct
from tune.hosts.cluster import ray_cluster
from tune.hosts.resources import ClusterResources
from tune.pipeline import open_tracker, searcher
from tune.plan.opening import OpenStudy, open_study
from tune.plan.plan import Plan, make_plan
from tune.runs.interrupts import Interrupts
from tune.runs.runner import run_search
from tune.study.history import History
from tune.study.proposals import Proposals
from tune.study.race import Race
from tune.study.race_search import RaceSearch
from tune.study.records import load_records, winner
from tune.study.searcher import StudySearch


def main(folder: Path, data: str, seconds: float, seed: int, rival: str, more: list[str]) -> None:
    """Search until the time is used up."""
    plan = plan_of(folder, data, seconds, seed, rival, more)
    if rival == SEEDS:
        train_seeds(plan, folder, seconds, seed)
    else:
        console = Console(width=160)
        with open_study(plan) as study:
            search = one_epoch_first(plan, study) if rival == ONE_EPOCH else searcher(plan, study)
            tracker = open_tracker(plan, study)
            with ray_cluster(plan.settings, plan.cluster, plan.resources, study.journal.lost):
                run_search(plan, study, search, tracker, console, Interrupts(console), finalises=False)
            tracker.finish("FINISHED")
    (folder / "done").touch()


def plan_of(folder: Path, data: str, seconds: float, seed: int, rival: str, more: list[str]) -> Plan:
    """The plan of a rival; start points that come from its graph are left out."""
    plan = make_plan(settings_of(folder, data, seconds, seed, rival, parse_overrides(more)), ClusterResources.local())
    graph = Path(data).name
    chosen = start_values(graph)
    return replace(plan, without=(graph,), portfolio=tuple(chosen) if chosen is not None else None)


def one_epoch_first(plan: Plan, study: OpenStudy) -> StudySearch:
    """The start points and random ones, one epoch each; then each is finished, the best first."""
    points = [plan.space.default_point(), *plan.start_points]
    drawn = Proposals(plan.space, plan.settings.seed, "random")
    points += [drawn.draw(History(), attempt) for attempt in range(ONE_EPOCH_TRIALS - len(points))]
    race = Race((1, plan.base.train.max_epochs), 1.0, most_paused=ONE_EPOCH_TRIALS)
    return RaceSearch(plan.space, race, study.journal, base=False, points=points, proposals=drawn)


def train_seeds(plan: Plan, folder: Path, seconds: float, seed: int) -> None:
    """The default settings with one seed after another, as far as the time goes; the best value so far is the curve."""
    torch.set_num_threads(1)
    began, curve, number = time.monotonic(), list[tuple[float, float]](), 0
    while time.monotonic() - began < seconds:
        config = plan.base.updated({"train.seed": 1000 * seed + number})
        _train(plan, config, folder / "seeds" / f"{number:03d}" / "best", began, curve, seconds)
        number += 1
    (folder / CURVE_FILE).write_text(json.dumps({"curve": curve, "trials": number}))


def _train(
    plan: Plan, config: Settings, keep: Path, began: float, curve: list[tuple[float, float]], seconds: float
) -> float:
    """Train once and keep the checkpoint, unless the time was over before; returns the best validation MRR."""
    task = plan.task
    model = task.build(config, plan.data)

    def report(epoch: Any) -> None:
        curve.append((round(time.monotonic() - began, 1), float(epoch.best_mrr)))

    result = task.fit(model, plan.data, config, report)
    if time.monotonic() - began <= seconds or not keep.parent.parent.exists():  # the first is kept, however long it takes
        task.keep(keep, model, config, plan.data, {"validation": result.metrics.as_dict(), "best_epoch": result.best_epoch})
    return float(result.best_mrr)


def retrain(folder: Path, data: str, seconds: float, seed: int, rival: str, more: list[str]) -> None:
    """What the finished search has found is worth: its winner with fresh seeds, and the models that answer together."""
    torch.set_num_threads(1)
    plan, each = plan_of(folder, data, seconds, seed, rival, more), list[float]()
    if rival == SEEDS:
        pooled = pool_mrr(plan, sorted((folder / "seeds").glob("*/best")))
        values = {"mrr": pooled, "pool": pooled}
    else:
        best = winner(load_records(folder))
        if best is None:
            raise SystemExit(f"{folder}: no trial has a value")
        for fresh in FRESH_SEEDS:
            config = plan.space.config_for(best.params).updated({"train.seed": fresh})
            each.append(float(plan.task.fit(plan.task.build(config, plan.data), plan.data, config).best_mrr))
        kept = sorted((folder / "trials").glob("*/best")) if rival == OURS else []
        values = {"mrr": statistics.fmean(each), "pool": pool_mrr(plan, kept)}
    (folder / RETRAINED_FILE).write_text(json.dumps({**values, "each": each}))


def pool_mrr(plan: Plan, folders: Sequence[Path]) -> float | None:
    """Validation MRR of the models that answer best together, or of the only one; None without any."""
    if not folders:
        return None
    pool = Pool.choose(distinct(folders), plan.data.graph)  # type: ignore[attr-defined]  # the task is link prediction
    return float(pool.ranked(pool.kept, pool.weights).mrr)


if __name__ == "__main__":
    step = retrain if sys.argv[1] == "--retrain" else main
    given = sys.argv[2:] if step is retrain else sys.argv[1:]
    step(Path(given[0]), given[1], float(given[2]), int(given[3]), given[4], given[5:])
