"""What a task and a search hand each other: data, audits, baselines, test results, and what a report looks into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from imf_core.data.audit.report import Audit, Baseline
from imf_core.data.features.modality import Modality
from imf_core.errors import DataError

AuditT = TypeVar("AuditT", bound=Audit)


@dataclass(frozen=True)
class PlainAudit(Audit):
    """An audit of a few sentences, for tasks that have none of their own."""

    source: str
    size: str = ""
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    baseline: Mapping[str, Baseline] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "baseline": {split: dict(metrics.as_dict()) for split, metrics in self.baseline.items()}}


class StudyData(Protocol):
    """The data of a study, as the driver and its trials hold it. A subclass inherits "no modalities, no notes"."""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Features, in the order in which the model uses them."""
        return ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a study is tied to."""

    @property
    def has_test(self) -> bool:
        """Whether there is a test split to open."""

    @property
    def nbytes(self) -> int:
        """Size of the arrays that all trials share, in bytes."""
        return 0

    def summary(self) -> str:
        """One line for the terminal: where it is from and how large it is."""
        return self.fingerprint

    def describe(self, names: tuple[str, ...] | None = None) -> list[str]:
        """Notes for the terminal; `names`: the modalities in use, None for all."""
        return []

    def select(self, names: tuple[str, ...] | None) -> tuple[Modality, ...]:
        """The named modalities; None for all."""
        return self.modalities


@dataclass(frozen=True)
class Control:
    """What a winner is measured against.

    Args:
        name: for reports and run names, for example `structure alone`.
        config: the winner's settings, changed.
        preposition: before the name in "its settings ... NAME".
    """

    name: str
    config: Any
    preposition: str = "with"


@dataclass(frozen=True)
class Refined:
    """A final run after `Task.refine`: the validation MRR with the decision that it keeps, and a line on how it was chosen."""

    mrr: float
    note: str = ""


@dataclass(frozen=True)
class TestResult:
    """What opening the test split has shown.

    Args:
        runs: flat metrics of each seed.
        details: the same with slices, as they go into the published checkpoint.
        decisions: flat metrics of each seed under other decision weights, by what those are.
        pooled: flat metrics of the seeds together; None where there is one.
        baseline: without training; None where there is none.
        notes: what the user should know of the test split.
        pool: flat metrics of the pool of kept models; None where there is none.
    """

    __test__ = False  # no test of pytest's, though its name begins like one

    runs: Sequence[Mapping[str, float]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    decisions: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None
    baseline: Baseline | None = None
    notes: Sequence[str] = ()
    pool: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, opened for a report.

    Args:
        problem: why there is nothing to see; empty where there is.
        metrics: by split, with slices.
        branches: names of the M branches.
        mode: how they are weighed.
        relations: R names.
        weights: (2, R, M) decision weights by direction (tail asked for, head asked for); None for a single branch.
    """

    problem: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    mode: str = ""
    relations: tuple[str, ...] = ()
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Entity:
    """An entity as a report shows it; text and picture (a data URI) are empty where it has none."""

    name: str
    text: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Answered:
    """A question of validation, and how the model answered it.

    Args:
        given: the entity that the question names.
        relation: name of the relation.
        asks_tail: whether the tail is asked for; else the head.
        answer: the right one.
        rank: of the right answer, 1 is best.
        proposed: what the model ranks highest, the best first; empty where that is the right answer.
    """

    given: Entity
    relation: str
    asks_tail: bool
    answer: Entity
    rank: float
    proposed: tuple[Entity, ...] = ()


@dataclass(frozen=True)
class RelationScore:
    """Metrics of a relation on validation, over `count` ranks."""

    name: str
    count: int
    mrr: float
    hits_at_10: float


@dataclass(frozen=True)
class Examples:
    """How the finished model answers validation.

    Args:
        relations: the most frequent first.
        right, wrong: answers drawn at random, spread over the relations.
        ranked: number of validation triples that were ranked for it.
        triples: number of validation triples.
    """

    relations: tuple[RelationScore, ...]
    right: tuple[Answered, ...]
    wrong: tuple[Answered, ...]
    ranked: int
    triples: int


@dataclass(frozen=True)
class Column:
    """A column of the questions or answers of a registered model; `kind` is `string`, `long`, `double` or `boolean`."""

    name: str
    kind: str
    required: bool = True


def with_baseline(audit: AuditT, split: str, metrics: Baseline) -> AuditT:
    """The audit with a baseline's metrics on a split."""
    baselines: Any = {**audit.baseline, split: metrics}
    return replace(audit, baseline=baselines)  # type: ignore[type-var]  # audits are frozen dataclasses


def refuse_problems(audit: Audit, remedy: str) -> None:
    """Raises: DataError: the audit has found a problem."""
    if audit.problems:
        raise DataError(
            f"the audit of {audit.source} found {len(audit.problems)} problem{'s' * (len(audit.problems) > 1)}: "
            + "; ".join(audit.problems), remedy=remedy, path=audit.source,
        )
