"""What a search knows of its data before it starts: the audit, and the score that no training is needed for.

The audit compares the lines of the test file with those of train and validation, so that a search on leaking splits says so at
its start. It hands on counts alone: no triple of test, and no score on it, before `finalise` opens it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from imf_core.config import DataConfig
from imf_core.data.audit.audit import audit
from imf_core.data.audit.baseline import BaselineMetrics, baseline
from imf_core.data.audit.report import AuditReport
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.readers import read_raw
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.errors import DataError
from imf_core.prepare.coverage import coverage
from imf_core.prepare.link_data import resolve
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.audit import InteractionAudit, audit_interactions
from imf_core.recommend.data.prepare import RecommendData, prepare_recommend, read_for_audit
from imf_core.recommend.fit import popularity_baseline
from imf_core.recommend.topk import TopKMetrics

Audit = TypeVar("Audit", bound=AuditReport | InteractionAudit)


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
    if strict:
        _refuse(found, "mend them (imf audit DIR --repair OUT writes a repaired copy), or search without --strict")
    return found


def recommend_data(config: RecommendConfig, strict: bool) -> tuple[RecommendData, InteractionAudit]:
    """The interactions of a search, audited, with the baseline of what most users have on validation.

    Args:
        config: where they are.
        strict: a problem ends the search here.

    Raises:
        DataError: they cannot be read or have nothing to validate on; or there is a problem, and `strict` was asked for.
    """
    found = audit_interactions(*read_for_audit(config.data))
    if strict:
        _refuse(found, "mend them, or search without --strict")
    data = prepare_recommend(config.data)
    return data, with_baseline(found, "valid", popular(data, data.interactions.valid, (data.interactions.train,)))


def popular(data: RecommendData, relevant: np.ndarray, known: tuple[np.ndarray, ...]) -> TopKMetrics:
    """Recommend what most users have, without training anything; arguments as of `popularity_baseline`."""
    return popularity_baseline(data.interactions, relevant, known)


def _refuse(found: AuditReport | InteractionAudit, remedy: str) -> None:
    """Raises: DataError: the audit has found a problem."""
    if found.problems:
        raise DataError(
            f"the audit of {found.source} found {len(found.problems)} problem{'s' * (len(found.problems) > 1)}: "
            + "; ".join(found.problems), remedy=remedy, path=found.source,
        )


def with_baseline(report: Audit, split: str, metrics: BaselineMetrics | TopKMetrics) -> Audit:
    """The report with the baseline's metrics on a split."""
    baselines: Any = {**report.baseline, split: metrics}
    return replace(report, baseline=baselines)


def baseline_of(graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers) -> BaselineMetrics:
    """Rank a split as a model's answers are ranked, without training anything.

    Args:
        graph: as the trials see it: its training triples make the rules.
        triples: (S, 3) what is ranked.
        known: what is filtered.
    """
    return baseline(graph.train, graph.num_entities, graph.num_relations, triples, known)
