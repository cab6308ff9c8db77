"""What a trial of a search costs over the training that it does: start, data, reports, journal, MLflow, early stopping."""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from imf_core.train.fit import build_model, fit
from tune.hosts.cluster import ray_cluster
from tune.hosts.resources import ClusterResources
from tune.pipeline import open_tracker, searcher
from tune.plan.opening import open_study
from tune.plan.plan import Plan, make_plan
from tune.runs.interrupts import Interrupts
from tune.runs.runner import run_search
from tune.settings import SearchConfig

# Short trials: what is sought is a difference, and the machine's ups and downs grow with the time that it is taken from.
SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.max_epochs": 1, "train.precision": "fp32", "data.text": "none"}
SPACE = "train.label_smoothing: {low: 0.0, high: 0.001}\n"  # trials that differ in nothing that costs time


def trial_start(data: str = "unicode", trials: int = 8, **settings: Any) -> dict[str, Any]:
    """Seconds of a trial in a search of its kind, and of the bare `fit` with the same settings; one at a time, one thread.

    Each trial is counted from the end of the one before it, so that everything between them counts; the first, for which Ray
    starts its process, apart. Half of the bare ones run before the search, half after it.

    Args:
        data: bundled data set, or folder.
        trials: of the search, and repeats of the bare `fit`.
        settings: more settings, with `__` for the dot.
    """
    torch.set_num_threads(1)
    flat = {**SETTINGS, **{name.replace("__", "."): value for name, value in settings.items()}}
    with tempfile.TemporaryDirectory() as place:
        space = Path(place) / "space.yaml"
        space.write_text(SPACE, encoding="utf-8")
        plan = make_plan(SearchConfig.build({
            "data": data, "study": "overhead", "storage": place, "trials": trials, "concurrency": 1, "cpus_per_worker": 1,
            "scheduler": "none", "space": space, "overrides": flat, "keep": 0,
        }), ClusterResources.local())
        bare = _bare(plan, trials // 2)
        with open_study(plan) as study:
            search = searcher(plan, study)
            tracker = open_tracker(plan, study)
            with ray_cluster(plan.settings, plan.cluster, plan.resources, study.journal.lost):
                console = Console(stderr=True)
                run_search(plan, study, search, tracker, console, Interrupts(console), finalises=False)
            tracker.finish()
            asked = next(event["at"] for event in study.journal.events if event["event"] == "ask")
            ends = [event["at"] for event in study.journal.events if event["event"] == "tell"]
        bare += _bare(plan, trials - trials // 2)
    each = [later - earlier for earlier, later in pairwise(ends)]
    trial, alone = statistics.median(each), statistics.median(bare)
    return {
        "overhead_seconds": trial - alone, "trial_seconds": trial, "fit_seconds": alone,
        "first_trial_seconds": ends[0] - asked, "trials": trials,
    }


def _bare(plan: Plan, times: int) -> list[float]:
    """Seconds of each `fit` without a search."""
    config, seconds = plan.space.config_for(plan.space.default_point()), []
    for _ in range(times):
        model = build_model(config, plan.data)
        started = time.perf_counter()
        fit(model, plan.data, config)
        seconds.append(time.perf_counter() - started)
    return seconds
