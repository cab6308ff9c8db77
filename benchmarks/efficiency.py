"""How soon the search finds what plainer searches find: ours against Optuna's TPE without early stopping and chance.

    python -m benchmarks.efficiency --mkgy ../shared/data/MKG-Y      # writes results/search_efficiency.{json,md,png}

All rivals have the same trainable, space and wall time, and run side by side on the same cores, a trial of one thread at a
time each, so that whatever else the machine does slows all of them. What a rival has found is read from its journal: the best
validation MRR at each moment since its session began, Ray's start included. Nothing here opens a test split.

Finished runs are kept in `--cache`; an interrupted comparison goes on with the others.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from imf_core.files.markdown import table
from tune.durations import parse_duration
from tune.report.files import machine
from tune.settings import SearchConfig
from tune.study.journal import JOURNAL_FILE, read_events

OURS, TPE, RANDOM, DRAWN = "ours", "tpe", "random", "ours-drawn"
RIVALS: dict[str, dict[str, Any]] = {
    OURS: {"first": "shipped"},
    TPE: {"scheduler": "none", "first": "drawn"},
    RANDOM: {"scheduler": "none", "first": "drawn", "sampler": "random"},
    DRAWN: {"first": "drawn"},
}
SAID = {
    OURS: "ours: the default settings, then those that were good on other graphs, then TPE, with early stopping whose grace is "
    "learned",
    TPE: "Optuna's TPE, every trial to its own end",
    RANDOM: "random search, every trial to its own end",
    DRAWN: "ours without any start point: TPE with early stopping",
}
SETTINGS = {"model.dim": 64, "train.max_epochs": 8, "train.precision": "auto"}
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Found:
    """What a rival found.

    Args:
        curve: (seconds since the start, best validation MRR so far), at each improvement.
        trials, pruned: that it began and that were stopped early.
        seconds: that it had.
        each: best validation MRR of each trial in the order in which they began, 0 where it reported none.
    """

    curve: Curve
    trials: int
    pruned: int
    seconds: float
    each: tuple[float, ...] = ()

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]], seconds: float) -> Found:
        """From a study's journal."""
        start = next(float(event["at"]) for event in events if event["event"] == "session")
        best, curve = 0.0, []
        each: dict[str, float] = {}
        for event in events:
            value = _value(event)
            if event["event"] == "ask":
                each.setdefault(str(event["trial"]), 0.0)
            if value is None or float(event["at"]) - start > seconds:
                continue
            each[str(event["trial"])] = max(value, each[str(event["trial"])])
            if value > best:
                best = value
                curve.append((round(float(event["at"]) - start, 1), value))
        ends = [event for event in events if event["event"] == "tell"]
        return cls(curve, len(each), sum(bool(event.get("stopped")) for event in ends), seconds, tuple(each.values()))

    @property
    def final(self) -> float:
        """Best validation MRR at the end; 0 where nothing was reported."""
        return self.curve[-1][1] if self.curve else 0.0

    def reached(self, value: float) -> float | None:
        """Seconds until it was as good as this; None where it never was."""
        return next((at for at, best in self.curve if best >= value), None)

    def best_of(self, trials: int) -> float | None:
        """Best validation MRR of the first trials; None where there were not so many."""
        return max(self.each[:trials]) if len(self.each) >= trials else None

    def best_at(self, seconds: float) -> float:
        """Best validation MRR after so many seconds."""
        return max((best for at, best in self.curve if at <= seconds), default=0.0)


def _value(event: Mapping[str, Any]) -> float | None:
    """Best validation MRR of the trial that an event reports; None where it reports none, or the trial failed."""
    if event["event"] == "report":
        return float(event["numbers"]["best_mrr"])
    if event["event"] == "tell" and event["value"] is not None:
        return float(event["value"])
    return None


def ratio(ours: Found, other: Found) -> float | None:
    """Our time to the other's final value, over the other's time to it; None where we never reached it."""
    mine, its = ours.reached(other.final), other.reached(other.final)
    return None if mine is None or its is None else mine / its


def _share(ours: Found, other: Found) -> float | None:
    """Our time to the other's final value, over all the time that the other was given: it cannot know that it is done."""
    mine = ours.reached(other.final)
    return None if mine is None else mine / other.seconds


def mean_of(runs: Sequence[Found]) -> Found:
    """The mean over the seeds of the best value so far, at each moment when one of them changes."""
    times = sorted({at for run in runs for at, _ in run.curve})
    curve = [(at, statistics.mean(run.best_at(at) for run in runs)) for at in times]
    return Found(curve, sum(run.trials for run in runs), sum(run.pruned for run in runs), runs[0].seconds)


