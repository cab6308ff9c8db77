"""What race and resume is worth before a graph is searched: searches of made-up graphs on a simulated clock.

    python -m benchmarks.race_simulation --graphs 12          # seconds; prints a table

The searchers and schedulers are the product's own; only training is simulated. A made-up graph has settings at which it is
best, a learning curve for each setting (how high it ends, how fast it rises, how long an epoch takes, with the noise of a
seed), and start points that are the best settings of other such graphs. The spreads are those of the searches of
`results/search_efficiency.json`: an epoch of 8 s, 19 to 84 s for a whole trial, and a standard deviation of 1 % between seeds.
It decides between schedulers; it proves nothing about a real graph: that is what `benchmarks.efficiency` is for.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from ray.tune.search import Searcher

from benchmarks.efficiency import Outcome
from imf_core.config import Config
from tune.space.parameter import Parameter
from tune.space.space import SearchSpace
from tune.study.history import History
from tune.study.proposals import Proposals
from tune.study.race import REDUCTION, Race, rungs_of
from tune.study.race_search import search_of
from tune.study.sampler import make_sampler
from tune.study.schedule import make_scheduler
from tune.study.searcher import StudySearch

EPOCHS, EPOCH_SECONDS, START_SECONDS, NOISE = 8, 8.0, 0.5, 0.01
SPACE = SearchSpace.default(Config(), ("structure",))


@dataclass(frozen=True)
class Weights:
    """What a setting does: to the end of a curve, to how fast it rises, and to the seconds of an epoch, all as logarithms."""

    end: float
    pace: float
    seconds: float
    choices: tuple[tuple[float, float, float], ...] = ()


class MadeUpGraph:
    """Learning curves of all settings.

    Args:
        number: graphs of different numbers have different optima; what a setting does is much the same on all.
    """

    def __init__(self, number: int) -> None:
        common, own = np.random.default_rng(1), np.random.default_rng((2, number))
        self.number = number
        self.best: dict[str, float] = {}
        self.weights: dict[str, Weights] = {}
        for parameter in SPACE.parameters:
            centre, end, pace, seconds = common.uniform(0.3, 0.7), *(common.normal(0, width) for width in (0.6, 1.0, 0.2))
            drawn = common.normal(size=(8, 3))[: len(parameter.choices)]
            moved = drawn + 0.5 * own.normal(size=(8, 3))[: len(parameter.choices)]
            choices = tuple((-abs(float(row[0])) * 0.08, float(row[1]) * 0.3, float(row[2]) * 0.2) for row in moved)
            self.best[parameter.name] = float(np.clip(centre + own.normal(0, 0.15), 0, 1))
            self.weights[parameter.name] = Weights(abs(end), pace, seconds, choices)

    def optimum(self) -> dict[str, Any]:
        """The best settings."""
        point = {}
        for parameter in SPACE.parameters:
            weights = self.weights[parameter.name]
            if parameter.choices:
                point[parameter.name] = parameter.choices[int(np.argmax([row[0] for row in weights.choices]))]
            else:
                point[parameter.name] = _value_at(parameter, self.best[parameter.name])
        return SPACE.near(point)

    def curve(self, point: dict[str, Any], seed: int) -> tuple[list[float], float]:
        """Validation MRR by epoch, and the seconds of an epoch."""
        end, pace, seconds = 0.0, 0.0, 0.0
        for name, value in point.items():
            parameter, weights = SPACE[name], self.weights[name]
            if parameter.choices:
                shifts = weights.choices[parameter.labels.index(value)]
            else:
                off = _share_of(parameter, value) - self.best[name]
                shifts = (-weights.end * off**2, weights.pace * off, weights.seconds * off)
            end, pace, seconds = end + shifts[0], pace + shifts[1], seconds + shifts[2]
        top, time = 0.31 * math.exp(end), 1.6 * math.exp(-pace)
        rng = np.random.default_rng((3, self.number, seed))
        noise = 1 + NOISE * rng.normal() + 0.3 * NOISE * rng.normal(size=EPOCHS)
        curve = [top * (1 - math.exp(-((epoch / time) ** 1.3))) * noise[epoch - 1] for epoch in range(1, EPOCHS + 1)]
        return curve, EPOCH_SECONDS * math.exp(seconds)

    def worth(self, point: dict[str, Any]) -> float:
        """What a setting ends with, without the noise of a seed."""
        return statistics.fmean(max(self.curve(point, 10_000 + seed)[0]) for seed in range(10))


def rival_search(
    rival: str, seed: int, starts: Sequence[dict[str, Any]], reduction: float = REDUCTION
) -> tuple[StudySearch, Any]:
    """Searcher and scheduler of a rival."""
    history, points = History(), list(starts) if rival not in ("tpe", "random") else []
    race, kind = None, "asha" if rival == "asha" else "none"
    if rival.startswith("race"):
        race = Race(rungs_of(EPOCHS), reduction)
    elif rival == "one-epoch":
        race = Race((1, EPOCHS), 1.0)
        drawn = Proposals(SPACE, seed, "random")
        points += [drawn.draw(History(), attempt) for attempt in range(20 - len(points))]
    sampler = "random" if rival == "random" else "gp" if rival.endswith("gp") else "tpe"
    search = search_of(
        SPACE, history, race, Proposals(SPACE, seed, sampler, 5), sampler=make_sampler(seed, 5 if points else 10, sampler),
        base=bool(points), points=points,
    )
    if rival == "one-epoch":
        search.left = len(search.first_points)
    return search, make_scheduler(kind, EPOCHS, None, 3.0, history)


def simulate(search: StudySearch, scheduler: Any, graph: MadeUpGraph, seed: int, seconds: float) -> tuple[Outcome, float]:
    """One search, one trial at a time; its outcome, and what its winner is worth."""
    now, best, winner, curve = 20.0, 0.0, {}, []
    for number in range(10_000):
        suggested = search.suggest(str(number))
        if suggested is None or suggested == Searcher.FINISHED or now >= seconds:
            break
        assert isinstance(suggested, dict)
        name, point, now = suggested["name"], suggested["params"], now + START_SECONDS
        values, epoch_seconds = graph.curve(point, 1000 * seed + int(name[-3:]))
        until, result = suggested.get("until", EPOCHS), {}
        for epoch in range(suggested.get("known", 0) + 1, until + 1):
            now += epoch_seconds
            if now >= seconds:
                break
            result = {"epoch": epoch, "mrr": values[epoch - 1], "best_mrr": max(values[:epoch])}
            if result["best_mrr"] > best:
                best, winner = result["best_mrr"], point
                curve.append((now, best))
            if scheduler.on_trial_result(None, _Trial(name), result) == "STOP":
                break
            search.on_trial_result(str(number), result)
        search.on_trial_complete(str(number), {**result, **({"ended": 1.0} if result.get("epoch") == EPOCHS else {})})
    return Outcome(curve, len(search.history.trials), 0, seconds), graph.worth(winner)


@dataclass(frozen=True)
class _Trial:
    """Ray's trial, as far as a scheduler looks at it."""

    trial_id: str
    config: None = None


