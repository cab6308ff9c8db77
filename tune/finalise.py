"""The end of a study: the winner retrained with several seeds, and the test split opened, once.

This is the only place of the search that reads test triples. Everything was chosen before on validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from imf_core.config import Config
from imf_core.data.baseline import BaselineMetrics
from imf_core.errors import ImfError
from imf_core.train.checkpoint import load_checkpoint, save_checkpoint
from imf_core.train.memory import MemoryBudget
from imf_core.train.ranking import evaluate
from tune.data_check import baseline_of
from tune.plan import Plan
from tune.records import TrialRecord
from tune.runner import run_variants
from tune.tracking import Tracker

STRUCTURE_ONLY = "structure-only"


@dataclass(frozen=True)
class Final:
    """What finalising found.

    Args:
        seeds: of the retrained winners that ended well.
        validation: best validation MRR of each.
        test: test metrics of each; empty where the graph has no test split.
        structure_only: validation MRR of the winner's settings without any modality; None where there is none.
        checkpoint: the seed with the best validation MRR.
        example: a validation head and relation to ask about.
        test_opened: how often the test split was read, 0 or 1.
        test_baseline: what the baseline without training reaches on test; None where there is none.
    """

    seeds: tuple[int, ...]
    validation: tuple[float, ...]
    test: tuple[dict[str, float], ...]
    structure_only: float | None
    checkpoint: Path
    example: tuple[str, str]
    test_opened: int
    test_baseline: BaselineMetrics | None = None

    def for_report(self) -> dict[str, Any]:
        """As fields of `StudyResult`."""
        return {
            "structure_only_mrr": self.structure_only, "winner_seed_mrr": self.validation, "test_runs": self.test,
            "seeds": self.seeds, "checkpoint": self.checkpoint, "example": self.example, "test_opened": self.test_opened,
        }


def finalise(plan: Plan, winner: TrialRecord, tracker: Tracker, console: Console) -> Final:
    """Retrain the winner and open the test split.

    Args:
        plan: the study's plan; its graph knows where the test split is, its prepared data does not hold it.
        winner: the trial with the best validation MRR.

    Raises:
        ImfError: no seed could be trained to its end.
    """
    chosen = plan.space.config_for(winner.params)
    seeds = [plan.settings.seed + offset for offset in range(plan.settings.seeds)]
    variants = {_name(seed): chosen.updated({"train.seed": seed}) for seed in seeds}
    if len(plan.branches) > 1:
        variants[STRUCTURE_ONLY] = structure_only(chosen, seeds[0])
    beside = ", and its settings on structure alone" if STRUCTURE_ONLY in variants else ""
    console.print(f"finalising: trial {winner.number} with {len(seeds)} seed(s){beside}", highlight=False)
    runs = run_variants(plan, variants, plan.settings.study_dir / "final", tracker, console)
    done = [seed for seed in seeds if _usable(runs.get(_name(seed)))]
    if not done:
        reasons = "; ".join(f"{name}: {record.reason}" for name, (record, _) in runs.items())
        raise ImfError(
            f"no seed of the winner could be trained to its end ({reasons})",
            remedy=f"see the error files in {plan.settings.study_dir / 'final'}",
        )
    validation = [float(runs[_name(seed)][0].best_mrr or 0.0) for seed in done]
    test, rules = _open_test(plan, [runs[_name(seed)][1] for seed in done], console)
    best = max(range(len(done)), key=lambda position: validation[position])
    target = plan.settings.study_dir / "best"
    _publish(runs[_name(done[best])][1], target, test[best] if test else None)
    alone, graph = runs.get(STRUCTURE_ONLY), plan.data.graph
    head, relation, _ = graph.valid[0]
    return Final(
        seeds=tuple(done), validation=tuple(validation), test=tuple(test),
        structure_only=alone[0].best_mrr if alone is not None and _usable(alone) else None, checkpoint=target,
        example=(graph.entities.names[head], graph.relations.names[relation]),
        test_opened=int(rules is not None), test_baseline=rules,
    )


def structure_only(config: Config, seed: int) -> Config:
    """The same settings without any modality."""
    flat: dict[str, Any] = {"model.modalities": [], "model.decision": "uniform", "model.decision_weights": None}
    return config.updated({**flat, "train.seed": seed})


def _open_test(
    plan: Plan, checkpoints: list[Path], console: Console
) -> tuple[list[dict[str, float]], BaselineMetrics | None]:
    """Rank the test triples with each checkpoint and without training; nothing else in a search scores them."""
    graph = plan.data.graph
    if graph.test_reader is None:
        console.print("the graph has no test split: validation figures only")
        return [], None
    triples = graph.open_test()
    for note in graph.test_notes:
        console.print(f"  {escape(note)}", highlight=False)
    known = graph.known(graph.train, graph.valid, triples)
    memory = MemoryBudget.of(plan.base.train.memory_budget_mb)
    models = (load_checkpoint(path).model for path in checkpoints)
    metrics = [evaluate(model, graph, triples, known, memory=memory).metrics.flat() for model in models]
    return metrics, baseline_of(graph, triples, known)


def _publish(source: Path, target: Path, test: dict[str, float] | None) -> None:
    """Write the best checkpoint where the user finds it, with its test figures inside."""
    loaded = load_checkpoint(source)
    metrics = {**loaded.metrics, **({"test": test} if test is not None else {})}
    save_checkpoint(target, loaded.model, loaded.config, loaded.entities, loaded.relations, metrics)


def _usable(run: tuple[TrialRecord, Path] | None) -> bool:
    return run is not None and run[0].state.usable and run[0].best_mrr is not None and run[1].is_dir()


def _name(seed: int) -> str:
    return f"seed-{seed}"
