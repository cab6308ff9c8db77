"""Efficiency of the search: ours against plainer ones with the same trainable, space and time.

    python -m benchmarks.efficiency ../shared/data          # hours; writes results/search_efficiency.{json,md} and the picture
    python -m benchmarks.efficiency ../shared/data --minutes 15,30,60      # and what so many minutes buy, in test MRR

Rivals of a seed run side by side, each with one trial of one thread at a time, so that other load on the machine slows all of
them. The best validation MRR over time is read from each rival's journal, from the beginning of its session, Ray's start
included. What a rival has found is judged by its winner's settings, trained again with two seeds that no search has used. Start
points of `ours` and `tpe-started` are chosen without the graph itself (`benchmarks.portfolio`). Searches that are compared open
no test split; the runs of `--minutes` open theirs once each, as every study does.

Everything that has finished stays in `--cache`: an interrupted benchmark goes on after the last finished run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.graphs import COMPARED, small_graph
from benchmarks.results import host_line, spread
from imf_core.files.markdown import table
from tune.durations import parse_duration
from tune.report.files import machine
from tune.settings import SearchConfig
from tune.study.journal import JOURNAL_FILE, read_events

OURS, TPE, RANDOM, DRAWN, STARTED, ONE_EPOCH, SEEDS, PYKEEN = (
    "ours", "tpe", "random", "ours-drawn", "tpe-started", "one-epoch", "seeds", "pykeen"
)
RIVALS: dict[str, dict[str, Any]] = {
    OURS: {"first": "shipped"},
    TPE: {"scheduler": "none", "first": "drawn"},
    RANDOM: {"scheduler": "none", "first": "drawn", "sampler": "random"},
    DRAWN: {"first": "drawn"},
    STARTED: {"scheduler": "none", "first": "shipped"},
    ONE_EPOCH: {"scheduler": "race", "first": "shipped", "sampler": "random"},
    "ours-gp": {"first": "shipped", "sampler": "gp"},
    "ours-asha": {"first": "shipped", "scheduler": "asha"},
    SEEDS: {}, PYKEEN: {},
}
TITLES = {
    OURS: "the default settings and the start points, then points near the best ones and from TPE; race and resume",
    TPE: "Optuna's TPE without early stopping",
    RANDOM: "random search without early stopping",
    DRAWN: "as `ours` without start points",
    STARTED: "Optuna's TPE without early stopping, which begins with the same start points",
    ONE_EPOCH: "the start points and random points up to 20 in all, one epoch each; then they are finished, the best first",
    "ours-gp": "as `ours`, with the Gaussian process instead of TPE",
    "ours-asha": "as `ours`, with ASHA instead of race and resume",
    SEEDS: "the default settings with one seed after another; what they answer together counts",
    PYKEEN: "PyKEEN's hyperparameter search of ComplEx with its own settings, in an environment of its own",
}
DEFAULT = f"{OURS},{TPE},{RANDOM},{STARTED},{ONE_EPOCH},{SEEDS}"
ONE_EPOCH_TRIALS = 20
SETTINGS = {"model.dim": 64, "train.max_epochs": 8, "train.precision": "auto"}
REACHED = 0.99  # share of a rival's value that counts as reached: seeds differ by as much
FRESH_SEEDS = (7001, 7002)
RETRAINED_FILE, CURVE_FILE = "retrained.json", "curve.json"
_DRAWS, _LEVEL = 2000, 0.95
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one search.

    Args:
        curve: (seconds since the start, best validation MRR so far), at each improvement.
        trials, pruned: number of trials that were started, and that were stopped early or paused for good.
        seconds: time budget.
        each: best validation MRR of each trial in the order in which they started, 0 for a trial without a report.
        worth: validation MRR of the winner's settings with fresh seeds, mean; of pooled seeds that of the pool; None: unknown.
        pool: validation MRR of the kept models together; None: unknown.
    """

    curve: Curve
    trials: int
    pruned: int
    seconds: float
    each: tuple[float, ...] = ()
    worth: float | None = None
    pool: float | None = None

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
        paused = {event["trial"]: event["event"] for event in events if event["event"] in ("pause", "resume")}
        stopped = {event["trial"] for event in events if event["event"] == "tell" and event.get("stopped")}
        waiting = {trial for trial, last in paused.items() if last == "pause"}
        return cls(curve, len(each), len(stopped | waiting), seconds, tuple(each.values()))

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


