"""Choosing the members of an ensemble: greedy selection with replacement on validation (Caruana et al., ICML 2004).

In each round the model that raises the MRR of the pool most is added, even if it is in the pool already, until some rounds
bring no gain; the weight of a model is how often it was added. The gain is measured crosswise: each half of the validation
triples is ranked by the pool that was chosen on the other half.

Shapes: `T` validation triples, `Q` validation queries (2T), `C` cached candidates, `K` models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.evaluate.calibrate import folds
from imf_core.evaluate.competitors import answer_ranks, pick_candidates
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget

ROUNDS = 30  # most models that are added, repeats counted
_MAX_TRIPLES = 4000
_PER_MODEL = 24  # strongest wrong answers of each model
_PATIENCE = 5  # rounds without a better pool


@dataclass(frozen=True)
class PoolCandidates:
    """For each query its answer and the wrong answers that any model ranks high.

    Args:
        values: (Q, C, K) float64 log-probabilities, the answer in column 0.
        valid: (Q, C) bool; False for candidates that do not compete (known answers, repeats).
        fold: (Q,) int64, 0 or 1.
    """

    values: Tensor
    valid: Tensor
    fold: Tensor

    @classmethod
    def joined(cls, parts: Sequence[PoolCandidates]) -> PoolCandidates:
        """The candidates of several parts, one part after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "valid", "fold")))

    def part(self, queries: Tensor) -> PoolCandidates:
        """The candidates of some queries, given as a (Q,) bool mask."""
        return PoolCandidates(self.values[queries], self.valid[queries], self.fold[queries])

    def reciprocal_ranks(self, pooled: Tensor) -> Tensor:
        """(Q, C) pooled log-probabilities -> (Q,) float64 reciprocal ranks of the answers."""
        return 1.0 / answer_ranks(pooled, self.valid[:, 1:]).double()

    def mrr(self, weights: Sequence[float]) -> float:
        """MRR, 0..1, of the pool with these K weights."""
        return float(self.reciprocal_ranks(self.values @ torch.tensor(weights, dtype=torch.float64)).mean())


@dataclass(frozen=True)
class Selection:
    """A chosen pool.

    Args:
        weights: of the K models, >= 0, sum 1; 0 for those left out.
        alone: validation MRR of each model, among the cached candidates.
        held_back: MRR of the two pools, each on the half of the triples that it was not chosen on.
        held_back_single: as `held_back`, of the best single model instead of the pool.
    """

    weights: tuple[float, ...]
    alone: tuple[float, ...]
    held_back: float
    held_back_single: float


@torch.no_grad()
def pool_candidates(
    models: Sequence[Imf], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, budget: int = 2**29,
    decisions: Sequence[Decision] = (),
) -> PoolCandidates:
    """Score held-out triples in both directions by all models, and keep the candidates that can outrank the answer.

    Args:
        models: K models of the same entities and relations; put into evaluation mode.
        graph: of the triples.
        triples: (T, 3) int64; at most 4,000 of them are used, drawn by a fixed seed.
        known: other known answers do not compete.
        budget: bytes that scores may take.
        decisions: of the K models; default: their own.
    """
    if len(triples) > _MAX_TRIPLES:
        triples = triples[np.sort(np.random.default_rng(0).choice(len(triples), _MAX_TRIPLES, replace=False))]
    queries = with_inverses(triples, graph.num_relations)  # (Q, 3)
    order = np.argsort(queries[:, 1], kind="stable")  # a relation's matrix is then built once
    heads, relations, targets = np.ascontiguousarray(queries[order].T)
    scores = PooledScores(models, [1.0] * len(models), budget // 2, decisions)
    device, block = scores.device, min(scores.block, 256)
    asked = torch.from_numpy(heads).to(device), torch.from_numpy(relations).to(device)
    values, valid = [], []
    for number, members in enumerate(scores.each(*asked, block)):
        part = slice(number * block, (number + 1) * block)
        target = torch.from_numpy(targets[part]).to(device)
        candidates, competes = pick_candidates(members, target, known.lookup(heads[part], relations[part]), _PER_MODEL)
        values.append(torch.stack([member.gather(1, candidates) for member in members], dim=2).double().cpu())
        valid.append(competes.cpu())
    fold = np.tile(folds(triples), 2)[order]
    return PoolCandidates(torch.cat(values), torch.cat(valid), torch.from_numpy(fold))


def greedy(candidates: PoolCandidates, rounds: int = ROUNDS) -> tuple[float, ...]:
    """(K,) weights of the best pool on these queries; ties go to the smaller pool and the earlier model."""
    count = candidates.values.shape[2]
    times = np.zeros(count, dtype=np.int64)  # how often each model was added
    total = torch.zeros(candidates.values.shape[:2], dtype=torch.float64)  # (Q, C)
    best, best_times, waited = -1.0, times.copy(), 0
    for _ in range(rounds):
        mrr = [float(candidates.reciprocal_ranks(total + candidates.values[:, :, model]).mean()) for model in range(count)]
        chosen = int(np.argmax(mrr))
        total += candidates.values[:, :, chosen]
        times[chosen] += 1
        waited += 1
        if mrr[chosen] > best:
            best, best_times, waited = mrr[chosen], times.copy(), 0
        if waited >= _PATIENCE:
            break
    return tuple((best_times / best_times.sum()).tolist())


def select(
    models: Sequence[Imf], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, *, rounds: int = ROUNDS,
    memory: MemoryBudget | None = None, by_fold: Sequence[Sequence[Decision]] = ((), ()),
) -> Selection:
    """Choose a pool on held-out triples.

    Args:
        models: K candidates of the same entities and relations.
        graph: of the triples.
        triples: (T, 3) int64 validation triples.
        known: answers to filter out.
        rounds: most models that are added, repeats counted; at least 1.
        memory: for scores; None: a share of the free memory.
        by_fold: for fold 0 and 1 of the triples the decisions of the K models; default: their own.
    """
    memory, fold_of = memory or MemoryBudget.of(None, models[0].structure.device), folds(triples)

    def candidates(budget: int) -> PoolCandidates:
        parts = [(triples[fold_of == fold], decisions) for fold, decisions in enumerate(by_fold)]
        return PoolCandidates.joined(
            [pool_candidates(models, graph, part, known, budget, decisions) for part, decisions in parts if len(part)]
        )

    cached = memory.within(candidates)
    single = np.eye(len(models)).tolist()
    alone = tuple(cached.mrr(row) for row in single)
    pooled, lone = [], []
    for fold in (0, 1):
        fitted, ranked = cached.part(cached.fold != fold), cached.part(cached.fold == fold)
        if not len(ranked.fold) or not len(fitted.fold):
            fitted = ranked = cached
        weights = torch.tensor(greedy(fitted, rounds), dtype=torch.float64)
        best = max(range(len(models)), key=lambda model: fitted.mrr(single[model]))
        pooled.append(ranked.reciprocal_ranks(ranked.values @ weights))
        lone.append(ranked.reciprocal_ranks(ranked.values[:, :, best]))
    return Selection(greedy(cached, rounds), alone, float(torch.cat(pooled).mean()), float(torch.cat(lone).mean()))
