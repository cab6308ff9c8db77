"""Settings that won earlier searches. They are tried right after the base, so that a search on a new graph starts well."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tune.space.space import SearchSpace


@dataclass(frozen=True)
class StartPoint:
    """The winning settings of an earlier search.

    Args:
        graph: the graph on which they had the best validation MRR.
        values: searched settings by dotted name.
    """

    graph: str
    values: dict[str, Any]


# MKG-W: one of eight settings tried by hand with structure alone (`imf train`, 18 to 45 epochs, d = 200; validation MRR
# 0.3159; 2026-11-28). The others: the best trials, by validation MRR, of searches of 10 to 20 minutes with at most 12 epochs
# and d = 64, three at a time on two cores (`python -m benchmarks.efficiency --seeds 2`, before start points existed and when
# only the contextual relation model was searched; 2026-11-28): 0.3087 on MKG-Y with structure alone, 0.5438 on the bundled
# characters. Decision weights are left out: they do not transfer from one graph to another.
START_POINTS: dict[str, tuple[StartPoint, ...]] = {
    "link": (
        StartPoint("MKG-W", {
            "model.scoring": "complex", "model.dropout_input": 0.2, "model.dropout_context": 0.3, "train.label_smoothing": 0.1,
            "train.lr": 0.005, "train.batch_size": 512,
        }),
        StartPoint("MKG-Y", {
            "model.scoring": "contextual", "model.relation_dim": 64, "model.dropout_input": 0.19, "model.dropout_context": 0.14,
            "train.label_smoothing": 0.17, "train.lr": 0.0049, "train.batch_size": 128,
        }),
        StartPoint("unicode", {
            "model.scoring": "contextual", "model.relation_dim": 96, "model.fusion_rank": 4, "model.dropout_input": 0.05,
            "model.dropout_context": 0.31, "model.dropout_fusion": 0.38, "model.contrastive_weight": 0.04,
            "model.temperature": 0.4, "train.label_smoothing": 0.06, "train.lr": 0.0034, "train.batch_size": 128,
        }),
    ),
}


def start_points(space: SearchSpace, task: str, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """The start points of a task, each moved into the space; settings that a point lacks are those of the base.

    A point is left out if the space searches less than half of its settings.

    Args:
        space: the search space.
        task: name of the task.
        without: graphs whose points are left out, so that a benchmark on them is fair.
    """
    searched = {parameter.name for parameter in space.parameters}
    return [
        space.near(point.values) for point in START_POINTS.get(task, ())
        if point.graph not in without and 2 * len(searched & point.values.keys()) >= len(point.values)
    ]
