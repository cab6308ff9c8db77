"""The Pareto front of a search with several objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tune.space.objectives import COSTS
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, ranked


def pareto_front(records: Iterable[TrialRecord], costs: Sequence[str]) -> list[TrialRecord]:
    """The trials that no other trial dominates: none is at least as good in MRR and all costs and better in one.

    Args:
        records: trials; only completed ones with all metrics count, since one that was stopped early might have improved.
        costs: keys of `COSTS`.

    Returns:
        Best MRR first; of trials with equal values only the first.
    """
    metrics = [COSTS[name].metric for name in costs]
    points = [
        (record, (-(record.best_mrr or 0.0), *(record.metrics[metric] for metric in metrics)))
        for record in ranked(records)
        if record.state is TrialState.COMPLETED and record.best_mrr is not None and all(m in record.metrics for m in metrics)
    ]
    front: dict[tuple[float, ...], TrialRecord] = {}
    for record, point in points:
        dominated = any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for _, other in points)
        if not dominated:
            front.setdefault(point, record)
    return list(front.values())
