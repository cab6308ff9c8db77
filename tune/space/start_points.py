"""Settings that won earlier searches. They are tried right after the base, so that a search on a new graph starts well."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tune.space.parameter import value_of
from tune.space.space import SearchSpace

_OPTIMIZER = "train.optimizer"


@dataclass(frozen=True)
class StartPoint:
    """The winning settings of an earlier search.

    Args:
        graph: the graph on which they had the best validation MRR.
        values: searched settings by dotted name.
    """

    graph: str
    values: dict[str, Any]


# The first two: ComplEx with N3 under Adagrad, as Lacroix et al. (2018) train it, with the contextual relation model as a
# second branch of structure and without; on MKG-W with names by MiniLM and d = 256 validation MRR 0.3576 after 20 epochs (a row
# of results/README.md) and 0.3468 after 14 (`imf train`, 2026-11-30). The third: one of eight settings tried by hand on MKG-W
# with structure alone (`imf train`, 18 to 45 epochs, d = 200: 0.3159; 2026-11-28). The fourth: the best trial of 20 minutes
# on MKG-Y with structure alone, at most 12 epochs and d = 64, three at a time on two cores (`python -m benchmarks.efficiency
# --seeds 2`, before start points existed and when only the contextual relation model was searched: 0.3087; 2026-11-28).
# Decision weights are left out: they do not transfer from one graph to another.
_N3 = {
    "train.optimizer": "adagrad", "train.table_lr": 0.1, "train.regularizer_weight": 0.05, "model.scoring": "complex",
    "model.dropout_input": 0.0, "model.dropout_context": 0.0, "train.label_smoothing": 0.0, "train.lr": 0.005,
    "train.batch_size": 512,
}
START_POINTS: dict[str, tuple[StartPoint, ...]] = {
    "link": (
        StartPoint("MKG-W", {**_N3, "model.second_scoring": "contextual"}),
        StartPoint("MKG-W", {**_N3, "model.second_scoring": "none"}),
        StartPoint("MKG-W", {
            "train.optimizer": "adam", "model.scoring": "complex", "model.dropout_input": 0.2, "model.dropout_context": 0.3,
            "train.label_smoothing": 0.1, "train.lr": 0.005, "train.batch_size": 512,
        }),
        StartPoint("MKG-Y", {
            "train.optimizer": "adam", "model.scoring": "contextual", "model.relation_dim": 64, "model.dropout_input": 0.19,
            "model.dropout_context": 0.14, "train.label_smoothing": 0.17, "train.lr": 0.0049, "train.batch_size": 128,
        }),
    ),
}


def start_points(space: SearchSpace, task: str, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """The start points of a task, each moved into the space; settings that a point lacks are those of the base.

    A point is left out if the space searches less than half of its settings, or has another optimizer only: the settings beside
    it were found for theirs.

    Args:
        space: the search space.
        task: name of the task.
        without: graphs whose points are left out, so that a benchmark on them is fair.
    """
    searched = {parameter.name for parameter in space.parameters}

    def fits(values: dict[str, Any]) -> bool:
        offered = space[_OPTIMIZER].choices if _OPTIMIZER in searched else (value_of(space.base, _OPTIMIZER),)
        return values[_OPTIMIZER] in offered and 2 * len(searched & values.keys()) >= len(values)

    points = START_POINTS.get(task, ())
    return [space.near(point.values) for point in points if point.graph not in without and fits(point.values)]
