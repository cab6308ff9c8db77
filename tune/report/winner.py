"""The winner of a study, for its page: test figures, what its parts are worth, its slices and the weights of its branches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imf_core.tasks.protocols import Inspection
from tune.report.files import cell
from tune.report.result import StudyResult
from tune.report.svg import Bar, bars
from tune.report.tables import NONE, Column, Share, Table, mrr, points, rank, usable

MOST_RELATIONS = 30  # with a row of their own; the rest is summed up
_TEST = {"mrr": "MRR", "hits_at_1": "Hits@1", "hits_at_3": "Hits@3", "hits_at_10": "Hits@10", "mean_rank": "mean rank"}
_NAMES = _TEST | {"mrr_cold": "MRR, cold", "mrr_warm": "MRR, warm"}
_NAMES |= {"precision_at_10": "P@10", "recall_at_10": "R@10", "hit_ratio_at_10": "HR@10", "ndcg_at_10": "NDCG@10"}
_SPLITS = ("valid", "test")
_SLICES = {
    "tail": ("direction", "tails asked for"), "head": ("direction", "heads asked for"), "1-1": ("category", "1-1"),
    "1-N": ("category", "1-N"), "N-1": ("category", "N-1"), "N-N": ("category", "N-N"),
    "warm": ("entities", "warm: both in train"), "cold": ("entities", "cold: one not in train"),
}


@dataclass(frozen=True)
class Inside:
    """What the winner's checkpoint says.

    Args:
        problem: why it says nothing; empty where it does.
        slices: a table for each split that was ranked.
        weights: of the branches; empty where there is one branch.
        mode: how the branches are weighed.
        branches: their names.
    """

    problem: str = ""
    slices: tuple[Table, ...] = ()
    weights: tuple[Table, ...] = ()
    mode: str = ""
    branches: tuple[str, ...] = ()


def settings_table(result: StudyResult) -> Table:
    """The winner's searched settings, written in full so that they can be repeated."""
    best = result.winner
    rows = [(name, cell(value)) for name, value in sorted(best.params.items())] if best else []
    return Table("winner-settings", "settings of the winner", (Column("setting", "code"), Column("value", "code")), rows)


def figures_on_test(result: StudyResult) -> Table | None:
    """Test figures over the seeds; None where test was not opened."""
    found = {name: value for name, value in result.test().items() if value["mean"] is not None}
    if not found:
        return None
    count = len(result.test_runs)
    seeds = result.seeds if len(result.seeds) == count else tuple(range(1, count + 1))
    rows = []
    for name, value in found.items():
        shown = rank if name == "mean_rank" else mrr
        each = [shown(run.get(name)) for run in result.test_runs]
        rows.append([_NAMES[name], shown(value["mean"]), shown(value["std"]) if value["std"] is not None else NONE, *each])
    note = f"n = {count} seeds; deviation of a sample (n - 1)." if count > 1 else "n = 1 seed, so there is no deviation."
    columns = [Column("metric"), Column("mean", "number"), Column("deviation", "number")]
    columns += [Column(f"seed {seed}", "number") for seed in seeds]
    opened = f" The test split was opened {'once' if result.test_opened == 1 else f'{result.test_opened} times'}."
    return Table("test", "the retrained winner on test", tuple(columns), rows, note=note + opened * bool(result.test_opened))


def otherwise_on_test(result: StudyResult) -> Table | None:
    """The same seeds on test under other decision weights, and taken together; None where there is none of it."""
    found = result.tested_otherwise()
    if not found:
        return None
    names = [name for name in _NAMES if any(values.get(name, {}).get("mean") is not None for values in found.values())]
    rows = []
    for kind, values in found.items():
        means = [(rank if name == "mean_rank" else mrr)(values[name]["mean"]) for name in names]
        rows.append([kind, means[0], mrr(values[names[0]]["std"]), *means[1:]])
    head = Column(_NAMES[names[0]], "number"), Column("deviation", "number")
    columns = (Column("decision"), *head, *(Column(_NAMES[name], "number") for name in names[1:]))
    note = "Of the same pass, to look at: nothing was chosen by these. Seeds pooled: the geometric mean of their probabilities."
    return Table("test-otherwise", "the same models under other decision weights, and together", columns, rows, note=note)


def comparison(result: StudyResult) -> tuple[Table, str] | None:
    """The winner beside structure alone, beside itself without each modality and beside no training; with its picture.

    None where there is no winner. Points are how far the winner is above (+) or below (-) the row.
    """
    if result.winner is None:
        return None
    seeds = len(result.winner_seed_mrr)
    reached = result.winner_validation() if seeds else {"mean": result.winner.best_mrr, "std": None}
    test = result.test()["mrr"]
    rules = result.audit.baseline if result.audit is not None else {}
    untrained = f"no training ({result.rules})"
    retrained = f"mean of {seeds} seeds" if seeds > 1 else "1 seed" if seeds else "its trial, not retrained"
    found: list[tuple[str, Any, Any]] = [(f"winner ({retrained})", reached["mean"], test["mean"])]
    if result.structure_only_mrr is not None:
        found.append((result.control, result.structure_only_mrr, None))
    found += [(f"without {name}", value, None) for name, value in result.without.items()]
    if rules:
        valid, tested = (rules[split].mrr if split in rules else None for split in _SPLITS)
        found.append((untrained, valid, tested))
    rows = []
    for position, (name, valid, tested) in enumerate(found):
        above = [_above(reached["mean"], valid) if position else None, None]
        if name == untrained:
            above = [result.points_over_baseline(split) for split in _SPLITS]
        rows.append([name, mrr(valid), points(above[0]), mrr(tested), points(above[1])])
    columns = (
        Column("model"), Column("validation MRR", "number"), Column("winner above, points", "points"),
        Column("test MRR", "number"), Column("winner above, points", "points"),
    )
    note = "Same settings, trained anew without the part. Of these, only the winner and the rules are scored on test."
    if len(found) == 1:
        note = "There is nothing to compare with: no run on structure alone or without a modality, and no baseline."
    shown = [
        Bar(name, valid, reached["std"] if not position else None, not position)
        for position, (name, valid, _) in enumerate(found) if usable(valid)
    ]
    picture = bars("comparison", "validation MRR of the winner and of what it is compared with", shown) if shown else ""
    return Table("comparison", "what the parts are worth", columns, rows, marked=0, note=note), picture


