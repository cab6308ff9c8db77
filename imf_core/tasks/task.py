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
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from imf_core.checkpoint.checkpoint import read_description
from imf_core.config_base import Settings
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.data.audit.report import Audit, Baseline
from imf_core.files.atomic import atomic_folder
from imf_core.runtime import WHOLE, Shard
from imf_core.tasks.protocols import Column, Control, Examples, Inspection, Refined, StudyData, TestResult
from imf_core.tasks.registry import DEFAULT_TASK
from imf_core.train.estimate import MemoryEstimate
from imf_core.train.loop import FitResult, Saving
from imf_core.train.progress import EpochReport

OnEpoch = Callable[[EpochReport[Any]], None]


ConfigT = TypeVar("ConfigT", bound=Settings)
DataT = TypeVar("DataT", bound=StudyData)
ModelT = TypeVar("ModelT", bound=torch.nn.Module)


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
        split_note: why a figure of validation and one of test differ, beyond chance, in a sentence.
        presets: built-in settings by name.
        has_latency: whether `latency_ms` can be weighed by a search.
        questions, answers: columns of a registered model's input and output.
    """

    name: str
    config: type[ConfigT]
    test_metrics: tuple[str, ...]
    baseline_name: str
    split_note: str = ""
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

    def validation_ranks(self, checkpoint: Path, config: ConfigT, data: DataT) -> np.ndarray | None:
        """Ranks of validation queries, for paired comparisons: (2T,), of the same T triples for every checkpoint, in both
        directions one after the other; None where the task has none.
        """
        return None

    def pool(self, checkpoints: Sequence[Path], target: Path, config: ConfigT, data: DataT) -> Mapping[str, Any] | None:
        """Combine the trained models that answer best together, chosen on validation, into the folder `target`.

        Args:
            checkpoints: folders of the candidates.
            target: replaced if it exists.
            config: for its memory budget.
            data: of the study.

        Returns:
            JSON values: `candidates`, `members` (weights by folder), `validation` (metrics with `mrr`), and the MRR of the pool
            and of the best single model on validation triples that they were not chosen on: `held_back_mrr`,
            `held_back_mrr_of_single`. None, and no folder, where there are fewer than two models or the task cannot combine
            any.
        """
        return None

    def footprint(self, folder: Path) -> Mapping[str, float]:
        """What a checkpoint or a pool costs its user: `bytes` on the disk; where known `parameters` and `latency_ms`."""
        return {"bytes": float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))}

    @abstractmethod
    def test(self, checkpoints: Mapping[int, Path], config: ConfigT, data: DataT, ranks_file: Path) -> TestResult:
        """Open the test split: metrics of each seed's checkpoint, and without training.

        A task whose `pool` returns something also takes the argument `pool`, its folder: the pool is ranked too
        (`TestResult.pool`), and its figures are written into the folder.

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
    def answer(
        self, predictor: Any, questions: Sequence[Mapping[str, Any]], k: int, known: str = "drop"
    ) -> list[tuple[Any, ...]]:
        """Rows of `answers` for rows of `questions`, the best first.

        Args:
            predictor: from `open_predictor`.
            questions: by name.
            k: answers to each.
            known: what training and validation say already is left out (`drop`), marked (`mark`), or given alone (`only`).

        Raises:
            DataError: a row is no question.
            ConfigError: another word for `known`.
        """

    def ask_command(self, checkpoint: Path, example: tuple[str, ...]) -> list[str]:
        """A command line that asks the trained model; empty where there is none."""
        return []

    def inspect(self, checkpoint: Path) -> Inspection:
        """Slices and decision weights of a checkpoint, for the report."""
        return Inspection(f"a model of the task {self.name} has neither slices by relation nor branches to weigh")

    def examples(self, checkpoint: Path, config: ConfigT, data: DataT) -> Examples | None:
        """Metrics by relation and single answers on validation, for the report; None where the task has none."""
        return None

    def card(self, checkpoint: Path, address: str = "FOLDER") -> str | None:
        """The model card of a checkpoint; None where the task has none.

        Args:
            checkpoint: its folder.
            address: how a reader loads it, as in `imf_core.card.card.model_card`.
        """
        return None


AnyTask = Task[Any, Any, Any]
