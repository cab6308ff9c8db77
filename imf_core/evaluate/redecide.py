"""Tuning the decision weights again on cached validation scores: thousands of evaluations in seconds, without any training.

`imf_core.evaluate.calibrate` fits weights by likelihood in every epoch of a model that learns them. Here the MRR itself is
searched, for a model of any decision mode and for each relation; that takes seconds, so it is done for the winner only. Weights
are fitted crosswise: each half of the validation triples is ranked by weights fitted to the other half, so that overfitting
the validation set does not count as a gain.

`python -m tune.report.decisions STUDY` shows what every trial of a study would gain.

Shapes: `Q` queries, `C` cached candidates, `M` branches, `E` proposed weights, `R` relations (inverse ones counted).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.evaluate.cached_scores import DecisionCache, cache_decision
from imf_core.evaluate.calibrate import CachedScores, rank_by_fold
from imf_core.evaluate.competitors import answer_ranks
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.model.decision import LEAST_WEIGHT, Decision
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget

TRAINED, COMMON, RELATION = "trained", "common", "relation"
EVALUATIONS = 2000
_SHRINKAGE = 30.0  # a relation's own queries are mixed with so many that behave like the average relation's
_CELLS = 2**23  # numbers that are compared at a time


@dataclass(frozen=True)
class Weights:
    """Weights fitted to cached queries.

    Args:
        common: (M,) the best for all relations.
        relation: (R, M) the best for each, shrunk towards `common` where a relation has few queries.
    """

    common: Tensor
    relation: Tensor

    def decision(self, kind: str, branches: tuple[str, ...]) -> Decision:
        """A `Decision` with these weights: of mode `fixed` for the kind `common`, of mode `relation` for `relation`."""
        if kind == COMMON:
            return Decision("fixed", branches, 0, dict(zip(branches, self.common.tolist(), strict=True)))
        return Decision("relation", branches, len(self.relation)).with_logits(self.relation.log())


def proposals(branches: int, count: int, generator: np.random.Generator, around: Tensor | None = None) -> Tensor:
    """Weights to try: the corners of the simplex, its middle and random points of it; or random points around a given one.

    Args:
        branches: M.
        count: E, more than M.
        generator: draws the points.
        around: (M,) the given point; later draws are closer to it.

    Returns:
        (E, M), each row on the simplex and at least `LEAST_WEIGHT`.
    """
    if around is None:
        flat = generator.dirichlet(np.ones(branches), (count - branches - 1) // 2)
        sharp = generator.dirichlet(np.full(branches, 0.3), count - branches - 1 - len(flat))
        weights = np.concatenate([np.eye(branches), np.full((1, branches), 1 / branches), flat, sharp])
    else:
        spread = np.geomspace(1.0, 0.05, count)[:, None]
        logits = np.log(around.numpy())[None] + spread * generator.standard_normal((count, branches))
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights = np.maximum(weights / weights.sum(axis=1, keepdims=True), LEAST_WEIGHT)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


@torch.no_grad()
def reciprocal_ranks(scores: CachedScores, weights: Tensor) -> Tensor:
    """(E, Q) reciprocal realistic rank of each answer among its cached competitors, under each of (E, M) weights."""
    queries, candidates, branches = scores.values.shape
    value = (scores.values * scores.usable).reshape(-1, branches)  # (Q C, M)
    partial = bool((scores.usable < 1).any())
    usable = scores.usable.reshape(-1, branches)
    competes = scores.valid[:, 1:, None]
    ranks = []
    for part in weights.split(max(1, _CELLS // (queries * candidates))):
        combined = value @ part.T  # (Q C, e)
        if partial:
            combined /= (usable @ part.T).clamp_min(1e-6)
        ranks.append((1 / answer_ranks(combined.reshape(queries, candidates, len(part)), competes)).T)
    return torch.cat(ranks)


def fit_weights(scores: CachedScores, relations: int, evaluations: int = EVALUATIONS, seed: int = 0) -> Weights:
    """Weights with the best MRR among the cached competitors.

    Half of the evaluations are spread over the simplex, half lie around the best of them. A relation then takes, of all that
    were evaluated, the weights with the best mean over its own queries and 30 more that behave like the average relation's.

    Args:
        scores: cached queries to fit; they must not be ranked with the fitted weights.
        relations: R.
        evaluations: E.
        seed: of the proposals.

    Returns:
        The plain mean where there is no query.
    """
    generator = np.random.default_rng(seed)
    branches = scores.values.shape[2]
    if not len(scores.relations):
        return Weights(torch.full((branches,), 1 / branches), torch.full((relations, branches), 1 / branches))
    first = proposals(branches, evaluations // 2, generator)
    ranks = reciprocal_ranks(scores, first)
    near = proposals(branches, evaluations - len(first), generator, first[ranks.mean(dim=1).argmax()])
    tried, ranks = torch.cat([first, near]), torch.cat([ranks, reciprocal_ranks(scores, near)])  # (E, M), (E, Q)
    mean = ranks.mean(dim=1)
    common = tried[mean.argmax()]
    sums = torch.zeros(len(tried), relations).index_add_(1, scores.relations, ranks)
    counts = torch.bincount(scores.relations, minlength=relations)
    shrunk = (sums + _SHRINKAGE * mean[:, None]) / (counts + _SHRINKAGE)  # (E, R)
    return Weights(common, tried[shrunk.argmax(dim=0)])


def held_back(cache: DecisionCache, relations: int, evaluations: int = EVALUATIONS) -> dict[str, float]:
    """MRR among the cached competitors by kind of weights, each query ranked with weights fitted to the other half."""
    totals = dict.fromkeys((TRAINED, COMMON, RELATION), 0.0)
    for fold, trained in enumerate(cache.crosswise):
        ranked, fitted = cache.scores.without(1 - fold), fit_weights(cache.scores.without(fold), relations, evaluations)
        totals[TRAINED] += _sum_of_reciprocal_ranks(ranked, torch.softmax(trained, dim=1))
        totals[COMMON] += _sum_of_reciprocal_ranks(ranked, fitted.common[None])
        totals[RELATION] += _sum_of_reciprocal_ranks(ranked, fitted.relation)
    return {kind: total / len(cache.scores.relations) for kind, total in totals.items()}


def _sum_of_reciprocal_ranks(scores: CachedScores, weights: Tensor) -> float:
    """Over the Q queries, under (1, M) common weights or (R, M) weights of each relation."""
    combined = scores.combined(weights.clamp_min(1e-12).log())
    return float((1 / answer_ranks(combined, scores.valid[:, 1:])).sum())


@dataclass(frozen=True)
class Redecided:
    """The result of tuning a model's decision weights again.

    Args:
        kept: `trained`, `common` or `relation`: the kind with the best held-back MRR; of equal ones the first.
        mrr: filtered validation MRR by kind, among all entities, each triple ranked with weights not fitted to it.
        metrics: of the kept kind, ranked so.
        trained, tuned: mean weight of each branch over the validation queries: as trained, and of the better other kind.
        decision: the new decision, fitted to all of validation; None: the model keeps its own.
        kinds: the decision of each kind, fitted to all of validation.
    """

    kept: str
    mrr: Mapping[str, float]
    metrics: RankingMetrics
    trained: Mapping[str, float]
    tuned: Mapping[str, float]
    decision: Decision | None
    kinds: Mapping[str, Decision]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's metrics."""
        return {
            "kept": self.kept, "held_back_mrr": dict(self.mrr), "trained_weights": dict(self.trained),
            "tuned_weights": dict(self.tuned), "weights": {kind: _rows(decision) for kind, decision in self.kinds.items()},
        }

    def apply(self, model: Imf, config: Config) -> Config:
        """Replace the model's decision, if another kind won; returns the settings that match it."""
        if self.decision is None:
            return config
        model.decision = self.decision.to(model.structure.device)
        weights = None
        if self.decision.mode == "fixed":
            weights = dict(zip(self.decision.branches, self.decision.constant.tolist(), strict=True))
        return config.updated({"model.decision": self.decision.mode, "model.decision_weights": weights})


