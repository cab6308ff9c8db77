"""The trials that nothing beats in all that a search weighs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tune.space.objectives import COSTS
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, ranked


def front(records: Iterable[TrialRecord], costs: Sequence[str]) -> list[TrialRecord]:
    """The Pareto front: trials of which none other is at least as good in MRR and all costs, and better in one.

    Args:
        records: those that ended by themselves and have all numbers count; one that was stopped early might have become better.
        costs: names of `COSTS`.

    Returns:
        best MRR first; of equal trials the first.
    """
    metrics = [COSTS[name].metric for name in costs]
    points = [
        (record, (-(record.best_mrr or 0.0), *(record.metrics[metric] for metric in metrics)))
        for record in ranked(records)
        if record.state is TrialState.COMPLETED and record.best_mrr is not None and all(m in record.metrics for m in metrics)
    ]
    kept: list[tuple[TrialRecord, tuple[float, ...]]] = []
    for record, point in points:
        others = [other for _, other in points]
        beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in others)
        if not beaten and point not in [own for _, own in kept]:
            kept.append((record, point))
    return [record for record, _ in kept]
