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
from tune.report.files import summary
from tune.report.result import StudyResult

UNTRAINED = "no training"  # a decision of its own: the study's baseline, which no seed changes
HITS = ("hits_at_1", "hits_at_3", "hits_at_10")


def reference_row(result: StudyResult, data_set: str, row: str, decision: str = OWN) -> dict[str, Any]:
    """A study as a row of the reference table; see `summary_row`."""
    return summary_row(summary(result), data_set, row, decision=decision)


def summary_row(
    values: Mapping[str, Any], data_set: str, row: str, source: Path | str = SUMMARY_FILE, decision: str = OWN
) -> dict[str, Any]:
    """A row from a study's `summary.json`.

    Args:
        values: the summary.
        data_set: name of the data set, as in the published table.
        row: what distinguishes this study from the others on the data set.
        source: file to name in an error.
        decision: `own`, or what the figures are of: a key of the summary's `test_otherwise`, or `no training`.

    Returns:
        `ROW_KEYS`, metrics as shares of 1, and `settings`, those of the winner.

    Raises:
        DataError: a key is missing, there is no test result, or test was not opened exactly once.
    """
    if decision == UNTRAINED:
        values = {**values, "seeds": [], "winner": None}
    try:
        test, machine = values["test"] if decision == OWN else _otherwise(values, decision, source), values["machine"]
        mean, std = test["mrr"]["mean"], test["mrr"]["std"]
        found = {
            "data_set": data_set, "row": row, "command": str(values["command"]), "mrr_mean": mean, "mrr_std": std,
            "hits": {name: test[name]["mean"] for name in HITS},
            "cold": (test.get("mrr_cold") or {}).get("mean"),
            "valid": _validation(values, decision), "decision": decision,
            "seeds": list(values["seeds"]), "machine": _machine(machine),
            "date": str(values["date"])[:10], "settings": dict((values.get("winner") or {}).get("params") or {}),
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
        remedy = "search again: a figure of the table comes from a test split that was opened once, after every choice"
        raise DataError.at(source, None, "the test split was not opened exactly once", value=opened, remedy=remedy)
    return found


def _otherwise(values: Mapping[str, Any], decision: str, source: Path | str) -> Mapping[str, Any]:
    """Figures of other decision weights.

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
    found: Mapping[str, Any] = known[decision]
    return found


def _baseline(values: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """What the baseline without training reaches on a split; empty where the study did not rank it."""
    found: Mapping[str, Any] = ((values.get("audit") or {}).get("baseline") or {}).get(split) or {}
    return found


def _validation(values: Mapping[str, Any], decision: str) -> float | None:
    """Mean validation MRR of the retrained winner, or that of the baseline; of other decisions it is not kept."""
    own = (values.get("winner_validation_mrr") or {}).get("mean") if decision == OWN else None
    mean = _baseline(values, "valid").get("mrr") if decision == UNTRAINED else own
    return None if mean is None else float(mean)


def paired(study: Path, decision: str, other: Path, other_decision: str = OWN) -> dict[str, Any]:
    """A paired test of two studies over the test triples, by the ranks that each kept when it opened test.

    The rank of a triple is the harmonic mean over a study's seeds, so that the difference is that of the mean MRRs.

    Args:
        study, other: folders of finished studies.
        decision, other_decision: as in `summary_row`.

    Returns:
        `difference` in MRR, its 95 % `interval`, `p`, and the `decision` of the other.

    Raises:
        DataError: ranks are missing, or of another graph.
    """
    files = [folder / "final" / RANKS_FILE for folder in (study, other)]
    (own, graph), (its, its_graph) = read_ranks(files[0], decision), read_ranks(files[1], other_decision)
    if graph != its_graph:
        remedy = "compare studies of the same triples"
        raise DataError.at(files[1], None, f"was ranked on another graph than {files[0]}", value=its_graph, remedy=remedy)
    found = compare_ranks(own, its)
    return {
        "decision": other_decision, "difference": found.all.difference, "interval": list(found.interval), "p": found.p,
    }


def _machine(facts: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "ray") if name in facts)
    return f"{facts['cpu']}, {facts['cores']} cores; {versions}"
