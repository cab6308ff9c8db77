"""A finished study as a row of the table in `results/README.md`, and the paired test of two such rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imf_core.errors import DataError
from imf_core.evaluate.paired import compare_ranks
from imf_core.evaluate.test_once import OWN, RANKS_FILE, read_ranks
from imf_core.study_reader import SUMMARY_FILE

UNTRAINED = "no training"  # as a decision: the study's baseline, which does not depend on a seed
HITS = ("hits_at_1", "hits_at_3", "hits_at_10")


def summary_row(
    values: Mapping[str, Any], data_set: str, row: str, source: Path | str = SUMMARY_FILE, decision: str = OWN
) -> dict[str, Any]:
    """A row from a study's `summary.json`.

    Args:
        values: the summary.
        data_set: name of the data set, as in the published table.
        row: name of the row, unique on the data set.
        source: file to name in an error.
        decision: which test metrics to take: `own`, a key of the summary's `test_otherwise`, or `no training`.

    Returns:
        `ROW_KEYS`, metrics within 0..1, and the winner's `settings`.

    Raises:
        DataError: a key is missing, there is no test result, or test was not opened exactly once.
    """
    if decision == UNTRAINED:
        values = {**values, "seeds": [], "winner": None}
    try:
        test, machine = values["test"] if decision == OWN else _otherwise(values, decision, source), values["machine"]
        mean, std = test["mrr"]["mean"], test["mrr"]["std"]
        entry = {
            "data_set": data_set, "row": row, "command": str(values["command"]), "mrr_mean": mean, "mrr_std": std,
            "hits": {name: test[name]["mean"] for name in HITS},
            "cold": (test.get("mrr_cold") or {}).get("mean"),
            "valid": _validation(values, decision), "decision": decision,
            "seeds": list(values["seeds"]), "machine": _machine(machine),
            "date": str(values["date"])[:10], "cost": dict(values.get("cost") or {}),
            "settings": dict((values.get("winner") or {}).get("params") or {}),
        }
        opened = int(values["test_opened"])
    except (KeyError, TypeError, ValueError) as error:
        remedy = "name a study that this version of the search has finished"
        raise DataError.at(source, None, f"not the summary of a study: {error!r}", remedy=remedy) from error
    if not data_set or not row.strip():
        raise DataError.at(source, None, "the row or its data set has no name", remedy="give --row and --data-set")
    if mean is None or not math.isfinite(mean):
        raise DataError.at(source, None, "the study has no test result", remedy="add a study whose winner was tested")
    if opened != 1:
        remedy = "search again: the table only has results for which test was opened once, after all choices were made"
        raise DataError.at(source, None, "the test split was not opened exactly once", value=opened, remedy=remedy)
    return entry


def _otherwise(values: Mapping[str, Any], decision: str, source: Path | str) -> Mapping[str, Any]:
    """Test metrics under another decision, or of the baseline.

    Raises:
        DataError: the study has none of that name.
    """
    known = dict(values.get("test_otherwise") or {})
    baseline = _baseline(values, "test")
    if baseline:
        known[UNTRAINED] = {name: {"mean": value, "std": None} for name, value in baseline.items()}
    if decision not in known:
        remedy = f"choose one of: {', '.join([OWN, *known])}"
        raise DataError.at(source, None, "the study has no test figures of this kind", value=decision, remedy=remedy)
    metrics: Mapping[str, Any] = known[decision]
    return metrics


def _baseline(values: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """Metrics of the baseline without training on a split; empty if the study did not rank it."""
    metrics: Mapping[str, Any] = ((values.get("audit") or {}).get("baseline") or {}).get(split) or {}
    return metrics


def _validation(values: Mapping[str, Any], decision: str) -> float | None:
    """Mean validation MRR of the retrained winner or of the baseline; None for other decisions, whose MRR is not stored."""
    winner = (values.get("winner_validation_mrr") or {}).get("mean") if decision == OWN else None
    mean = _baseline(values, "valid").get("mrr") if decision == UNTRAINED else winner
    return None if mean is None else float(mean)


def paired(study: Path, decision: str, other: Path, other_decision: str = OWN) -> dict[str, Any]:
    """A paired test of two studies over the test triples, with the ranks that each stored when it opened test.

    The rank of a triple is the harmonic mean over the seeds of a study, so the difference is that of the mean MRRs.

    Args:
        study, other: folders of finished studies.
        decision, other_decision: as in `summary_row`.

    Returns:
        The `difference` in MRR, its 95 % `interval`, `p`, and the `decision` of the other study.

    Raises:
        DataError: ranks are missing, or the studies have different graphs.
    """
    files = [folder / "final" / RANKS_FILE for folder in (study, other)]
    (ranks, graph), (other_ranks, other_graph) = read_ranks(files[0], decision), read_ranks(files[1], other_decision)
    if graph != other_graph:
        remedy = "compare studies of the same triples"
        raise DataError.at(files[1], None, f"was ranked on another graph than {files[0]}", value=other_graph, remedy=remedy)
    test = compare_ranks(ranks, other_ranks)
    return {"decision": other_decision, "difference": test.all.difference, "interval": list(test.interval), "p": test.p}


def _machine(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "ray") if name in facts)
    return f"{facts['cpu']}, {facts['cores']} cores; {versions}"
