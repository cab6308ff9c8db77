"""The results of a finished study, from which all reports are made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imf_core.data.audit.report import Audit, Baseline
from imf_core.evaluate.test_once import POOLED
from imf_core.tasks.registry import task_named
from imf_core.tasks.task import AnyTask
from tune.report.pareto import pareto_front
from tune.space.objectives import QUALITY, parse_objective
from tune.study.records import TrialRecord, ranked, winner


@dataclass(frozen=True)
class StudyResult:
    """The results of a study.

    Args:
        study: name of the study.
        folder: folder of its files.
        data: path or name of the data set.
        data_fingerprint: SHA-256 of the data and its features.
        records: one per trial.
        wall_seconds: of all sessions.
        command: the command line, to repeat the study.
        structure_only_mrr: validation MRR of the control, by default the winner's settings with structure alone; None if it
            was not run.
        without: validation MRR of the winner's settings retrained without one modality, by its name; empty for a single
            modality, since structure alone lacks that one.
        test_runs: test metrics of the retrained winner, one mapping per seed.
        seeds: of those runs.
        checkpoint: folder of the best checkpoint; None if no run completed.
        tracking_uri: of MLflow.
        example: a validation head and relation, or a user, for the printed command that asks the winner.
        winner_seed_mrr: best validation MRR of the winner retrained with each seed.
        test_opened: number of times that the study has read the test split.
        budget_seconds: time budget; None for no limit.
        settings: flat settings of the study.
        audit: of the data, with the baseline without training on validation and, once opened, on test.
        task: name of the task.
        control: name of the control of `structure_only_mrr`.
        test_decisions: test metrics of each seed under other decision weights, by the name of the decision.
        test_pooled: test metrics of the ensemble of all seeds; None for a single seed.
        margins: by how much the 95 % interval of the winner's lead reaches below and above it, in MRR; by the name of the
            control, of the modality that is left out, and of the baseline (on test). Empty where the task keeps no ranks.
        pool: the kept models that answer best together, as `Task.pool` describes them, with their `test` metrics; None without.
        footprints: see `Task.footprint`, of `best` and `pool`.
        chosen: name of the trial that was retrained; empty: the one with the best validation MRR.
        duel: how the two best trials did with another seed: `first`, `second`, `winner`, `seed`, and the `mrr` of both.
        importance: share of each searched setting, 0..1, the largest first (`tune.study.sampler.importances`).
    """

    study: str
    folder: Path
    data: str
    data_fingerprint: str
    records: tuple[TrialRecord, ...]
    wall_seconds: float
    command: str
    structure_only_mrr: float | None = None
    without: Mapping[str, float] = field(default_factory=dict)
    test_runs: tuple[Mapping[str, float], ...] = ()
    seeds: tuple[int, ...] = ()
    checkpoint: Path | None = None
    tracking_uri: str | None = None
    example: tuple[str, ...] | None = None
    winner_seed_mrr: tuple[float, ...] = ()
    test_opened: int = 0
    budget_seconds: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    audit: Audit | None = None
    task: str = "link"
    control: str = "structure alone"
    test_decisions: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    test_pooled: Mapping[str, float] | None = None
    margins: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    importance: Mapping[str, float] = field(default_factory=dict)
    pool: Mapping[str, Any] | None = None
    footprints: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chosen: str = ""
    duel: Mapping[str, Any] | None = None

    @property
    def kind(self) -> AnyTask:
        """The task that was trained."""
        return task_named(self.task)

    @property
    def winner(self) -> TrialRecord | None:
        """The trial that was retrained, else the one with the best validation MRR."""
        return next((record for record in self.records if record.trial_id == self.chosen), winner(self.records))

    @property
    def costs(self) -> tuple[str, ...]:
        """The objectives besides the MRR."""
        return parse_objective(str(self.settings.get("objective", QUALITY)))

    @property
    def pareto_front(self) -> list[TrialRecord]:
        """The Pareto front of MRR and costs; empty for a search without costs."""
        return pareto_front(self.records, self.costs) if self.costs else []

    @property
    def baseline(self) -> Mapping[str, Baseline]:
        """The baseline without training, by split; empty if the data was not audited."""
        return self.audit.baseline if self.audit is not None else {}

    @property
    def overlaps(self) -> Mapping[str, str]:
        """What its figures are of, in words, for each split that shares lines with an earlier one."""
        return self.audit.overlaps if self.audit is not None else {}

    @property
    def points_over_structure(self) -> float | None:
        """Validation MRR of the winner minus that of the control, in points (hundredths); None if unknown.

        The winner's MRR is the mean of its retrained runs if there are any: the MRR of the winning trial itself is the highest
        of many and therefore biased.
        """
        fused, alone = self.winner_validation()["mean"], self.structure_only_mrr
        if not self.winner_seed_mrr:
            fused = self.winner.best_mrr if self.winner else None
        if fused is None or alone is None or not math.isfinite(alone):
            return None
        return 100 * (fused - alone)

    def points_over(self, mrr: float) -> float | None:
        """Validation MRR of the retrained winner minus another, in points; None if unknown."""
        mean = self.winner_validation()["mean"]
        return None if mean is None or not math.isfinite(mrr) else 100 * (mean - mrr)

    @property
    def without_named(self) -> dict[str, tuple[float, str]]:
        """Rows without a modality that names answers: name of the row -> validation MRR, and of how many answers, in words.

        A model with that modality alone is compared with the control, which lacks it.
        """
        named = self.audit.named_answers if self.audit is not None else {}
        rows = {f"without {name}": (mrr, named[name]) for name, mrr in self.without.items() if name in named}
        used = (self.winner.params if self.winner else {}).get("model.modalities", self.settings.get("model.modalities"))
        alone = not self.without and self.structure_only_mrr is not None
        for name in named if alone else ():
            if used is None or name in used:
                rows[self.control] = (float(self.structure_only_mrr or 0.0), f"without {name}: {named[name]}")
        return rows

    def points_over_baseline(self, split: str) -> float | None:
        """MRR of the retrained winner minus that of the baseline without training, in points; None if either is unknown.

        Args:
            split: `valid` or `test`.
        """
        baseline = self.baseline.get(split)
        mean = (self.test()["mrr"] if split == "test" else self.winner_validation())["mean"]
        return None if baseline is None or mean is None else 100 * (mean - baseline.mrr)

    def winner_validation(self) -> dict[str, float | None]:
        """Best validation MRR of the retrained winner over the seeds, see `mean_std`."""
        return mean_std(self.winner_seed_mrr)

    def test(self) -> dict[str, dict[str, float | None]]:
        """Test metrics over the seeds, see `mean_std`."""
        return self._over_seeds(self.test_runs)

    def test_by_decision(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """As `test()`, under other decision weights and for the ensemble of all seeds, by the name of the decision."""
        pooled = {} if self.test_pooled is None else {POOLED: self._over_seeds([self.test_pooled])}
        return {**{name: self._over_seeds(runs) for name, runs in self.test_decisions.items()}, **pooled}

    def _over_seeds(self, runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
        names = self.kind.test_metrics
        return {name: mean_std([run[name] for run in runs if name in run]) for name in names}


def with_ranks(records: Iterable[TrialRecord]) -> list[tuple[int | None, TrialRecord]]:
    """All trials, best validation MRR first, each with its rank; the rank is None without a usable value."""
    return [
        (rank if record.state.usable and record.best_mrr is not None else None, record)
        for rank, record in enumerate(ranked(records), start=1)
    ]


def setting_names(records: Iterable[TrialRecord]) -> list[str]:
    """The names of all searched settings, sorted."""
    return sorted({name for record in records for name in record.params})


def mean_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (n - 1); None if a value is not finite, no deviation for a single value."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(finite), "std": statistics.stdev(finite) if len(finite) > 1 else None}
