"""What the shipped start points are worth on a graph that was not used to find them: the first trials, with and without.

    imf audit ../shared/data/DB15K --repair .cache/db15k-repaired --valid-size 3000
    python -m benchmarks.start_points .cache/db15k-repaired --name DB15K --seeds 2    # results/start_points.md

Two searches run side by side, a trial of one thread at a time each: one begins with the default settings and the settings that
won elsewhere, the other with what the sampler draws; all else is the same, early stopping included. What the first one, three,
five and ten trials of each have found is read from their journals. Nothing here opens a test split.

Finished runs are kept in `--cache`; an interrupted comparison goes on with the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.efficiency import DRAWN, OURS, SETTINGS, Found, compared, spread
from imf_core.files.markdown import table
from tune.durations import parse_duration
from tune.report.files import machine

FIRST = (1, 3, 5, 10)
SAID = {OURS: "with the start points", DRAWN: "without"}


def main(
    graph: Annotated[Path, typer.Argument(help="Folder of the graph.")],
    name: Annotated[str | None, typer.Option(help="What to call it; default: the folder's name.")] = None,
    budget: Annotated[str, typer.Option(help="Wall time of each search.")] = "12m",
    seeds: Annotated[int, typer.Option(min=1, help="Repeats with other seeds.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    cache: Annotated[Path, typer.Option(help="The studies.")] = Path(".cache/start_points"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="More settings of both.")] = None,
) -> None:
    """Run what is missing, and put the graph into the page and the JSON."""
    title, seconds = name or graph.name, parse_duration(budget)
    found = compared([OURS, DRAWN], title, str(graph.resolve()), seconds, seeds, cache, settings or [])
    file = out / "start_points.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    facts = {**known, title: facts_of(found, {**SETTINGS, "more": list(settings or [])})}
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (out / "start_points.md").write_text("\n".join(page_of(facts)), encoding="utf-8")
    print(f"written: {out / 'start_points.md'}")


def facts_of(found: Mapping[str, Sequence[Found]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """For each search the best validation MRR of its first trials by seed, None where it had not so many in its time.

    Args:
        found: by rival, one a seed.
        settings: of all trials.
    """
    searches = {
        rival: {
            "first": {str(count): [run.best_of(count) for run in runs] for count in FIRST},
            "trials": [run.trials for run in runs], "final": [run.final for run in runs],
            "each": [list(run.each) for run in runs],
        }
        for rival, runs in found.items()
    }
    runs = next(iter(found.values()))
    around = {"seconds": runs[0].seconds, "seeds": len(runs), "machine": machine(), "date": str(date.today())}
    return {**around, "searches": searches, "settings": dict(settings)}


def page_of(facts: Mapping[str, Any]) -> list[str]:
    """The page of all graphs."""
    text = [
        "# What the start points are worth on a graph that they do not know", "",
        "A search begins with the default settings and with those that won on MKG-W, on MKG-Y and on the bundled characters "
        "(`tune/space/start_points.py`). Best validation MRR of the first trials of a search with and without that beginning; "
        "all else is the same: space, sampler, early stopping, seeds. They ran side by side, a trial of one thread at a time "
        "each. Mean and deviation over the seeds where there are several.", "",
    ]
    for title, entry in facts.items():
        head = ["search", *(f"first {count}" if count > 1 else "first" for count in FIRST), "all", "trials"]
        rows = []
        for rival, one in entry["searches"].items():
            cells = [_spread(one["first"][str(count)]) for count in FIRST]
            cells += [spread(one["final"]), ", ".join(map(str, one["trials"]))]
            rows.append([SAID[rival], *cells])
        text += [f"## {title}", "", *table(head, rows, markup=True)]
        host, settings = entry["machine"], dict(entry["settings"])
        more = settings.pop("more")
        of_all = ", ".join([*(f"{key}={value}" for key, value in settings.items()), *more])
        text += [
            f"`python -m benchmarks.start_points`, {entry['seeds']} seed(s), {entry['seconds']:.0f} s each; settings "
            f"of all: {of_all}; {host['cpu']}, {host['cores']} cores, torch {host['torch']}; {entry['date']}.", "",
        ]
    return text


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else "not so many"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app()
