"""Tables about the winner for a study's page: test metrics, comparisons, slices, and the weights of its branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from imf_core.data.graph.graph import ALL_LINES, counted_title
from imf_core.tasks.protocols import Examples, Inspection
from tune.report.formatting import NONE, cell, metric, mrr, plural, points, usable
from tune.report.pictures.svg import Bar, bars
from tune.report.result import StudyResult
from tune.report.tables import Column, Share, Table, codes, numbers

MOST_RELATIONS = 30  # relations with a row of their own; the others share one
_TEST = {"mrr": "MRR", "hits_at_1": "Hits@1", "hits_at_3": "Hits@3", "hits_at_10": "Hits@10", "mean_rank": "mean rank"}
_NAMES = _TEST | {"mrr_all_lines": "MRR, all lines", "mrr_cold": "MRR, cold", "mrr_warm": "MRR, warm"}
_NAMES |= {"precision_at_10": "P@10", "recall_at_10": "R@10", "hit_ratio_at_10": "HR@10", "ndcg_at_10": "NDCG@10"}
_SPLITS = ("valid", "test")
_SLICES = {
    ALL_LINES: ("", ALL_LINES),
    "tail": ("direction", "tail prediction"), "head": ("direction", "head prediction"), "1-1": ("category", "1-1"),
    "1-N": ("category", "1-N"), "N-1": ("category", "N-1"), "N-N": ("category", "N-N"),
    "warm": ("entities", "warm: both in train"), "cold": ("entities", "cold: at least one not in train"),
}


@dataclass(frozen=True)
class Inside:
    """The content of the winner's checkpoint.

    Args:
        problem: why there is none; empty if there is.
        slices: a table for each ranked split.
        weights: tables of the branches' weights; empty for a single branch.
        mode: how the branches are weighted, `model.decision`.
        branches: names of the branches.
    """

    problem: str = ""
    slices: tuple[Table, ...] = ()
    weights: tuple[Table, ...] = ()
    mode: str = ""
    branches: tuple[str, ...] = ()


def settings_table(result: StudyResult) -> Table:
    """The winner's searched settings in full precision, so that they can be reused."""
    params = result.winner.params if result.winner else {}
    rows = [(name, cell(value)) for name, value in sorted(params.items())]
    return Table("winner-settings", "settings of the winner", codes("setting", "value"), rows)


def test_table(result: StudyResult) -> Table | None:
    """Test metrics over the seeds; None if test was not opened."""
    metrics = {name: value for name, value in result.test().items() if value["mean"] is not None}
    if not metrics:
        return None
    count = len(result.test_runs)
    seeds = result.seeds if len(result.seeds) == count else tuple(range(1, count + 1))
    rows = [
        [_NAMES[name], metric(name, value["mean"]), metric(name, value["std"]),
         *(metric(name, run.get(name)) for run in result.test_runs)]
        for name, value in metrics.items()
    ]
    note = f"n = {count} seeds; sample standard deviation (n - 1)." if count > 1 else "n = 1 seed, so there is no deviation."
    if result.test_opened:
        note += f" The test split was opened {'once' if result.test_opened == 1 else f'{result.test_opened} times'}."
    if "test" in result.overlaps:
        note += f" {result.overlaps['test']}."
    columns = (Column("metric"), *numbers("mean", "deviation", *(f"seed {seed}" for seed in seeds)))
    return Table("test", "the retrained winner on test", columns, rows, note=note)


def decisions_table(result: StudyResult) -> Table | None:
    """Test metrics of the same seeds under other decision weights and as an ensemble; None if there are none."""
    decisions = result.test_by_decision()
    if not decisions:
        return None
    names = [name for name in _NAMES if any(values.get(name, {}).get("mean") is not None for values in decisions.values())]
    rows = []
    for decision, values in decisions.items():
        means = [metric(name, values[name]["mean"]) for name in names]
        rows.append([decision, means[0], mrr(values[names[0]]["std"]), *means[1:]])
    titles = [_NAMES[name] for name in names]
    columns = (Column("decision"), *numbers(titles[0], "deviation", *titles[1:]))
    note = (
        "Measured in the same pass over test; nothing was chosen by these figures. Seeds pooled: geometric mean of the "
        "probabilities of all seeds."
    )
    return Table("test-otherwise", "the same models under other decision weights, and as an ensemble", columns, rows, note=note)


