"""Efficiency of the search: ours against Optuna's TPE without early stopping and random search, in equal time.

    python -m benchmarks.efficiency --mkgy ../shared/data/MKG-Y      # writes results/search_efficiency.{json,md,png}

All rivals have the same trainable, space and wall time. They run side by side on the same cores, each with one trial of one
thread at a time, so that other load on the machine slows all of them. The best validation MRR over time is read from each
rival's journal, from the beginning of its session, Ray's start included. No test split is opened.

An interrupted benchmark continues from the finished studies in `--cache`.
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

from benchmarks.results import host_line, spread
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
TITLES = {
    OURS: "the default settings, then start points from other graphs, then TPE; early stopping with a learned grace period",
    TPE: "Optuna's TPE without early stopping",
    RANDOM: "random search without early stopping",
    DRAWN: "as `ours` without start points: TPE with early stopping",
}
SETTINGS = {"model.dim": 64, "train.max_epochs": 8, "train.precision": "auto"}
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one search.

    Args:
        curve: (seconds since the start, best validation MRR so far), at each improvement.
        trials, pruned: number of trials that were started, and that were stopped early.
        seconds: time budget.
        each: best validation MRR of each trial in the order in which they started, 0 for a trial without a report.
    """

    curve: Curve
    trials: int
    pruned: int
    seconds: float
    each: tuple[float, ...] = ()

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]], seconds: float) -> Outcome:
        """The outcome in the events of a study's journal."""
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
        """Best validation MRR at the end; 0 if nothing was reported."""
        return self.curve[-1][1] if self.curve else 0.0

    def seconds_to(self, value: float) -> float | None:
        """Seconds until the best MRR was at least `value`; None if it never was."""
        return next((at for at, best in self.curve if best >= value), None)

    def best_of(self, trials: int) -> float | None:
        """Best validation MRR of the first trials; None if there were fewer."""
        return max(self.each[:trials]) if len(self.each) >= trials else None

    def best_at(self, seconds: float) -> float:
        """Best validation MRR after so many seconds."""
        return max((best for at, best in self.curve if at <= seconds), default=0.0)


def _value(event: Mapping[str, Any]) -> float | None:
    """Best validation MRR that an event reports of its trial; None if it reports none."""
    if event["event"] == "report":
        return float(event["numbers"]["best_mrr"])
    if event["event"] == "tell" and event["value"] is not None:
        return float(event["value"])
    return None


def ratio(ours: Outcome, other: Outcome) -> float | None:
    """Our time to the other's final value, divided by the other's time to it; None if we never reached it."""
    mine, its = ours.seconds_to(other.final), other.seconds_to(other.final)
    return None if mine is None or its is None else mine / its


def share(ours: Outcome, other: Outcome) -> float | None:
    """Our time to the other's final value, divided by the other's budget; None if we never reached it."""
    mine = ours.seconds_to(other.final)
    return None if mine is None else mine / other.seconds


def mean_of(runs: Sequence[Outcome]) -> Outcome:
    """The mean curve: the mean over the seeds of the best value so far, at each time when one of them improves."""
    times = sorted({at for run in runs for at, _ in run.curve})
    curve = [(at, statistics.mean(run.best_at(at) for run in runs)) for at in times]
    return Outcome(curve, sum(run.trials for run in runs), sum(run.pruned for run in runs), runs[0].seconds)


