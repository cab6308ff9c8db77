"""How sure the winner's lead over its controls is: intervals from the paired ranks of the final runs on validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imf_core.evaluate.paired import bootstrap_interval
from imf_core.evaluate.test_once import read_ranks
from tune.plan.plan import Plan


def margins(plan: Plan, winners: Sequence[Path], others: Mapping[str, Path]) -> dict[str, list[float]]:
    """By how much the 95 % interval of the winner's lead reaches below and above it, in MRR, by the name of the other run.

    Triples are resampled; each counts with the mean of its reciprocal ranks over the winner's seeds. No triple is ranked with
    decision weights that were fitted to it.

    Args:
        plan: of the study.
        winners: checkpoint of each seed, at least one.
        others: checkpoints by name.

    Returns:
        empty where the task has no ranks.
    """
    ranks = [plan.task.validation_ranks(checkpoint, plan.base, plan.data) for checkpoint in winners] if others else []
    known = [values for values in ranks if values is not None]
    if not known:
        return {}
    winner = np.mean([1.0 / values for values in known], axis=0)  # (2T,)
    intervals = {}
    for name, checkpoint in others.items():
        other = plan.task.validation_ranks(checkpoint, plan.base, plan.data)
        assert other is not None  # a task has ranks of all its checkpoints or of none
        leads = (winner - 1.0 / other).reshape(2, -1).mean(axis=0)  # (T,)
        low, high = bootstrap_interval(leads)
        intervals[name] = [low - float(leads.mean()), high - float(leads.mean())]
    return intervals


def margin_on_test(ranks_file: Path) -> list[float] | None:
    """As `margins`, of the winner's lead over a fixed figure on test, from the ranks that opening test has left; None without.

    Args:
        ranks_file: written by `Task.test`.
    """
    if not ranks_file.is_file():
        return None
    ranks, _ = read_ranks(ranks_file)
    scores = (1.0 / ranks).reshape(2, -1).mean(axis=0)  # (T,)
    low, high = bootstrap_interval(scores)
    return [low - float(scores.mean()), high - float(scores.mean())]