def main(
    mkgy: Annotated[Path | None, typer.Option(help="Folder of MKG-Y; without it the bundled data alone.")] = None,
    bundled: Annotated[bool, typer.Option(help="On the bundled data, too.")] = True,
    budget: Annotated[str, typer.Option(help="Wall time of each rival and graph.")] = "20m",
    bundled_budget: Annotated[str | None, typer.Option(help="Another one for the bundled data.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeats with other seeds.")] = 1,
    bundled_seeds: Annotated[int | None, typer.Option(min=1, help="Other repeats on the bundled data.")] = None,
    rivals: Annotated[str, typer.Option(help="Which, by comma.")] = f"{OURS},{TPE},{RANDOM},{DRAWN}",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    cache: Annotated[Path, typer.Option(help="Studies of the rivals.")] = Path(".cache/efficiency"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="More settings of all rivals.")] = None,
) -> None:
    """Run what is missing, and write the table, the plot and the JSON."""
    seconds = parse_duration(budget)
    sets = {"MKG-Y": (str(mkgy.resolve()), seconds, seeds)} if mkgy is not None else {}
    if bundled or not sets:
        sets["unicode"] = ("unicode", parse_duration(bundled_budget or budget), bundled_seeds or seeds)
    names = rivals.split(",")
    found = {
        title: compared(names, title, data, limit, repeats, cache, settings or [])
        for title, (data, limit, repeats) in sets.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "search_efficiency.json").write_text(json.dumps(_facts(found), indent=1) + "\n", encoding="utf-8")
    _plot(found, out / "img" / "search_efficiency.png")
    (out / "search_efficiency.md").write_text("\n".join(_page(found, settings or [])), encoding="utf-8")
    print(f"written: {out / 'search_efficiency.md'}")


def compared(
    names: Sequence[str], title: str, data: str, seconds: float, repeats: int, cache: Path, more: Sequence[str]
) -> dict[str, list[Found]]:
    """What each rival found, one a seed; those that have not finished are run, side by side.

    Args:
        names: of the rivals.
        title: of the graph, in the names of the studies.
        data: folder or name of the graph.
        seconds: that each has.
        repeats: seeds.
        cache: folder of the studies.
        more: settings of all.
    """
    found: dict[str, list[Found]] = {name: [] for name in names}
    for seed in range(repeats):
        studies = {name: cache / f"{title}-{seconds:.0f}-{name}-{seed}" for name in names}
        _run(studies, data, seconds, seed, more)
        for name, folder in studies.items():
            found[name].append(Found.of(read_events(folder / JOURNAL_FILE)[0], seconds))
    return found


def _run(studies: Mapping[str, Path], data: str, seconds: float, seed: int, more: Sequence[str]) -> None:
    """Run the rivals that have not finished, side by side."""
    children = []
    for name, folder in studies.items():
        if (folder / "done").exists():
            continue
        child = [sys.executable, "-m", "benchmarks.efficiency_one", str(folder), data, str(seconds), str(seed), name]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            children.append((name, subprocess.Popen([*child, *more], stdout=log, stderr=subprocess.STDOUT, env={**os.environ})))
    failed = [name for name, child in children if child.wait() != 0]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see log.txt in {[str(studies[name]) for name in failed]}")


def settings_of(folder: Path, data: str, seconds: float, seed: int, rival: str, more: Mapping[str, Any]) -> SearchConfig:
    """The search of a rival: without end but for its time."""
    return SearchConfig.build({
        "data": data, "study": folder.name, "storage": folder.parent, "trials": 10_000, "budget_seconds": seconds,
        "seed": seed + (1000 if rival == RANDOM else 0),
        "concurrency": 1, "cpus_per_worker": 1, "keep": 0, "overrides": {**SETTINGS, **more}, **RIVALS[rival],
        "tracking_uri": f"sqlite:///{folder.resolve()}/mlflow.db",
    })


