"""The results of a study as files for programs: the leaderboard and `summary.json`. `tune/report/verdict.py` has the prose."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from imf_core.files.atomic import atomic_write_text
from imf_core.files.markdown import table
from imf_core.study_reader import SUMMARY_FILE
from tune.report.formatting import cell, short
from tune.report.result import StudyResult, setting_names, with_ranks
from tune.space.objectives import COSTS
from tune.study.records import TrialRecord, count_states


def write_leaderboard(records: Sequence[TrialRecord], folder: Path | str) -> tuple[Path, Path]:
    """Write `leaderboard.csv` (full precision) and `leaderboard.md` (for reading), best validation MRR first.

    A trial without a usable value (failed, diverged, never evaluated) has no rank and is listed at the end with its reason.
    """
    names = setting_names(records)
    head = ["rank", "trial", "state", "best_validation_mrr", "epochs", "best_epoch", "seconds", "retries", *names, "reason"]
    rows = [
        [
            cell(rank), str(record.number), str(record.state), cell(record.best_mrr), str(record.epochs),
            cell(record.best_epoch), f"{record.seconds:.1f}", str(record.retries),
            *(cell(record.params.get(name)) for name in names), record.reason,
        ]
        for rank, record in with_ranks(records)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    lines = table(head, [_readable(row) for row in rows], left=len(head))
    csv_path = atomic_write_text(Path(folder) / "leaderboard.csv", text.getvalue())
    return csv_path, atomic_write_text(Path(folder) / "leaderboard.md", "\n".join(["# Leaderboard", "", *lines]))


def machine() -> dict[str, Any]:
    """Processor, usable cores, and the versions that affect speed and results."""
    return {
        "cpu": _processor(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(), "torch": metadata.version("torch"), "ray": metadata.version("ray"),
    }


def summary(result: StudyResult) -> dict[str, Any]:
    """The results of a study as values for JSON."""
    best = result.winner
    winner = {"trial": best.number, "epoch": best.best_epoch, "params": best.params, "metrics": best.metrics} if best else None
    return {
        "study": result.study, "task": result.task, "control": result.control,
        "data": result.data, "data_fingerprint": result.data_fingerprint,
        "trials": count_states(result.records), "best_validation_mrr": best.best_mrr if best else None,
        "structure_only_validation_mrr": result.structure_only_mrr, "points_over_structure_only": result.points_over_structure,
        "validation_mrr_without": dict(result.without),
        "winner": winner,
        "front": [
            {"trial": record.number, "best_validation_mrr": record.best_mrr, "params": record.params,
             **{COSTS[name].metric: record.metrics[COSTS[name].metric] for name in result.costs}}
            for record in result.pareto_front
        ],
        "points_over_baseline": {split: result.points_over_baseline(split) for split in ("valid", "test")},
        "audit": result.audit.to_json() if result.audit is not None else None,
        "winner_validation_mrr": {"by_seed": list(result.winner_seed_mrr), **result.winner_validation()},
        "test": result.test(), "test_otherwise": result.test_by_decision(),
        "pool": dict(result.pool) if result.pool is not None else None,
        "footprints": {name: dict(footprint) for name, footprint in result.footprints.items()},
        "duel": dict(result.duel) if result.duel is not None else None,
        "importances": dict(result.importance), "test_opened": result.test_opened, "seeds": list(result.seeds),
        "settings": dict(result.settings), "budget_seconds": result.budget_seconds,
        "wall_seconds": round(result.wall_seconds, 1),
        "checkpoint": str(result.checkpoint) if result.checkpoint else None, "command": result.command, "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_summary(result: StudyResult) -> Path:
    """Write `summary.json` into the study's folder."""
    text = json.dumps(_finite(summary(result)), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return atomic_write_text(result.folder / SUMMARY_FILE, text + "\n")


def _finite(value: Any) -> Any:
    """A value in which NaN and infinity, which JSON lacks, are None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _readable(row: Sequence[str]) -> list[str]:
    """The row with four significant digits in decimal numbers, and without line breaks."""
    decimal = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?")
    return [short(float(text)) if decimal.fullmatch(text) else text.replace("\n", " ") for text in row]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
