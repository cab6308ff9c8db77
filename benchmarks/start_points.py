"""Value of the shipped start points on a graph from which none of them comes: the first trials, with and without them.

    imf audit ../shared/data/DB15K --repair .cache/db15k-repaired --valid-size 3000
    python -m benchmarks.start_points .cache/db15k-repaired --name DB15K --seeds 2    # results/start_points.md

Two searches run side by side, each with one trial of one thread at a time. One begins with the default settings and the start
points, in the other the sampler draws all trials; everything else is the same, early stopping included. The best value of the
first one, three, five and ten trials is read from their journals. No test split is opened.

An interrupted benchmark continues from the finished studies in `--cache`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.efficiency import DRAWN, OURS, SETTINGS, Outcome, compare
from benchmarks.results import host_line, spread
from imf_core.files.markdown import table
from tune.durations import parse_duration
from tune.report.files import machine

FIRST = (1, 3, 5, 10)
TITLES = {OURS: "with start points", DRAWN: "without"}


def main(
    graph: Annotated[Path, typer.Argument(help="Folder of the graph.")],
    name: Annotated[str | None, typer.Option(help="Name of the graph; default: that of the folder.")] = None,
    budget: Annotated[str, typer.Option(help="Wall time of each search.")] = "12m",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    cache: Annotated[Path, typer.Option(help="Folder of the studies.")] = Path(".cache/start_points"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="Additional settings of both searches.")] = None,
) -> None:
    """Run the missing searches, and add the graph to the page and the JSON file."""
    title, seconds = name or graph.name, parse_duration(budget)
    outcomes = compare([OURS, DRAWN], title, str(graph.resolve()), seconds, seeds, cache, settings or [])
    file = out / "start_points.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    facts = {**known, title: facts_of(outcomes, {**SETTINGS, "more": list(settings or [])})}
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / "start_points.md").write_text("\n".join(page_of(facts)), encoding="utf-8")
    print(f"written: {out / 'start_points.md'}")


def facts_of(outcomes: Mapping[str, Sequence[Outcome]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The best validation MRR of the first trials of each search by seed; None if it had fewer trials.

    Args:
        outcomes: of each search, one per seed.
        settings: of all trials.
    """
    searches = {
        rival: {
            "first": {str(count): [run.best_of(count) for run in runs] for count in FIRST},
            "trials": [run.trials for run in runs], "final": [run.final for run in runs],
            "each": [list(run.each) for run in runs],
        }
        for rival, runs in outcomes.items()
    }
    runs = next(iter(outcomes.values()))
    return {
        "seconds": runs[0].seconds, "seeds": len(runs), "machine": machine(), "date": str(date.today()), "searches": searches,
        "settings": dict(settings),
    }


def page_of(facts: Mapping[str, Any]) -> list[str]:
    """The page with all graphs."""
    text = [
        "# Value of the start points on a new graph", "",
        "By default a search begins with the default settings and with those that did best on other graphs "
        "(`tune/space/start_points.py`). The tables show the best validation MRR of the first trials with and "
        "without these start points; space, sampler, early stopping and seeds are the same. Both searches ran side by side, "
        "each with one trial of one thread at a time. Mean ± standard deviation over the seeds if there are several.", "",
    ]
    for title, entry in facts.items():
        head = ["search", *(f"first {count}" if count > 1 else "first" for count in FIRST), "all", "trials"]
        rows = []
        for rival, one in entry["searches"].items():
            cells = [_spread(one["first"][str(count)]) for count in FIRST]
            cells += [spread(one["final"]), ", ".join(map(str, one["trials"]))]
            rows.append([TITLES[rival], *cells])
        text += [f"## {title}", "", *table(head, rows, markup=True)]
        settings = dict(entry["settings"])
        more = settings.pop("more")
        settings_text = ", ".join([*(f"{key}={value}" for key, value in settings.items()), *more])
        text += [
            f"`python -m benchmarks.start_points`, {entry['seeds']} seed(s), {entry['seconds']:.0f} s each; common settings: "
            f"{settings_text}; {host_line(entry['machine'])}; {entry['date']}.", "",
        ]
    return text


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else "fewer trials"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app()