def _facts(found: Mapping[str, Mapping[str, Sequence[Found]]]) -> dict[str, Any]:
    """Per data set the ratios (medians over the seeds) with their raw figures."""
    facts: dict[str, Any] = {}
    for title, rivals in found.items():
        own = rivals[OURS]
        entry: dict[str, Any] = {"budget_seconds": own[0].seconds}
        for name, runs in rivals.items():
            entry[name] = [
                {"final_mrr": run.final, "trials": run.trials, "pruned": run.pruned, "curve": run.curve} for run in runs
            ]
            if name != OURS:
                ratios = [ratio(mine, other) for mine, other in zip(own, runs, strict=True)]
                entry[f"time_ratio_vs_{name}"] = _median(ratios)
                entry[f"time_ratio_of_means_vs_{name}"] = ratio(mean_of(own), mean_of(runs))
                shares = [_share(mine, other) for mine, other in zip(own, runs, strict=True)]
                entry[f"share_of_time_vs_{name}"] = _median(shares)
                entry[f"seconds_to_final_of_{name}"] = [
                    [mine.reached(other.final), other.reached(other.final)] for mine, other in zip(own, runs, strict=True)
                ]
        facts[title] = entry
    return {**facts, "machine": machine(), "date": str(date.today())}


def _median(values: Sequence[float | None]) -> float | None:
    """Of the seeds; None where one of them has none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def _page(found: Mapping[str, Mapping[str, Sequence[Found]]], more: Sequence[str]) -> list[str]:
    facts = _facts(found)
    text = [
        "# How soon a search finds what plainer searches find", "",
        "Best validation MRR over wall time, the same trainable, space and time for all; the rivals ran side by side, one "
        "trial of one thread at a time each.", "",
        *(f"- `{name}`: {SAID[name]}" for name in next(iter(found.values()))), "",
        "On each graph the start points that were found on that graph itself are left out. The default settings were chosen "
        "with the validation splits of MKG-Y, MKG-W and the bundled data in view, so there the first point is no surprise; "
        f"`{DRAWN}` does without. Chance draws with a seed of its own; the others with equal seeds draw the same first points.",
        "",
        "![best validation MRR over time](img/search_efficiency.png)", "",
    ]
    for title, rivals in found.items():
        seconds = next(iter(rivals.values()))[0].seconds
        marks = [seconds / 8, seconds / 4, seconds / 2, seconds]
        head = ["search", *(f"after {mark:.0f} s" for mark in marks), "trials", "stopped early"]
        head += ["time ratio", "of each seed", "of the mean curves", "share of its time"]
        rows = []
        for name, runs in rivals.items():
            cells = [spread([run.best_at(mark) for run in runs]) for mark in marks]
            cells += [_listed([run.trials for run in runs]), _listed([run.pruned for run in runs])]
            for kind in ("time_ratio", "", "time_ratio_of_means", "share_of_time"):
                known = facts[title].get(f"{kind}_vs_{name}")
                each = [ratio(mine, other) for mine, other in zip(rivals[OURS], runs, strict=True)]
                cells.append("" if name == OURS else _said(known) if kind else ", ".join(map(_said, each)))
            rows.append([name, *cells])
        text += [f"## {title}", "", *table(head, rows, markup=True)]
    host = facts["machine"]
    text += [
        "Time ratio: seconds until ours was as good as the other at its end, over the seconds that the other needed for it "
        f"(median over seeds, then each); the aim against `{TPE}` is at most 0.33. Of the mean curves: the same of the best "
        "value so far, averaged over the seeds; equal settings end differently with another seed, so that the ratio of one "
        "alone is chance for a good part. Share of its time: the same over all the seconds that "
        "the other ran, as it cannot know beforehand that it will find no better.", "",
        f"Command: `python -m benchmarks.efficiency`, {', '.join(_spent(title, found[title][OURS]) for title in found)}"
        f"{' with ' + ', '.join(more) if more else ''}; settings "
        f"of all: {', '.join(f'{key}={value}' for key, value in SETTINGS.items())}; {host['cpu']}, {host['cores']} cores, "
        f"torch {host['torch']}; {facts['date']}.", "",
    ]
    return text


def _spent(title: str, runs: Sequence[Found]) -> str:
    """`MKG-Y 3 times 720 s`."""
    return f"{title} {len(runs)} times {runs[0].seconds:.0f} s" if len(runs) > 1 else f"{title} {runs[0].seconds:.0f} s"


def _plot(found: Mapping[str, Mapping[str, Sequence[Found]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(found), figsize=(6 * len(found), 4), squeeze=False)
    for axis, (title, rivals) in zip(axes[0], found.items(), strict=True):
        for number, (name, runs) in enumerate(rivals.items()):
            for run in runs:
                times = [at for at, _ in run.curve] + [run.seconds]
                values = [best for _, best in run.curve] + [run.final]
                label = name if run is runs[0] else None
                axis.step(times, values, where="post", color=f"C{number}", label=label)
        axis.set(title=title, xlabel="seconds", ylabel="best validation MRR")
        axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def _said(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "not reached"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app()
