"""The start points of a search: a few settings, one of which is good on almost any graph, chosen from recorded trials.

    python -m benchmarks.portfolio record ../shared/data        # hours; goes on where it was interrupted
    python -m benchmarks.portfolio choose                       # seconds; results/portfolio.md, and the lines of START_POINTS

`record` trains the same candidates on every graph: the default settings, the start points of this version, and settings that
are drawn at random. Their learning curves are kept in `benchmarks/portfolio_trials.jsonl`. `choose` picks greedily: in each
step the candidate with which the best of the chosen ones comes closest to the best candidate of each graph, on average, in the
same time. Whether that carries over to a new graph is measured by leaving each graph out: the choice from the others, on it. At
least one chosen candidate trains with Adagrad and N3. Test is not opened.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.efficiency import SETTINGS
from benchmarks.graphs import GRAPHS, small_graph
from benchmarks.results import FinishedRuns
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.errors import DataError, DivergedError
from imf_core.files.atomic import atomic_write_text
from imf_core.files.markdown import table
from imf_core.tasks.registry import task_named
from tune.space.space import SearchSpace
from tune.space.start_points import START_POINTS
from tune.study.history import History
from tune.study.proposals import Proposals

RECORDED = Path(__file__).parent / "portfolio_trials.jsonl"
SIZE, _MOST_BYTES = 5, 2**20
_DIGITS = 4
app = typer.Typer(add_completion=False, no_args_is_help=True)


@dataclass(frozen=True)
class Recorded:
    """A candidate's training on a graph.

    Args:
        graph: its name.
        candidate: the candidate's name, the same on all graphs.
        params: its settings.
        curve: validation MRR of each epoch; empty if it diverged.
        seconds: of an epoch.
    """

    graph: str
    candidate: str
    params: Mapping[str, Any]
    curve: Sequence[float]
    seconds: float

    def within(self, seconds: float) -> float:
        """Best MRR within some time; 0 if no epoch ended by then."""
        epochs = int(seconds / self.seconds + 1e-9) if self.seconds > 0 else len(self.curve)
        return max(self.curve[: max(epochs, 0)], default=0.0)


def candidates(count: int) -> dict[str, dict[str, Any]]:
    """The settings that are recorded, by name: the default, the start points of this version, and random ones, `count` in all.

    They are points of the space of a graph without modalities: what else is searched does not carry over from graph to graph.
    """
    space = SearchSpace.default(Config().updated(SETTINGS), ("structure",), list(SETTINGS))
    named = {"default": space.default_point()}
    named |= {f"start {number}": space.near(point.values) for number, point in enumerate(START_POINTS["link"], start=1)}
    drawn, history = Proposals(space, 0, "random"), History()
    return {**named, **{f"drawn {n}": drawn.draw(history, n) for n in range(max(0, count - len(named)))}}


def recorded(file: Path = RECORDED) -> list[Recorded]:
    """The trials of a file; empty if there is none.

    Raises:
        DataError: it is larger than a file of this repository may be.
    """
    if file.exists() and file.stat().st_size > _MOST_BYTES:
        raise DataError.at(file, None, f"is larger than {_MOST_BYTES:,} bytes", remedy="record fewer candidates")
    kept = Recorded.__dataclass_fields__
    return [Recorded(**{name: run[name] for name in kept}) for run in FinishedRuns(file).runs]


def quality(trials: Sequence[Recorded]) -> dict[str, dict[str, float]]:
    """What each candidate reaches on each graph: candidate -> graph -> share of the best candidate's MRR there, 0..1.

    All candidates of a graph get the same time: the median of what their trials took. One that was not recorded on every graph
    is left out.
    """
    by_graph: dict[str, list[Recorded]] = {}
    for trial in trials:
        by_graph.setdefault(trial.graph, []).append(trial)
    shares: dict[str, dict[str, float]] = {}
    for graph, own in by_graph.items():
        seconds = statistics.median([trial.seconds * len(trial.curve) for trial in own if trial.curve] or [0.0])
        reached = {trial.candidate: trial.within(seconds) for trial in own}
        best = max(reached.values()) or 1.0
        for name, value in reached.items():
            shares.setdefault(name, {})[graph] = value / best
    return {name: values for name, values in shares.items() if len(values) == len(by_graph)}


def choose(
    shares: Mapping[str, Mapping[str, float]], size: int = SIZE, without: Collection[str] = (), needed: Collection[str] = ()
) -> list[str]:
    """The names of the chosen candidates, in the order of choice; ties go to the earlier candidate.

    Args:
        shares: from `quality`.
        size: at most so many.
        without: graphs that do not count.
        needed: one of these is among the chosen, where there is any.
    """
    chosen: list[str] = []
    graphs = [graph for graph in next(iter(shares.values()), {}) if graph not in without]
    while len(chosen) < min(size, len(shares)) and graphs:
        left = [name for name in shares if name not in chosen]
        if len(chosen) == size - 1 and not set(needed) & set(chosen):
            left = [name for name in left if name in needed] or left
        chosen.append(max(left, key=lambda name: (_score(shares, [*chosen, name], graphs), -left.index(name))))
    return chosen


def start_values(graph: str, file: Path = RECORDED) -> list[dict[str, Any]] | None:
    """The settings of the portfolio for a search of a graph that is left out of the choice; None without recorded trials."""
    trials = recorded(file)
    if not trials:
        return None
    shares, params = quality(trials), {trial.candidate: dict(trial.params) for trial in trials}
    return [params[name] for name in choose(shares, without=(graph,), needed=_adagrad(trials))]


@app.command("record")
def record(
    shared: Annotated[Path, typer.Argument(help="Folder that holds the graphs.")],
    graphs: Annotated[str, typer.Option(help="Comma-separated graphs.")] = ",".join(GRAPHS),
    count: Annotated[int, typer.Option(min=1, help="Candidates on each graph.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each.")] = SETTINGS["train.max_epochs"],
    file: Annotated[Path, typer.Option(help="File of the recorded trials.")] = RECORDED,
    cache: Annotated[Path, typer.Option(help="Folder of the smaller graphs.")] = Path(".cache/efficiency"),
    settings: Annotated[list[str] | None, typer.Option("--set", help="Additional settings of all candidates.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each training.")] = 1,
) -> None:
    """Train the candidates that are not recorded yet, one after another."""
    torch.set_num_threads(threads)
    runs, task = FinishedRuns(file), task_named("link")
    for graph in graphs.split(","):
        flat = {**SETTINGS, **parse_overrides(settings or []), "data.path": small_graph(graph, shared, cache)}
        base = task.config().updated({**flat, "train.max_epochs": epochs, "train.patience": epochs})
        data, _ = task.read(base, strict=False)
        space = SearchSpace.default(base, task.branches(base, data), list(SETTINGS))
        for name, point in candidates(count).items():
            if runs.find({"graph": graph, "candidate": name}) is not None:
                continue
            config, curve, began = space.config_for(space.near(point)), list[float](), time.monotonic()
            try:
                task.fit(task.build(config, data), data, config, lambda report, curve=curve: curve.append(report.metrics.mrr))
            except DivergedError:
                curve = []
            seconds = (time.monotonic() - began) / max(1, len(curve))
            runs.add({
                "graph": graph, "candidate": name, "params": {key: _rounded(value) for key, value in point.items()},
                "curve": [round(value, _DIGITS) for value in curve], "seconds": round(seconds, 3),
            })
            print(f"{graph}: {name}: best MRR {max(curve, default=0.0):.4f}, {seconds:.1f} s an epoch", flush=True)


@app.command("choose")
def report(
    size: Annotated[int, typer.Option(min=1, help="Start points.")] = SIZE,
    file: Annotated[Path, typer.Option(help="File of the recorded trials.")] = RECORDED,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("results"),
) -> None:
    """Choose, write `portfolio.md`, and print the lines of START_POINTS."""
    trials = recorded(file)
    if not trials:
        raise DataError.at(file, None, "there are no recorded trials", remedy="python -m benchmarks.portfolio record SHARED")
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "portfolio.md", "\n".join(page_of(trials, size)) + "\n")
    shares, params = quality(trials), {trial.candidate: dict(trial.params) for trial in trials}
    for name in choose(shares, size, needed=_adagrad(trials)):
        best = max(shares[name], key=shares[name].__getitem__)
        print(f"        StartPoint({best!r}, {json.dumps(params[name])}),  # {name}")


def page_of(trials: Sequence[Recorded], size: int) -> list[str]:
    """The page: what is chosen from all graphs, and what is chosen for each graph from the others and reaches on it."""
    shares, needed = quality(trials), _adagrad(trials)
    graphs = list(next(iter(shares.values())))
    chosen = choose(shares, size, needed=needed)
    rows = [[name, *(f"{shares[name][graph]:.3f}" for graph in graphs)] for name in chosen]
    rows.append(["best of them", *(f"{_score(shares, chosen, [graph]):.3f}" for graph in graphs)])
    apart = {graph: choose(shares, size, without=(graph,), needed=needed) for graph in graphs}
    rows.append(["chosen without this graph", *(f"{_score(shares, apart[graph], [graph]):.3f}" for graph in graphs)])
    first = [f"{shares[apart[graph][0]][graph]:.3f}" if apart[graph] else "" for graph in graphs]
    rows.append(["the first of these", *first])
    return [
        "# Start points of a search", "",
        f"Of {len(shares)} candidates that were trained on each of {len(graphs)} graphs, {len(chosen)} are chosen greedily. "
        "Figures: best validation MRR within the same time, as a share of that of the graph's best candidate.", "",
        *table(["candidate", *graphs], rows),
        "`python -m benchmarks.portfolio choose`; the candidates and their learning curves are in "
        "`benchmarks/portfolio_trials.jsonl`.",
    ]


def _score(shares: Mapping[str, Mapping[str, float]], names: Sequence[str], graphs: Sequence[str]) -> float:
    return float(np.mean([max((shares[name][graph] for name in names), default=0.0) for graph in graphs]))


def _adagrad(trials: Sequence[Recorded]) -> set[str]:
    """Candidates that train with Adagrad, which brings N3 along."""
    return {trial.candidate for trial in trials if trial.params.get("train.optimizer") == "adagrad"}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    app()
