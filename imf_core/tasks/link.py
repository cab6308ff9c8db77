"""Link prediction as a task: IMF on a multimodal knowledge graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imf_core.card.card import model_card, read_study
from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import PRESETS, Config
from imf_core.data.audit.audit import audit, repair_command
from imf_core.data.audit.baseline import BaselineMetrics, baseline
from imf_core.data.audit.report import Audit
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, counted_triples, split_notes
from imf_core.ensemble.ensemble import Ensemble, add_figures, load_ensemble, open_model
from imf_core.ensemble.pool import Pool, distinct
from imf_core.errors import CheckpointError, ConfigError, DataError
from imf_core.evaluate.cached_scores import cache_decision, save_cache
from imf_core.evaluate.latency import latency_ms, scores_latency_ms
from imf_core.evaluate.pooled import PooledScores
from imf_core.evaluate.ranking import Ranked
from imf_core.evaluate.redecide import fold_decisions, redecide
from imf_core.evaluate.test_once import POOL, flat, rank_test
from imf_core.model.branches import branches_of
from imf_core.model.imf import Imf
from imf_core.predict import Predictor
from imf_core.prepare.link_data import GraphSource, LinkData, load_prepared, save_prepared
from imf_core.prepare.shared_form import arrays_digest
from imf_core.runtime import WHOLE, MemoryBudget, Shard
from imf_core.tasks.examples import examples, ranks
from imf_core.tasks.protocols import (
    Column,
    Control,
    Examples,
    Inspection,
    Refined,
    TestResult,
    refuse_problems,
    with_baseline,
)
from imf_core.tasks.task import OnEpoch, Task
from imf_core.train.batches import TrainingQueries
from imf_core.train.estimate import MemoryEstimate, estimate_of
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import FitResult, Saving

STRUCTURE_ONLY = "structure alone"
_DECISIONS = {"trained": "as trained", "common": "tuned again", "relation": "tuned again for each relation"}


class LinkTask(Task[Config, LinkData, Imf]):
    """Complete a graph: (head, relation, ?) and (?, relation, tail)."""

    name = "link"
    config = Config
    test_metrics = ("mrr", "mrr_all_lines", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank", "mrr_cold", "mrr_warm")
    baseline_name = "one-step rules"
    split_note = (
        "Validation ranks are filtered by train and validation only, so that true test answers compete there; test ranks are "
        "filtered by all three. Settings, epoch and decision weights were chosen on validation, nothing on test."
    )
    presets = PRESETS
    has_latency = True
    questions = (
        Column("relation", "string"), Column("k", "long", required=False), Column("head", "string", required=False),
        Column("tail", "string", required=False), Column("known", "string", required=False),
    )
    answers = (
        Column("head", "string"), Column("relation", "string"), Column("tail", "string"), Column("rank", "long"),
        Column("score", "double"), Column("known", "boolean"),
    )

    def read(self, config: Config, *, strict: bool) -> tuple[LinkData, Audit]:
        """As `Task.read`."""
        if config.train.modality_order:
            raise ConfigError(
                "train.modality_order is for imf train, which trains several models one after another",
                remedy="leave it out of the search; train with the winner's settings afterwards",
                key="train.modality_order", value=config.train.modality_order,
            )
        source = GraphSource.open(config.data, test=True)
        texts = source.files.texts if config.data.text in ("auto", "descriptions") else None
        report = audit(source.raw, coverage=source.coverage(), baseline_splits=(), texts=texts)
        if strict:  # before features are extracted, which may take long
            repair = repair_command(report.source)
            refuse_problems(report, f"mend them ({repair} writes a repaired copy), or search without --strict")
        data = source.prepare(config.structure, progress=True)
        graph = data.graph
        return data, with_baseline(report, "valid", baseline_of(graph, graph.valid, graph.known(), graph.counted_valid))

    def save(self, data: LinkData, folder: Path) -> str:
        save_prepared(data, folder)
        return arrays_digest(folder)

    def load(self, folder: str) -> LinkData:
        return load_prepared(folder)

    def example(self, data: LinkData) -> tuple[str, ...]:
        """A head and a relation of validation."""
        head, relation, _ = data.graph.valid[0]
        return data.graph.entities.names[head], data.graph.relations.names[relation]

    def training_counts(self, data: LinkData) -> dict[str, int]:
        counts = np.bincount(data.graph.train[:, 1], minlength=data.graph.num_relations)
        return dict(zip(data.graph.relations.names, counts.tolist()))

    def branches(self, config: Config, data: LinkData) -> tuple[str, ...]:
        names = super().branches(config, data)
        return tuple(branch.name for branch in branches_of(config.model, names))

    def estimate(self, config: Config, data: LinkData, workers: int) -> MemoryEstimate:
        settings = config.train
        TrainingQueries(data.graph, answers_per_query=settings.answers_per_query).num_steps(settings.batch_size, workers)
        return estimate_of(config, data)

    def score_cache_bytes(self, data: LinkData) -> int:
        """A model of several branches keeps the branch scores of up to 2,000 queries, 24 candidates a branch and some."""
        branches = len(data.modalities) + 2
        queries = min(2000, 2 * len(data.graph.valid))
        return queries * (24 * branches + 25) * (5 * branches + 1) if data.modalities else 0

    def build(self, config: Config, data: LinkData) -> Imf:
        return build_model(config, data)

    def fit(
        self, model: Imf, data: LinkData, config: Config, on_epoch: OnEpoch | None = None, *, shard: Shard = WHOLE,
        saving: Saving | None = None, device: torch.device | None = None,
    ) -> FitResult[Any]:
        return fit(model, data, config, on_epoch, shard=shard, saving=saving, device=device)

    def keep(self, folder: Path, model: Imf, config: Config, data: LinkData, metrics: Mapping[str, Any]) -> None:
        save_checkpoint(folder, model, config, data.graph, metrics)

    def cache_scores(self, folder: Path, model: Imf, config: Config, data: LinkData, device: torch.device) -> None:
        if len(model.branches) > 1:
            save_cache(cache_decision(model, data.graph, MemoryBudget.of(config.train.memory_budget_mb, device)), folder)

    def latency_ms(self, model: Imf) -> float:
        return latency_ms(model)

    def control(self, config: Config, data: LinkData, seed: int) -> Control | None:
        """Structure alone, where there are modalities."""
        return Control(STRUCTURE_ONLY, structure_only(config, seed), "on") if len(self.branches(config, data)) > 1 else None

    def ablations(self, config: Config, data: LinkData, seed: int) -> Mapping[str, Config]:
        used = tuple(modality.name for modality in data.select(config.model.modalities))
        return {name: without(config, name, used, seed) for name in used} if len(used) > 1 else {}

    def refine(self, checkpoint: Path, config: Config, data: LinkData, best_mrr: float) -> Refined:
        """Tune the decision weights again, and keep the better ones."""
        loaded = load_checkpoint(checkpoint)
        decision = loaded.metrics.get("decision")
        if decision is None:
            tuned = redecide(loaded.model, data.graph, MemoryBudget.of(config.train.memory_budget_mb))
            if tuned is None:
                return Refined(best_mrr)
            decision = tuned.as_dict()
            save_checkpoint(
                checkpoint, loaded.model, tuned.apply(loaded.model, loaded.config), data.graph,
                {**loaded.metrics, "validation": tuned.metrics.as_dict(), "decision": decision},
            )
        kept, mrr = str(decision["kept"]), decision["held_back_mrr"]
        others = ", ".join(f"{_DECISIONS[kind]} {value:.4f}" for kind, value in mrr.items() if kind != kept)
        note = f"decision weights {_DECISIONS[kept]}: held-back validation MRR {mrr[kept]:.4f} ({others})"
        return Refined(float(mrr[kept]), note)

    def validation_ranks(self, checkpoint: Path, config: Config, data: LinkData) -> np.ndarray | None:
        loaded, memory = load_checkpoint(checkpoint), MemoryBudget.of(config.train.memory_budget_mb)
        graph, by_fold = data.graph, fold_decisions(loaded.model, data.graph, loaded.metrics, memory)
        return ranks(loaded.model, graph, graph.known(), by_fold, memory)

    def pool(self, checkpoints: Sequence[Path], target: Path, config: Config, data: LinkData) -> Mapping[str, Any] | None:
        """As `imf ensemble` chooses."""
        folders = distinct(checkpoints)
        if len(folders) < 2:
            return None
        pool = Pool.choose(folders, data.graph)
        figures = pool.figures()
        pool.save(target, figures)
        members = {str(pool.folders[index]): weight for index, weight in zip(pool.kept, pool.weights, strict=True)}
        return {**figures, "members": members}

    def footprint(self, folder: Path) -> Mapping[str, float]:
        """With the time to answer one question, entity tables precomputed."""
        model = open_model(folder)
        members = model.members if isinstance(model, Ensemble) else (model,)
        models, weights = [member.model for member in members], getattr(model, "weights", (1.0,))
        latency = scores_latency_ms(PooledScores(models, weights, 2**28), models[0].num_relations) if len(models) > 1 else (
            latency_ms(models[0])
        )
        parameters = sum(member.num_parameters for member in models)
        return {**super().footprint(folder), "parameters": float(parameters), "latency_ms": latency}

    def test(
        self, checkpoints: Mapping[int, Path], config: Config, data: LinkData, ranks_file: Path, pool: Path | None = None
    ) -> TestResult:
        """Open the test split: each seed's checkpoint under its own and other decisions, the seeds together, and the pool."""
        graph = data.graph
        triples = graph.open_test()
        known = graph.known(graph.train, graph.valid, triples)
        memory = MemoryBudget.of(config.train.memory_budget_mb)
        counted = counted_triples(graph, "test", triples)
        more: dict[str, Ranked] = {}
        if pool is not None:
            more[POOL] = load_ensemble(pool).rank(graph, triples, known, memory, counted=counted)
            add_figures(pool, {"test": more[POOL].metrics.as_dict()})
        tested = rank_test(checkpoints, graph, triples, known, memory, ranks_file, counted=counted, more=more)
        return TestResult(
            [flat(metrics) for metrics in tested.own], [metrics.as_dict() for metrics in tested.own], tested.decisions,
            tested.pooled, baseline_of(graph, triples, known, counted), split_notes(graph, "test", triples),
            flat(more[POOL].metrics) if more else None,
        )

    def open_predictor(self, checkpoint: Path | str) -> Predictor:
        return Predictor.load(checkpoint)

    def answer(
        self, predictor: Predictor, questions: Sequence[Mapping[str, Any]], k: int, known: str = "drop"
    ) -> list[tuple[Any, ...]]:
        """One row an answer: head, relation, tail, rank (from 1), score, and whether it is a known fact.

        Args:
            predictor: of this task.
            questions: rows with `relation` and either `head` (asks for tails) or `tail` (asks for heads); `k` and `known` of a
                row, where there are such, go before the arguments.
            k: answers for each question.
            known: see `Predictor.answers`.
        """
        rows: list[tuple[Any, ...]] = []
        for number, row in enumerate(questions, start=1):
            head, relation, tail = (_text(row.get(name)) for name in ("head", "relation", "tail"))
            if not relation or bool(head) == bool(tail):
                remedy = "give relation and either head (asks for tails) or tail (asks for heads)"
                raise DataError(f"question {number} is not a query: {row!r}", remedy=remedy, line=number, value=row)
            limit = row.get("k")
            limit = k if limit is None or (isinstance(limit, float) and math.isnan(limit)) else int(limit)
            choice = _text(row.get("known")) or known
            answers = (
                predictor.tails(head, relation, limit, choice) if head else predictor.heads(str(tail), relation, limit, choice)
            )
            for rank, answer in enumerate(answers, start=1):
                triple = (head, relation, answer.entity) if head else (answer.entity, relation, tail)
                rows.append((*triple, rank, float(answer.score), answer.known))
        return rows

    def ask_command(self, checkpoint: Path, example: tuple[str, ...]) -> list[str]:
        head, relation = example or ("NAME", "RELATION")
        return ["imf", "predict", str(checkpoint), "--head", head, "--relation", relation]

    def examples(self, checkpoint: Path, config: Config, data: LinkData) -> Examples | None:
        loaded, memory = load_checkpoint(checkpoint), MemoryBudget.of(config.train.memory_budget_mb)
        by_fold = fold_decisions(loaded.model, data.graph, loaded.metrics, memory)
        return examples(loaded.model, data.graph, config.data, by_fold, memory)

    def inspect(self, checkpoint: Path) -> Inspection:
        """Slices of both splits, and the decision weights of each relation."""
        try:
            loaded = load_checkpoint(checkpoint)
        except CheckpointError as error:
            return Inspection(f"the winner's checkpoint cannot be read: {error}")
        decision, relations = loaded.model.decision, loaded.relations.names
        with torch.no_grad():
            weights = decision.weights(torch.arange(2 * len(relations))).numpy().reshape(2, len(relations), -1)  # (2, R, M)
        several = len(decision.branches) > 1
        return Inspection("", loaded.metrics, decision.branches, decision.mode, relations, weights if several else None)

    def card(self, checkpoint: Path, address: str = "FOLDER") -> str:
        return model_card(load_checkpoint(checkpoint), read_study(checkpoint), address)


LINK = LinkTask()


def baseline_of(
    graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, counted: np.ndarray | None = None
) -> BaselineMetrics:
    """Rank a split as a model's answers are ranked, without training anything.

    Args:
        graph: its training triples make the rules.
        triples: (S, 3) what is ranked.
        known: what is filtered.
        counted: see `counted_triples`.
    """
    return baseline(graph.train, graph.num_entities, graph.num_relations, triples, known, counted)


def structure_only(config: Config, seed: int) -> Config:
    """The same settings without any modality."""
    changes: dict[str, Any] = {"model.modalities": [], "model.decision": "uniform", "model.decision_weights": None}
    return config.updated({**changes, "train.seed": seed})


def without(config: Config, name: str, used: Sequence[str], seed: int) -> Config:
    """The same settings without one of the modalities `used`; the weights of the others keep their proportions."""
    changes: dict[str, Any] = {"model.modalities": [other for other in used if other != name], "train.seed": seed}
    if (weights := config.model.decision_weights) is not None:
        gone = {name, *(head.branch for head in config.model.heads if head.view == name)}
        changes["model.decision_weights"] = {branch: weight for branch, weight in weights.items() if branch not in gone}
    return config.updated(changes)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