def redecide(model: Imf, graph: KnowledgeGraph, memory: MemoryBudget, evaluations: int = EVALUATIONS) -> Redecided | None:
    """Tune the decision weights of a trained model again; None for a model of one branch.

    Args:
        model: left in evaluation mode, with its own decision.
        graph: train and valid are read.
        memory: for scores.
        evaluations: weights tried for each fold.
    """
    if len(model.branches) < 2:
        return None
    cache, relations, kinds = cache_decision(model, graph, memory), 2 * model.num_relations, (TRAINED, COMMON, RELATION)
    by_fold = []
    for fold, logits in enumerate(cache.crosswise):
        fitted = fit_weights(cache.scores.without(fold), relations, evaluations)
        tuned = {kind: fitted.decision(kind, cache.branches) for kind in kinds[1:]}
        by_fold.append({TRAINED: model.decision.with_logits(logits), **tuned})
    ranked = rank_by_fold(model, graph, graph.valid, graph.known(), by_fold, counted=graph.counted_valid, memory=memory)
    mrr = {kind: one.metrics.mrr for kind, one in ranked.items()}
    kept = max(kinds, key=mrr.__getitem__)
    scores, final = cache.scores, fit_weights(cache.scores, relations, evaluations)
    decisions = {kind: final.decision(kind, cache.branches) for kind in kinds[1:]}
    decisions[TRAINED] = model.decision.with_logits(cache.final).cpu()
    better = decisions[max((COMMON, RELATION), key=mrr.__getitem__)]
    means = [
        dict(zip(cache.branches, decision.weights(scores.relations).mean(dim=0).tolist(), strict=True))
        for decision in (decisions[TRAINED], better)
    ]
    return Redecided(kept, mrr, ranked[kept].metrics, means[0], means[1], None if kept == TRAINED else better, decisions)