def comparison(result: StudyResult) -> tuple[Table, str] | None:
    """Compare the winner with its control, its ablations and the baseline without training: a table and its plot.

    The differences are those of the winner: positive if it is better than the model of the row. None without a winner.
    """
    if result.winner is None:
        return None
    seeds = len(result.winner_seed_mrr)
    own = result.winner_validation() if seeds else {"mean": result.winner.best_mrr, "std": None}
    untrained = f"no training ({result.kind.baseline_name})"
    retrained = f"mean of {seeds} seeds" if seeds > 1 else "1 seed" if seeds else "the trial itself, not retrained"
    models: list[tuple[str, Any, Any]] = [(f"winner ({retrained})", own["mean"], result.test()["mrr"]["mean"])]
    if result.structure_only_mrr is not None:
        models.append((result.control, result.structure_only_mrr, None))
    models += [(f"without {name}", value, None) for name, value in result.without.items()]
    if result.baseline:
        valid, test = (result.baseline[split].mrr if split in result.baseline else None for split in _SPLITS)
        models.append((untrained, valid, test))
    rows, named = [], result.without_named
    for index, (name, valid, test) in enumerate(models):
        gains = [_difference(own["mean"], valid) if index else None, None]
        if name == untrained:
            gains = [result.points_over_baseline(split) for split in _SPLITS]
        told = f" ({named[name][1]})" if name in named else ""
        rows.append([f"{name}{told}", mrr(valid), points(gains[0]), mrr(test), points(gains[1])])
    columns = (
        Column("model"), Column("validation MRR", "number"), Column("winner ahead, points", "points"),
        Column("test MRR", "number"), Column("winner ahead, points", "points"),
    )
    note = "Same settings, retrained without the part. Only the winner and the baseline are scored on test."
    if result.test()["mrr"]["mean"] is not None:
        note += f" {result.kind.split_note}"
    note += "".join(f" {told}." for told in result.overlaps.values())
    if len(models) == 1:
        note = "There is nothing to compare with: no control, no run without a modality, and no baseline."
    entries = [
        Bar(name, valid, None if index else own["std"], best=not index)
        for index, (name, valid, _) in enumerate(models) if usable(valid)
    ]
    plot = bars("comparison", "validation MRR of the winner and the models to compare it with", entries) if entries else ""
    return Table("comparison", "contribution of each part", columns, rows, marked=0, note=note), plot


def relations_table(examples: Examples | None) -> Table | None:
    """Metrics of the most frequent relations on validation; None without any."""
    if examples is None or not examples.relations:
        return None
    rows = [
        [score.name, f"{score.count:,}", Share(mrr(score.mrr), score.mrr), mrr(score.hits_at_10)]
        for score in examples.relations[:MOST_RELATIONS]
    ]
    note = "Each triple is ranked twice: its tail among all entities, and its head."
    if (rest := len(examples.relations) - len(rows)) > 0:
        note += f" {plural(rest, 'rarer relation')} left out."
    if examples.ranked < examples.triples:
        note += f" A sample of {examples.ranked:,} of {examples.triples:,} validation triples."
    columns = (Column("relation"), *numbers("ranks"), Column("MRR", "share"), *numbers("Hits@10"))
    return Table("relations", "the winner on each relation of validation, the most frequent first", columns, rows, note=note)


def look_inside(inspection: Inspection | None, counts: Mapping[str, int]) -> Inside:
    """Slices and weights of a checkpoint.

    Args:
        inspection: of the checkpoint; None without one.
        counts: number of training triples by relation; empty if unknown.
    """
    if inspection is None:
        return Inside("there is no checkpoint, because no run completed")
    if inspection.problem:
        return Inside(inspection.problem)
    tables = [_slices(split, inspection.metrics.get(split)) for split in ("validation", "test")]
    weights = tuple(_weights(inspection, counts))
    return Inside("", tuple(table for table in tables if table is not None), weights, inspection.mode, inspection.branches)


