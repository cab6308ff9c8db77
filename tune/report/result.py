"""What a finished study has found, ready for its reports."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imf_core.evaluate.test_once import POOLED
from imf_core.tasks.protocols import Audit
from imf_core.tasks.registry import task_named
from imf_core.tasks.task import AnyTask
from tune.report.pareto import front
from tune.space.objectives import QUALITY, parse_objective
from tune.study.records import TrialRecord, winner


@dataclass(frozen=True)
class StudyResult:
    """Everything that is known when a study has ended.

    Args:
        study: its name.
        folder: where its files lie.
        data: path or name of the data set.
        data_fingerprint: of the graph and its features.
        records: one a trial.
        wall_seconds: of the whole command.
        command: as typed, to repeat it.
        structure_only_mrr: validation MRR of the winner's settings without any modality; None if not run.
        without: validation MRR of the winner's settings retrained without one modality, by its name; empty where there is one
            modality, whose removal is structure alone.
        test_runs: test metrics of the retrained winner, one mapping a seed.
        seeds: of those runs.
        checkpoint: folder of the best checkpoint; None if nothing was trained to an end.
        tracking_uri: MLflow's.
        example: a head and a relation to ask about in the printed command.
        winner_seed_mrr: best validation MRR of the winner retrained with each seed.
        test_opened: how often the test file was read.
        budget_seconds: time allowed for the trials; None for no limit.
        settings: of the search, as plain values.
        audit: of the data, with the baseline without training on validation and, once it was opened, on test.
        task: name of what was trained.
        control: what `structure_only_mrr` is of, where that is not structure alone.
        test_decisions: test metrics of each seed under other decision weights, by what those are.
        test_pooled: test metrics of the seeds together; None where there is one.
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

    @property
    def kind(self) -> AnyTask:
        """The task object."""
        return task_named(self.task)

    @property
    def winner(self) -> TrialRecord | None:
        """The trial with the best validation MRR."""
        return winner(self.records)

    @property
    def costs(self) -> tuple[str, ...]:
        """What was weighed besides the MRR."""
        return parse_objective(str(self.settings.get("objective", QUALITY)))

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front where there are costs, see `tune.report.pareto`."""
        return front(self.records, self.costs) if self.costs else []

    @property
    def points_over_structure(self) -> float | None:
        """Validation MRR of the winner above structure alone, in points (hundredths); None where unknown.

        Like against like: the retrained winners ran as many epochs as the structure-only run, so their mean stands for the
        winner where there are any. The trial's own best is the highest of many and would flatter it.
        """
        fused, alone = self.winner_validation()["mean"], self.structure_only_mrr
        if not self.winner_seed_mrr:
            fused = self.winner.best_mrr if self.winner else None
        if fused is None or alone is None or not math.isfinite(alone):
            return None
        return 100 * (fused - alone)

    def points_over_baseline(self, split: str) -> float | None:
        """MRR of the retrained winner above the baseline without training, in points; None where either is unknown.

        Args:
            split: `valid` or `test`.
        """
        rules = self.audit.baseline.get(split) if self.audit is not None else None
        reached = (self.test()["mrr"] if split == "test" else self.winner_validation())["mean"]
        return None if rules is None or reached is None else 100 * (reached - rules.mrr)

    def winner_validation(self) -> dict[str, float | None]:
        """Mean and sample deviation of the retrained winner's best validation MRR over the seeds."""
        return mean_std(self.winner_seed_mrr)

    def test(self) -> dict[str, dict[str, float | None]]:
        """Mean and sample deviation (n - 1) over the seeds; None where unknown: no test, or one seed has no deviation."""
        return self._over_seeds(self.test_runs)

    def tested_otherwise(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """As `test()`, under other decision weights and by the seeds together, by what those are."""
        pooled = {} if self.test_pooled is None else {POOLED: self._over_seeds([self.test_pooled])}
        return {**{name: self._over_seeds(runs) for name, runs in self.test_decisions.items()}, **pooled}

    def _over_seeds(self, runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
        names = self.kind.test_metrics
        return {name: mean_std([run[name] for run in runs if name in run]) for name in names}

    @property
    def rules(self) -> str:
        """What the baseline without training goes by."""
        return self.kind.baseline_name


def mean_std(values: Sequence[float]) -> dict[str, float | None]:
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite or len(finite) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(finite), "std": statistics.stdev(finite) if len(finite) > 1 else None}