def time_ratio(ours: Outcome, other: Outcome, goal: float) -> float:
    """Our seconds to a value over the other's.

    Who never reaches the value counts with the whole time (the other), or twice the whole time (ours).
    """
    mine, its = ours.seconds_to(goal), other.seconds_to(goal)
    return (2 * ours.seconds if mine is None else mine) / (other.seconds if its is None else its)


def goal_of(rival: str, runs: Sequence[Outcome]) -> float:
    """The value that counts as reached: nearly the mean of what the rival's winners are worth, on one graph.

    Of pooled seeds, which no single model compares with, it is the best value of a single one.
    """
    return REACHED * statistics.fmean(run.final if run.worth is None or rival == SEEDS else run.worth for run in runs)


def interval(values: Sequence[float], middle: Any) -> tuple[float, float, float]:
    """The median or mean of values and the ends of its 95 % bootstrap interval: pairs of a graph and a seed are resampled."""
    known = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(known), size=(_DRAWS, len(known)))
    resampled = middle(known[drawn], axis=1)
    low, high = np.quantile(resampled, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return float(middle(known)), float(low), float(high)


def summary_of(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> dict[str, Any]:
    """For each rival of `ours` the time ratio and the difference of what the winners are worth, over all graphs and by graph.

    Args:
        outcomes: by graph, by rival, one a seed.
    """
    ratios: dict[str, dict[str, list[float]]] = {}
    leads: dict[str, dict[str, list[float]]] = {}
    for graph, rivals in outcomes.items():
        for name, runs in rivals.items():
            if name == OURS or not runs:
                continue
            goal, pairs = goal_of(name, runs), list(zip(rivals[OURS], runs, strict=False))
            ratios.setdefault(name, {})[graph] = [time_ratio(mine, other, goal) for mine, other in pairs]
            found = [(mine.pool if name == SEEDS else mine.worth, other.worth) for mine, other in pairs]
            known = [(mine, other) for mine, other in found if mine is not None and other is not None]
            leads.setdefault(name, {})[graph] = [mine - other for mine, other in known]
    return {
        name: {
            **_figures([ratio for values in by_graph.values() for ratio in values],
                       [lead for values in leads[name].values() for lead in values]),
            "by_graph": {graph: _figures(values, leads[name][graph]) for graph, values in by_graph.items()},
        }
        for name, by_graph in ratios.items()
    }


def _figures(ratios: Sequence[float], leads: Sequence[float]) -> dict[str, float | None]:
    median, low, high = interval(ratios, np.median)
    figures: dict[str, float | None] = {"time_ratio_median": median, "time_ratio_lower": low, "time_ratio_upper": high}
    lead = interval(leads, np.mean) if leads else (None, None, None)
    names = ("final_difference", "final_difference_lower", "final_difference_upper")
    return {**figures, **dict(zip(names, lead, strict=True))}


def main(
    shared: Annotated[Path | None, typer.Argument(help="Folder that holds the graphs; default: the bundled one only.")] = None,
    graphs: Annotated[str | None, typer.Option(help="Comma-separated graphs; default: all that are compared.")] = None,
    budget: Annotated[str, typer.Option(help="Wall time of each rival on each graph.")] = "12m",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 5,
    rivals: Annotated[str, typer.Option(help="Comma-separated rivals.")] = DEFAULT,
    minutes: Annotated[str, typer.Option(help="Also: what a whole search of so many minutes reaches on test.")] = "",
    pykeen: Annotated[str, typer.Option(help="Python of an environment that has PyKEEN; adds the rival `pykeen`.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    cache: Annotated[Path, typer.Option(help="Folder of the rivals' studies.")] = Path(".cache/efficiency"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="Additional settings of all rivals.")] = None,
) -> None:
    """Run the missing searches, and write the page, the plot and the JSON file."""
    seconds, more = parse_duration(budget), settings or []
    chosen = (graphs or (",".join(COMPARED) if shared is not None else COMPARED[-1])).split(",")
    names = list(dict.fromkeys([OURS, *rivals.split(","), *([PYKEEN] if pykeen else [])]))
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for graph in chosen:
        data = small_graph(graph, shared or Path(), cache)
        outcomes[graph] = compare(names, graph, data, seconds, seeds, cache, more, pykeen, retrains=True)
    bought = {
        graph: {length: buy(graph, small_graph(graph, shared or Path(), cache), float(length), cache, more)
                for length in filter(None, minutes.split(","))}
        for graph in chosen
    }
    out.mkdir(parents=True, exist_ok=True)
    facts = _facts(outcomes, {graph: values for graph, values in bought.items() if values}, more)
    (out / "search_efficiency.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _plot(outcomes, out / "img" / "search_efficiency.png")
    (out / "search_efficiency.md").write_text("\n".join(_page(outcomes, facts)) + "\n", encoding="utf-8")
    print(f"written: {out / 'search_efficiency.md'}")


def compare(
    names: Sequence[str], title: str, data: str, seconds: float, repeats: int, cache: Path, more: Sequence[str],
    pykeen: str = "", *, retrains: bool = False,
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
        pykeen: Python of the rival `pykeen`.
        retrains: train the winner of each search again with fresh seeds.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for seed in range(repeats):
        studies = {name: cache / f"{title}-{seconds:.0f}-{name}-{seed}" for name in names}
        _run(studies, data, seconds, seed, more, pykeen, retrains)
        for name, folder in studies.items():
            outcomes[name].append(outcome_in(folder, seconds))
    return outcomes


def outcome_in(folder: Path, seconds: float) -> Outcome:
    """The outcome of a finished rival: from its journal, or from the curve that a rival without one has left."""
    again = json.loads((folder / RETRAINED_FILE).read_text()) if (folder / RETRAINED_FILE).exists() else {}
    worth = {"worth": again.get("mrr"), "pool": again.get("pool")}
    if (folder / CURVE_FILE).exists():
        left = json.loads((folder / CURVE_FILE).read_text())
        curve = [(float(at), float(value)) for at, value in left["curve"] if at <= seconds]
        best = [pair for place, pair in enumerate(curve) if pair[1] > max((v for _, v in curve[:place]), default=0.0)]
        return Outcome(best, int(left["trials"]), 0, seconds, **worth)
    return replace(Outcome.of(read_events(folder / JOURNAL_FILE)[0], seconds), **worth)


def _run(
    studies: Mapping[str, Path], data: str, seconds: float, seed: int, more: Sequence[str], pykeen: str, retrains: bool
) -> None:
    """Run the searches that have not finished, side by side, and then retrain their winners, side by side too."""
    steps = [("done", [])] + ([(RETRAINED_FILE, ["--retrain"])] if retrains else [])
    for mark, flags in steps:
        children = []
        for name, folder in studies.items():
            if (folder / mark).exists():
                continue
            arguments = [str(folder), data, str(seconds), str(seed), name, *more]
            module = [sys.executable, "-m", "benchmarks.efficiency_one", *flags, *arguments]
            if name == PYKEEN:
                script = str(Path(__file__).with_name("efficiency_pykeen.py"))
                module = [pykeen, script, str(folder), as_tsv(data, folder.parent), str(seconds), str(seed)]
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("a") as log:
                process = subprocess.Popen(module, stdout=log, stderr=subprocess.STDOUT, env={**os.environ})
            children.append((name, process))
        failed = [name for name, child in children if child.wait() != 0]
        if failed:
            raise SystemExit(f"failed: {', '.join(failed)}; see log.txt in {[str(studies[name]) for name in failed]}")


def as_tsv(data: str, cache: Path) -> str:
    """A graph folder of tab-separated names: the graph itself, or a copy of the bundled one, made once."""
    target = cache / "graphs" / f"{data}-tsv"
    if (Path(data) / "train.tsv").exists():
        return data
    if not target.exists():
        subprocess.run([sys.executable, "-m", "imf_core.cli", "convert", data, str(target), "--to", "tsv"], check=True)
    return str(target)


def settings_of(folder: Path, data: str, seconds: float, seed: int, rival: str, more: Mapping[str, Any]) -> SearchConfig:
    """The search of a rival, limited by its time only."""
    return SearchConfig.build({
        "data": data, "study": folder.name, "storage": folder.parent,
        "trials": ONE_EPOCH_TRIALS if rival == ONE_EPOCH else 10_000, "budget_seconds": seconds,
        "seed": seed + (1000 if rival == RANDOM else 0),
        "concurrency": 1, "cpus_per_worker": 1, "keep": 3 if rival == OURS else 0, "overrides": {**SETTINGS, **more},
        "tracking_uri": f"sqlite:///{folder.resolve()}/mlflow.db", **RIVALS[rival],
    })


def buy(graph: str, data: str, minutes: float, cache: Path, more: Sequence[str]) -> dict[str, float | None]:
    """Test MRR of the best model and of the pool after a whole search of so many minutes; a finished one is not repeated."""
    folder = cache / f"{graph}-buys-{minutes:g}m"
    if not (folder / "summary.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        sets = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
        sets += [part for setting in more for part in ("--set", setting)]
        command = [
            sys.executable, "tune/search.py", "--data", data, "--study", folder.name, "--storage", str(folder.parent.resolve()),
            "--trials", "10000", "--budget", f"{minutes * 60:.0f}s", "--seeds", "2", *sets,
            *(["--resume"] if (folder / JOURNAL_FILE).exists() else []),
        ]
        with (folder / "log.txt").open("a") as log:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True, cwd=Path(__file__).parents[1])
    told = json.loads((folder / "summary.json").read_text())
    pool = (told.get("pool") or {}).get("test") or {}
    return {"test_mrr": told["test"]["mrr"]["mean"], "pool_test_mrr": pool.get("mrr"), "trials": sum(told["trials"].values())}


def _facts(
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]], bought: Mapping[str, Any], more: Sequence[str]
) -> dict[str, Any]:
    """All figures, with the raw ones."""
    raw = {
        graph: {
            "budget_seconds": rivals[OURS][0].seconds,
            **{name: [
                {"final_mrr": run.final, "worth": run.worth, "trials": run.trials, "pruned": run.pruned, "curve": run.curve}
                for run in runs
            ] for name, runs in rivals.items()},
        }
        for graph, rivals in outcomes.items()
    }
    return {
        "summary": summary_of(outcomes), "graphs": raw, "minutes": dict(bought), "settings": {**SETTINGS, "more": list(more)},
        "machine": machine(), "date": str(date.today()),
    }


def _page(outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]], facts: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(outcomes.values())))
    text = [
        "# Efficiency of the search", "",
        "Best validation MRR over wall time, with the same trainable, space and time for all rivals. Those of a seed ran side "
        "by side, each with one trial of one thread at a time.", "",
        *(f"- `{name}`: {TITLES[name]}" for name in names), "",
        "![best validation MRR over time](img/search_efficiency.png)", "",
        f"Time ratio: seconds until `ours` has {REACHED:.0%} of what the rival's winners are worth on the graph, over the "
        "seconds that the rival needs for it. Worth: mean validation MRR of a winner's settings with two seeds that no search "
        "has used. Intervals: 95 %, by resampling the pairs of a graph and a seed.", "",
    ]
    rows = [
        [name, *_interval_text(one, "time_ratio_median", "time_ratio_lower", "time_ratio_upper", "{:.2f}"),
         *_interval_text(one, "final_difference", "final_difference_lower", "final_difference_upper", "{:+.4f}"),
         *(f"{one['by_graph'][graph]['time_ratio_median']:.2f}" for graph in outcomes)]
        for name, one in facts["summary"].items()
    ]
    head = ["against", "time ratio", "worth of ours minus the rival's", *(f"time ratio on {graph}" for graph in outcomes)]
    text += table(head, rows)
    for graph, rivals in outcomes.items():
        seconds = rivals[OURS][0].seconds
        marks = [seconds / 8, seconds / 4, seconds / 2, seconds]
        head = ["search", *(f"after {mark:.0f} s" for mark in marks), "worth", "trials", "stopped early"]
        rows = []
        for name, runs in rivals.items():
            worths = [run.worth for run in runs if run.worth is not None]
            cells = [spread([run.best_at(mark) for run in runs]) for mark in marks] + [spread(worths) if worths else ""]
            counts = ([run.trials for run in runs], [run.pruned for run in runs])
            rows.append([name, *cells, *(", ".join(map(str, each)) for each in counts)])
        text += [f"## {graph}", "", *table(head, rows, markup=True)]
    if facts["minutes"]:
        text += ["## What minutes buy", "", *table(
            ["graph", "minutes", "test MRR", "test MRR of the pool", "trials"],
            [[graph, length, *(f"{one[key]:.4f}" if one[key] is not None else "" for key in ("test_mrr", "pool_test_mrr")),
              str(one["trials"])] for graph, lengths in facts["minutes"].items() for length, one in lengths.items()],
        )]
    more = dict(facts["settings"])
    extra = more.pop("more")
    text.append(
        f"Command: `python -m benchmarks.efficiency`, {len(next(iter(outcomes.values()))[OURS])} seeds; common settings: "
        f"{', '.join([*(f'{key}={value}' for key, value in more.items()), *extra])}; {host_line(facts['machine'])}; "
        f"{facts['date']}."
    )
    return text


def _interval_text(figures: Mapping[str, float | None], middle: str, low: str, high: str, form: str) -> list[str]:
    values = [figures[name] for name in (middle, low, high)]
    known = [form.format(value) for value in values if value is not None]
    return [f"{known[0]} [{known[1]}, {known[2]}]" if len(known) == len(values) else ""]


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


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app()