def fold_decisions(
    model: Imf, graph: KnowledgeGraph, metrics: Mapping[str, Any], memory: MemoryBudget | None = None
) -> tuple[Decision, Decision]:
    """For fold 0 and 1 of validation the model's decision as it is fitted to the other fold; twice its own if it is not fitted.

    Args:
        model: left in evaluation mode.
        graph: train and valid are read.
        metrics: of its checkpoint: they say how its decision was fitted (`Redecided.as_dict`).
        memory: for scores.
    """
    kind = str((metrics.get("decision") or {}).get("kept", TRAINED))
    if len(model.branches) < 2 or (kind == TRAINED and model.decision.logits is None):
        return model.decision, model.decision
    cache = cache_decision(model, graph, memory or MemoryBudget.of(None, model.structure.device))
    if kind == TRAINED:
        first, second = map(model.decision.with_logits, cache.crosswise)
    else:
        weights = (fit_weights(cache.scores.without(fold), 2 * model.num_relations) for fold in (0, 1))
        device = model.structure.device
        first, second = (fitted.decision(kind, model.branches).to(device) for fitted in weights)
    return first, second


def decisions_of(values: Mapping[str, Any], branches: tuple[str, ...]) -> dict[str, Decision]:
    """The decision of each kind, from the values that `Redecided.as_dict` wrote into a checkpoint's metrics."""
    return {kind: _from_rows(rows, branches) for kind, rows in values.get("weights", {}).items()}


def _rows(decision: Decision) -> list[list[float]]:
    """Weights of a decision: one row of M common to all relations, or a row for each."""
    rows = decision.constant[None] if decision.logits is None else torch.softmax(decision.logits, dim=1)
    return [[float(weight) for weight in row] for row in rows.tolist()]


def _from_rows(rows: Sequence[Sequence[float]], branches: tuple[str, ...]) -> Decision:
    weights = torch.tensor(rows, dtype=torch.float32)
    decision = Decision("relation" if len(weights) > 1 else "learned", branches, len(weights))
    return decision.with_logits(weights.clamp_min(torch.finfo(torch.float32).tiny).log())