def _share_of(parameter: Parameter, value: float) -> float:
    low, high, at = (math.log(x) if parameter.log else x for x in (parameter.low, parameter.high, value))
    return (at - low) / (high - low)


def _value_at(parameter: Parameter, share: float) -> Any:
    low, high = (math.log(x) if parameter.log else x for x in (parameter.low, parameter.high))
    at = low + share * (high - low)
    return math.exp(at) if parameter.log else at


def main(
    graphs: Annotated[int, typer.Option(min=1, help="Made-up graphs; start points come from four others.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Searches of each graph.")] = 3,
    seconds: Annotated[float, typer.Option(help="Simulated seconds of a search.")] = 720.0,
    rivals: Annotated[str, typer.Option(help="The first is compared with the others.")] = (
        "race,asha,tpe,random,tpe-started,one-epoch"
    ),
) -> None:
    """Print the seconds to 99 % of each rival's mean final value, ours over theirs, and what the winners are worth."""
    names = rivals.split(",")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    worths: dict[str, list[float]] = {name: [] for name in names}
    for number in range(graphs):
        graph = MadeUpGraph(number)
        starts = [MadeUpGraph(100 + 4 * number + other).optimum() for other in range(4)]
        outcomes: dict[str, list[tuple[Outcome, float]]] = {name: [] for name in names}
        for name in names:
            for seed in range(seeds):
                outcomes[name].append(simulate(*rival_search(name, seed, starts), graph, seed, seconds))
        for name, runs in outcomes.items():
            goal = 0.99 * statistics.fmean(worth for _, worth in runs)
            worths[name] += [worth for _, worth in runs]
            for (ours, _), (theirs, _) in zip(outcomes[names[0]], runs, strict=True):
                ratios[name].append((ours.seconds_to(goal) or 2 * seconds) / (theirs.seconds_to(goal) or seconds))
    for name in names:
        print(
            f"{name:12} time ratio {statistics.median(ratios[name]):.2f} (quartiles "
            f"{', '.join(f'{q:.2f}' for q in np.quantile(ratios[name], (0.25, 0.75)))}), "
            f"worth {statistics.fmean(worths[name]):.4f}"
        )


if __name__ == "__main__":
    typer.run(main)
