"""Run one rival of `benchmarks.efficiency` in this process: a search without finalising, so that test is not opened.

    python -m benchmarks.efficiency_one FOLDER DATA SECONDS SEED RIVAL [SETTING=VALUE ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.efficiency import settings_of
from imf_core.config_base import parse_overrides
from tune.hosts.cluster import ray_cluster
from tune.hosts.resources import ClusterResources
from tune.pipeline import open_tracker, searcher
from tune.plan.opening import open_study
from tune.plan.plan import make_plan
from tune.runs.interrupts import Interrupts
from tune.runs.runner import run_search


def main(folder: Path, data: str, seconds: float, seed: int, rival: str, more: list[str]) -> None:
    """Search until the time is used up."""
    plan = make_plan(settings_of(folder, data, seconds, seed, rival, parse_overrides(more)), ClusterResources.local())
    plan = replace(plan, without=(Path(data).name,))  # leave out start points that come from this graph
    console = Console(width=160)
    with open_study(plan) as study:
        search = searcher(plan, study)
        tracker = open_tracker(plan, study)
        with ray_cluster(plan.settings, plan.cluster, plan.resources, study.journal.lost):
            run_search(plan, study, search, tracker, console, Interrupts(console), finalises=False)
        tracker.finish("FINISHED")
    (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:])