def main(
    mkgy: Annotated[Path | None, typer.Option(help="Folder of MKG-Y; default: the bundled data only.")] = None,
    bundled: Annotated[bool, typer.Option(help="Whether to run on the bundled data too.")] = True,
    budget: Annotated[str, typer.Option(help="Wall time of each rival on each graph.")] = "20m",
    bundled_budget: Annotated[str | None, typer.Option(help="The same on the bundled data, if different.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 1,
    bundled_seeds: Annotated[int | None, typer.Option(min=1, help="The same on the bundled data, if different.")] = None,
    rivals: Annotated[str, typer.Option(help="Comma-separated rivals.")] = f"{OURS},{TPE},{RANDOM},{DRAWN}",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    cache: Annotated[Path, typer.Option(help="Folder of the rivals' studies.")] = Path(".cache/efficiency"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="Additional settings of all rivals.")] = None,
) -> None:
    """Run the missing searches, and write the page, the plot and the JSON file."""
    seconds = parse_duration(budget)
    sets = {"MKG-Y": (str(mkgy.resolve()), seconds, seeds)} if mkgy is not None else {}
    if bundled or not sets:
        sets["unicode"] = ("unicode", parse_duration(bundled_budget or budget), bundled_seeds or seeds)
    names = rivals.split(",")
    outcomes = {
        title: compare(names, title, data, limit, repeats, cache, settings or [])
        for title, (data, limit, repeats) in sets.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "search_efficiency.json").write_text(json.dumps(_facts(outcomes), indent=1) + "\n", encoding="utf-8")
    _plot(outcomes, out / "img" / "search_efficiency.png")
    (out / "search_efficiency.md").write_text("\n".join(_page(outcomes, settings or [])), encoding="utf-8")
    print(f"written: {out / 'search_efficiency.md'}")


def compare(
    names: Sequence[str], title: str, data: str, seconds: float, repeats: int, cache: Path, more: Sequence[str]
) -> dict[str, list[Outcome]]:
    """The outcomes of each rival, one per seed; searches that have not finished are run side by side.

    Args:
        names: of the rivals.
        title: of the graph, for the names of the studies.
        data: folder or name of the graph.
        seconds: time budget of each search.
        repeats: number of seeds.
        cache: folder of the studies.
        more: additional settings of all rivals.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for seed in range(repeats):
        studies = {name: cache / f"{title}-{seconds:.0f}-{name}-{seed}" for name in names}
        _run(studies, data, seconds, seed, more)
        for name, folder in studies.items():
            outcomes[name].append(Outcome.of(read_events(folder / JOURNAL_FILE)[0], seconds))
    return outcomes


def _run(studies: Mapping[str, Path], data: str, seconds: float, seed: int, more: Sequence[str]) -> None:
    """Run the searches that have not finished, side by side."""
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
    """The search of a rival, limited by its time only."""
    return SearchConfig.build({
        "data": data, "study": folder.name, "storage": folder.parent, "trials": 10_000, "budget_seconds": seconds,
        "seed": seed + (1000 if rival == RANDOM else 0),
        "concurrency": 1, "cpus_per_worker": 1, "keep": 0, "overrides": {**SETTINGS, **more}, **RIVALS[rival],
        "tracking_uri": f"sqlite:///{folder.resolve()}/mlflow.db",
    })


def _facts(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> dict[str, Any]:
    """The ratios (medians over the seeds) by graph, with their raw figures."""
    facts: dict[str, Any] = {}
    for title, rivals in outcomes.items():
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
                shares = [share(mine, other) for mine, other in zip(own, runs, strict=True)]
                entry[f"share_of_time_vs_{name}"] = _median(shares)
                entry[f"seconds_to_final_of_{name}"] = [
                    [mine.seconds_to(other.final), other.seconds_to(other.final)]
                    for mine, other in zip(own, runs, strict=True)
                ]
        facts[title] = entry
    return {**facts, "machine": machine(), "date": str(date.today())}


def _median(values: Sequence[float | None]) -> float | None:
    """The median over the seeds; None if one of them has no value."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None


def _page(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]], more: Sequence[str]) -> list[str]:
    facts = _facts(outcomes)
    text = [
        "# Efficiency of the search", "",
        "Best validation MRR over wall time, with the same trainable, space and time for all rivals. They ran side by side, "
        "each with one trial of one thread at a time.", "",
        *(f"- `{name}`: {TITLES[name]}" for name in next(iter(outcomes.values()))), "",
        "On each graph, start points that come from that graph are left out. The default settings were chosen on the "
        "validation splits of MKG-Y, MKG-W and the bundled data, so the first point is expected to be good there; "
        f"`{DRAWN}` does not use them. `{RANDOM}` has its own random seed; the others draw the same first points for equal "
        "seeds.", "",
        "![best validation MRR over time](img/search_efficiency.png)", "",
    ]
    for title, rivals in outcomes.items():
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
                cells.append("" if name == OURS else _ratio_text(known) if kind else ", ".join(map(_ratio_text, each)))
            rows.append([name, *cells])
        text += [f"## {title}", "", *table(head, rows, markup=True)]
    spent = ", ".join(_spent(title, rivals[OURS]) for title, rivals in outcomes.items())
    text += [
        "Time ratio: seconds until `ours` was as good as the other rival at its end, divided by the seconds that the other "
        f"needed (median over seeds, then each seed); the goal against `{TPE}` is at most 0.33. Of the mean curves: the same "
        "ratio for the best value so far averaged over the seeds; results vary with the seed, so the ratio of a single seed is "
        "largely chance. Share of its time: the same divided by all the time that the other ran, since it cannot know that it "
        "will not improve any more.", "",
        f"Command: `python -m benchmarks.efficiency`, {spent}{' with ' + ', '.join(more) if more else ''}; common settings: "
        f"{', '.join(f'{key}={value}' for key, value in SETTINGS.items())}; {host_line(facts['machine'])}; {facts['date']}.",
        "",
    ]
    return text


def _spent(title: str, runs: Sequence[Outcome]) -> str:
    """`MKG-Y 3 times 720 s`."""
    return f"{title} {len(runs)} times {runs[0].seconds:.0f} s" if len(runs) > 1 else f"{title} {runs[0].seconds:.0f} s"


def _plot(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, len(outcomes), figsize=(6 * len(outcomes), 4), squeeze=False)
    for axis, (title, rivals) in zip(axes[0], outcomes.items(), strict=True):
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


def _ratio_text(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else "not reached"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app()