def _difference(winner: Any, other: Any) -> float | None:
    return 100 * (winner - other) if usable(winner) and usable(other) else None


def _slices(split: str, metrics: Any) -> Table | None:
    """The slices of a split; None if the checkpoint has none."""
    slices = metrics.get("slices") if isinstance(metrics, Mapping) else None
    slices = {name: part for name, part in slices.items() if isinstance(part, Mapping)} if isinstance(slices, Mapping) else {}
    if not slices:
        return None
    names = [name for name in _SLICES if name in slices] + sorted(name for name in slices if name not in _SLICES)
    whole = slices[ALL_LINES].get("count") if ALL_LINES in slices else None
    parts = [(("", counted_title(metrics.get("count", 0), whole)), metrics)]
    parts += [(_SLICES.get(name, ("other", name)), slices[name]) for name in names]
    rows = []
    for (group, name), part in parts:
        count = part["count"] if usable(part.get("count")) else 0
        values = {key: part.get(key) if count else None for key in _TEST}
        bar = Share(mrr(values["mrr"]), values["mrr"] if usable(values["mrr"]) else 0.0)
        rows.append([group, name, f"{count:,.0f}", bar, *(metric(key, value) for key, value in list(values.items())[1:])])
    columns = (
        Column("by"), Column("slice"), *numbers("ranks"), Column("MRR", "share"), *numbers(*list(_TEST.values())[1:]),
    )
    note = "Each triple is ranked twice: its tail among all entities, and its head."
    if ALL_LINES in slices:
        note += " Clean triples are those that stand in no earlier split; the slices below all lines are of them."
    return Table(f"slices-{split}", f"slices of {split}", columns, rows, marked=0, note=note)


def _weights(inspection: Inspection, counts: Mapping[str, int]) -> Iterator[Table]:
    """Mean weights of the whole model and, if each relation has its own, the weights of the most frequent relations."""
    weights, names = inspection.weights, inspection.relations
    if weights is None:  # else (2, R, M): direction, relation, branch
        return
    frequency = np.array([counts.get(name, 0) for name in names], dtype=float)  # (R,)
    known = bool(frequency.sum())
    mean = _mean(weights.mean(axis=0), frequency)  # (M,)
    rows = [[branch, Share(f"{weight:.3f}", float(weight))] for branch, weight in zip(inspection.branches, mean)]
    note = f"Mean over the {'training triples' if known else 'relations'}. " if inspection.mode == "relation" else ""
    note += "If an entity lacks a modality, the weights of its other branches are scaled to sum to 1."
    columns = (Column("branch"), Column("weight", "share"))
    yield Table("weights", "weights of the branches in the whole model", columns, rows, note=note)
    if inspection.mode != "relation":
        return
    order = sorted(range(len(names)), key=lambda index: (-frequency[index], index))
    first, rest = order[:MOST_RELATIONS], order[MOST_RELATIONS:]
    rows = [_row(names[index], f"{frequency[index]:,.0f}" if known else NONE, weights[:, index]) for index in first]
    if rest:
        mean = np.stack([_mean(direction[rest], frequency[rest]) for direction in weights])  # (2, M)
        rows.append(_row(plural(len(rest), "other relation"), f"{frequency[rest].sum():,.0f}" if known else NONE, mean))
    header = (Column("relation"), *numbers("training triples"), Column("weights", "parts"), *numbers(*inspection.branches))
    note = "Each cell: weight for tail prediction / for head prediction. The bar shows their mean."
    yield Table("weights-by-relation", "weights of the branches by relation, the most frequent first", header, rows, note=note)


def _row(name: str, triples: str, weights: np.ndarray) -> list[Any]:
    """A row of the relations' table; `weights` is (2, M)."""
    parts = [Share(f"{weight:.3f}", float(weight)) for weight in weights.mean(axis=0)]
    return [name, triples, parts, *(f"{tail:.2f} / {head:.2f}" for tail, head in weights.T)]


def _mean(values: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """(R, M) -> (M,): the mean weighted by frequency (R,), unweighted if all frequencies are 0."""
    mean: np.ndarray = np.average(values, axis=0, weights=frequency if frequency.sum() > 0 else None)
    return mean