def look_inside(inspection: Inspection | None, counts: Mapping[str, int]) -> Inside:
    """Slices and weights of a checkpoint.

    Args:
        inspection: of the checkpoint; None where there is none.
        counts: training triples of each relation, by name; empty where they are not known.
    """
    if inspection is None:
        return Inside("there is no checkpoint: nothing was trained to its end")
    if inspection.problem:
        return Inside(inspection.problem)
    tables = [_slices(split, inspection.metrics.get(split)) for split in ("validation", "test")]
    weights = tuple(_weights(inspection, counts))
    return Inside("", tuple(table for table in tables if table is not None), weights, inspection.mode, inspection.branches)


def _above(winner: Any, other: Any) -> float | None:
    return 100 * (winner - other) if usable(winner) and usable(other) else None


def _slices(split: str, metrics: Any) -> Table | None:
    """The table of a split; None where the checkpoint has no slices of it."""
    slices = metrics.get("slices") if isinstance(metrics, Mapping) else None
    found = {name: part for name, part in slices.items() if isinstance(part, Mapping)} if isinstance(slices, Mapping) else {}
    if not found:
        return None
    names = [name for name in _SLICES if name in found] + sorted(name for name in found if name not in _SLICES)
    parts = [(("", "all"), metrics), *((_SLICES.get(name, ("other", name)), found[name]) for name in names)]
    rows = []
    for (group, name), part in parts:
        count = part["count"] if usable(part.get("count")) else 0
        some = [part.get(key) if count else None for key in _TEST]
        bar = Share(mrr(some[0]), some[0] if usable(some[0]) else 0.0)
        rows.append([group, name, f"{count:,.0f}", bar, *map(mrr, some[1:4]), rank(some[4])])
    columns = (
        Column("by"), Column("slice"), Column("ranks", "number"), Column("MRR", "share"),
        *(Column(title, "number") for title in list(_TEST.values())[1:]),
    )
    note = "Each triple is ranked twice: its tail and its head are asked for."
    return Table(f"slices-{split}", f"slices of {split}", columns, rows, marked=0, note=note)


def _weights(inspection: Inspection, counts: Mapping[str, int]) -> Iterator[Table]:
    """Weights of the whole model and, where each relation has its own, of the most frequent relations."""
    both, names = inspection.weights, inspection.relations  # (2, R, M): direction, relation, branch
    if both is None:
        return
    frequency = np.array([counts.get(name, 0) for name in names], dtype=float)
    known = bool(frequency.sum())
    mean = _mean(both.mean(axis=0), frequency)
    rows = [[branch, Share(f"{weight:.3f}", float(weight))] for branch, weight in zip(inspection.branches, mean)]
    how = "over the training triples" if known else "over the relations"
    note = f"Mean {how}. " if inspection.mode == "relation" else ""
    note += "Where an entity lacks a modality, the weights of the branches that are left are scaled to sum 1."
    whole = (Column("branch"), Column("weight", "share"))
    yield Table("weights", "weights of the branches in the whole model", whole, rows, note=note)
    if inspection.mode != "relation":
        return
    order = sorted(range(len(names)), key=lambda place: (-frequency[place], place))
    first, rest = order[:MOST_RELATIONS], order[MOST_RELATIONS:]
    rows = [_row(names[place], f"{frequency[place]:,.0f}" if known else NONE, both[:, place]) for place in first]
    if rest:
        each = np.stack([_mean(part[rest], frequency[rest]) for part in both])
        title = f"{len(rest)} other relation{'s' if len(rest) > 1 else ''}"
        rows.append(_row(title, f"{frequency[rest].sum():,.0f}" if known else NONE, each))
    columns = (
        Column("relation"), Column("training triples", "number"), Column("weights", "parts"),
        *(Column(branch, "number") for branch in inspection.branches),
    )
    note = "Each cell: where the tail is asked for / where the head is. The bar is their mean."
    yield Table("weights-by-relation", "weights of the branches by relation, the most frequent first", columns, rows, note=note)


def _row(name: str, triples: str, weights: np.ndarray) -> list[Any]:
    """A row of the relations' table; `weights` is (2, M)."""
    parts = [Share(f"{weight:.3f}", float(weight)) for weight in weights.mean(axis=0)]
    return [name, triples, parts, *(f"{tail:.2f} / {head:.2f}" for tail, head in weights.T)]


def _mean(values: np.ndarray, frequency: Sequence[float] | np.ndarray) -> np.ndarray:
    """(R, M) -> (M,), weighed by frequency; the plain mean where none is known."""
    weighed = np.asarray(frequency, dtype=float)
    found: np.ndarray = np.average(values, axis=0, weights=weighed if weighed.sum() > 0 else None)
    return found
