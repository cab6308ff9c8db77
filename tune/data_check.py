"""What a search knows of its data before it starts: the audit, and the score that no training is needed for.

The audit compares the lines of the test file with those of train and validation, so that a search on leaking splits says so at
its start. It hands on counts alone: no triple of test, and no score on it, before `finalise` opens it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from imf_core.config import DataConfig
from imf_core.data.audit import AuditReport, audit
from imf_core.data.baseline import BaselineMetrics, baseline
from imf_core.data.files import GraphFiles
from imf_core.data.graph import KnowledgeGraph, KnownAnswers
from imf_core.data.prepared import resolve
from imf_core.data.readers import read_raw
from imf_core.encode.coverage import coverage
from imf_core.errors import DataError
from tune.records import atomic_write_text

AUDIT_FILE = "audit.json"


def audited(config: DataConfig, *, strict: bool) -> AuditReport:
    """Audit the graph of a search, without any baseline.

    Args:
        config: where the graph is.
        strict: a problem ends the search here, before anything is encoded or trained.

    Raises:
        DataError: the graph cannot be read; or it has a problem, and `strict` was asked for.
    """
    folder = resolve(config.path)
    raw = read_raw(GraphFiles.of(config, folder), test=True)
    found = audit(raw, coverage=coverage(folder, raw.entities.names), baseline_splits=())
    if strict and found.problems:
        raise DataError(
            f"the audit of {found.source} found {len(found.problems)} problem{'s' * (len(found.problems) > 1)}: "
            + "; ".join(found.problems),
            remedy="mend them (imf audit DIR --repair OUT writes a repaired copy), or search without --strict",
            path=found.source,
        )
    return found


def with_baseline(report: AuditReport, split: str, metrics: BaselineMetrics) -> AuditReport:
    """The report with the baseline's metrics on a split."""
    return replace(report, baseline={**report.baseline, split: metrics})


def baseline_of(graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers) -> BaselineMetrics:
    """Rank a split as a model's answers are ranked, without training anything.

    Args:
        graph: as the trials see it: its training triples make the rules.
        triples: (S, 3) what is ranked.
        known: what is filtered.
    """
    return baseline(graph.train, graph.num_entities, graph.num_relations, triples, known)


def write_audit(report: AuditReport, folder: Path) -> Path:
    """Write `audit.json` into the study's folder."""
    return atomic_write_text(folder / AUDIT_FILE, json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
