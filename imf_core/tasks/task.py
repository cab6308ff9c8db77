"""The Task protocol: all that a search has to know of what it trains.

A task is one file. The searcher, the scheduler, the journal, the records and the reports see one score, the validation MRR,
and plain values; they import no data class and no model of any task. To add one, subclass `Task` and register it
(`imf_core/tasks/registry.py`).
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from imf_core.checkpoint.checkpoint import read_description
from imf_core.config_base import Settings
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.data.features.modality import Modality
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_folder
from imf_core.files.markdown import escaped
from imf_core.runtime import WHOLE, Shard
from imf_core.tasks.registry import DEFAULT_TASK
from imf_core.train.estimate import MemoryEstimate
from imf_core.train.loop import FitResult, Saving
from imf_core.train.progress import EpochReport

OnEpoch = Callable[[EpochReport[Any]], None]


class Baseline(Protocol):
    """Metrics of a baseline that needs no training."""

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, 0..1."""

    def describe(self) -> str:
        """One line, in percent."""

    def as_dict(self) -> Mapping[str, Any]:
        """Plain values, from which `Task.baseline` builds it again."""


class Audit(Protocol):
    """The audit of a task's data; a frozen dataclass."""

    @property
    def source(self) -> str:
        """Where the data is from."""

    @property
    def size(self) -> str:
        """How large it is, in words; empty where nobody says."""

    @property
    def problems(self) -> Sequence[str]:
        """What `--strict` refuses."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know and need not mend."""

    @property
    def baseline(self) -> Mapping[str, Baseline]:
        """Baselines without training, by split."""

    def lines(self) -> Sequence[str]:
        """Findings, for the report."""

    def baseline_lines(self) -> Sequence[str]:
        """A line for each baseline."""

    def tables(self) -> Mapping[str, tuple[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]]:
        """Tables by id: caption, column titles, rows."""

    def markdown(self) -> str:
        """The whole audit."""

    def to_json(self) -> dict[str, Any]:
        """The whole audit, as plain values."""


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
    """

    __test__ = False  # no test of pytest's, though its name begins like one

    runs: Sequence[Mapping[str, float]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    decisions: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    pooled: Mapping[str, float] | None = None
    baseline: Baseline | None = None
    notes: Sequence[str] = ()


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
class Column:
    """A column of the questions or answers of a registered model; `kind` is `string`, `long` or `double`."""

    name: str
    kind: str
    required: bool = True


ConfigT = TypeVar("ConfigT", bound=Settings)
DataT = TypeVar("DataT", bound=StudyData)
ModelT = TypeVar("ModelT", bound=torch.nn.Module)
AuditT = TypeVar("AuditT", bound=Audit)


@dataclass(frozen=True)
class PlainAudit:
    """An audit of a few sentences, for tasks that have none of their own; see `Audit`."""

    source: str
    size: str = ""
    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    baseline: Mapping[str, Baseline] = field(default_factory=dict)

    def lines(self) -> Sequence[str]:
        return self.baseline_lines()

    def baseline_lines(self) -> Sequence[str]:
        return [f"{split} without training: {metrics.describe()}" for split, metrics in self.baseline.items()]

    def tables(self) -> Mapping[str, tuple[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]]:
        return {}

    def markdown(self) -> str:
        lines = [*self.problems, *self.warnings, *self.baseline_lines()]
        return "\n".join(["## Data", "", *(f"- {escaped(line)}" for line in lines)])

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "baseline": {split: dict(metrics.as_dict()) for split, metrics in self.baseline.items()}}


class Task(ABC, Generic[ConfigT, DataT, ModelT]):
    """One kind of model: how it is configured, read, trained, kept, tested and asked.

    Its settings are a `Settings` with the sections `data` (with `path`, and `absolute()` where that is relative to the working
    directory), `model` (with `modalities`, where there are any) and `train` (with `seed`, `max_epochs`, and `batch_size` where
    a trial may be run again with half of it when memory runs out); the fields that a search may tune carry a `Tunable`.
    Its models have `num_parameters` and `trained_state()`. A checkpoint folder has a `config.json` with `task`, the task's
    name, and `metrics`.

    Attributes:
        name: of `--task`.
        config: class of its settings.
        test_metrics: the metrics of its reports, MRR first.
        baseline_name: what the baseline without training goes by.
        presets: built-in settings by name.
        has_latency: whether `latency_ms` can be weighed by a search.
        questions, answers: columns of a registered model's input and output.
    """

    name: str
    config: type[ConfigT]
    test_metrics: tuple[str, ...]
    baseline_name: str
    presets: Mapping[str, Callable[[], ConfigT]] = {}
    has_latency = False
    questions: tuple[Column, ...] = ()
    answers: tuple[Column, ...] = ()

    def __eq__(self, other: object) -> bool:
        """Copies in other processes are the same task: data is cached by it."""
        return isinstance(other, Task) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    # --- data ---

    @abstractmethod
    def read(self, config: ConfigT, *, strict: bool) -> tuple[DataT, Audit]:
        """Read and audit the data; the audit has the baseline on validation, and hands on counts alone of test.

        Args:
            config: where the data is and how features are made.
            strict: a problem that the audit finds ends the search here, before anything is encoded or trained.

        Raises:
            DataError: it cannot be read, has nothing to validate on, or has a problem and `strict` is set.
        """

    @abstractmethod
    def save(self, data: DataT, folder: Path) -> str:
        """Write the form that all trials share, without the test split; returns a digest of its arrays."""

    @abstractmethod
    def load(self, folder: str) -> DataT:
        """Read what `save` wrote."""

    @abstractmethod
    def example(self, data: DataT) -> tuple[str, ...]:
        """Names to ask the trained model about, for `ask_command`."""

    def training_counts(self, data: DataT) -> dict[str, int]:
        """Training examples of each relation, by name; empty where there are no relations."""
        return {}

    # --- model ---

    def branches(self, config: ConfigT, data: DataT) -> tuple[str, ...]:
        """Names of the model's branches: what decision weights may be searched for. Default: the modalities in use."""
        return tuple(modality.name for modality in data.select(getattr(config.model, "modalities", None)))

    @abstractmethod
    def estimate(self, config: ConfigT, data: DataT, workers: int) -> MemoryEstimate:
        """Peak memory of one worker.

        Raises:
            DataError: too little data for so many workers.
        """

    def score_cache_bytes(self, data: DataT) -> int:
        """Most bytes that `cache_scores` leaves on the disk."""
        return 0

    @abstractmethod
    def build(self, config: ConfigT, data: DataT) -> ModelT:
        """The model, initialised from `train.seed`."""

    @abstractmethod
    def fit(
        self, model: ModelT, data: DataT, config: ConfigT, on_epoch: OnEpoch | None = None, *, shard: Shard = WHOLE,
        saving: Saving | None = None, device: torch.device | None = None,
    ) -> FitResult[Any]:
        """Train, reporting each evaluation; see `imf_core.train.fit.fit`."""

    @abstractmethod
    def keep(self, folder: Path, model: ModelT, config: ConfigT, data: DataT, metrics: Mapping[str, Any]) -> None:
        """Write a checkpoint folder."""

    def cache_scores(self, folder: Path, model: ModelT, config: ConfigT, data: DataT, device: torch.device) -> None:
        """Keep validation scores in the trial's folder, so that decisions can be tried later without the model.

        Raises:
            ResourceError: no room in memory; the trial has its result without.
        """

    def latency_ms(self, model: ModelT) -> float:
        """Milliseconds to answer one question; only where `has_latency`."""
        raise ValueError(f"the task {self.name} has no latency")

    # --- finalising ---

    def control(self, config: ConfigT, data: DataT, seed: int) -> Control | None:
        """What the winner is measured against; None where there is nothing."""
        return None

    def ablations(self, config: ConfigT, data: DataT, seed: int) -> Mapping[str, ConfigT]:
        """The winner's settings without each modality, by its name; empty where there is one modality or none."""
        return {}

    def refine(self, checkpoint: Path, config: ConfigT, data: DataT, best_mrr: float) -> Refined:
        """Improve a final run on validation without training; what an earlier session did stays as it is."""
        return Refined(best_mrr)

    @abstractmethod
    def test(self, checkpoints: Mapping[int, Path], config: ConfigT, data: DataT, ranks_file: Path) -> TestResult:
        """Open the test split: metrics of each seed's checkpoint, and without training.

        Args:
            checkpoints: folders by seed.
            config: for its memory budget.
            data: of the study; it knows where its test split is.
            ranks_file: where ranks may be kept, for paired tests between studies.
        """

    def baseline(self, values: Mapping[str, Any]) -> Baseline:
        """A baseline from its `as_dict`."""
        return BaselineMetrics(**values)

    def publish(self, source: Path, target: Path, test: Mapping[str, Any] | None) -> None:
        """Copy the best checkpoint to where the user finds it, with its test figures inside."""
        with atomic_folder(target) as fresh:
            shutil.copytree(source, fresh, dirs_exist_ok=True)
            described = read_description(source)
            if test is not None:
                described["metrics"]["test"] = dict(test)
            (fresh / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")

    # --- the trained model ---

    def owns(self, checkpoint: Path) -> bool:
        """Whether a checkpoint folder is of this task: `task` of its `config.json`.

        Raises:
            CheckpointError: it is no checkpoint.
        """
        return read_description(checkpoint).get("task", DEFAULT_TASK) == self.name

    @abstractmethod
    def open_predictor(self, checkpoint: Path | str) -> Any:
        """What answers questions by name."""

    @abstractmethod
    def answer(self, predictor: Any, questions: Sequence[Mapping[str, Any]], k: int) -> list[tuple[Any, ...]]:
        """Rows of `answers` for rows of `questions`, the best first.

        Raises:
            DataError: a row is no question.
        """

    def ask_command(self, checkpoint: Path, example: tuple[str, ...]) -> list[str]:
        """A command line that asks the trained model; empty where there is none."""
        return []

    def inspect(self, checkpoint: Path) -> Inspection:
        """Slices and decision weights of a checkpoint, for the report."""
        return Inspection(f"a model of the task {self.name} has neither slices by relation nor branches to weigh")

    def card(self, checkpoint: Path) -> str | None:
        """The model card of a checkpoint; None where the task has none."""
        return None


AnyTask = Task[Any, Any, Any]


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

