"""Which of several models to ask together: greedy selection with replacement on validation (Caruana et al., ICML 2004).

The model that raises the MRR of the pool most is added, also one that is in it already, until none has for some rounds; the
weight of a model is how often it was taken. The gain is told crosswise: each half of the validation triples is ranked by the
pool that was chosen on the other half.

Shapes: `Q` validation queries, `C` cached candidates, `K` models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.evaluate.calibrate import competing, folds, repeated
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget

ROUNDS = 30  # models that are taken at most
_MAX_TRIPLES = 4000
_PER_MODEL = 24  # strongest wrong answers of each model
_PATIENCE = 5  # rounds without a better pool


@dataclass(frozen=True)
class PoolCandidates:
    """For each query its answer and the wrong answers that any model ranks high.

    Args:
        values: (Q, C, K) float64 log-probabilities, the answer in column 0.
        valid: (Q, C) bool; False for candidates that are no competitor (known answers, repeats).
        fold: (Q,) 0 or 1.
    """

    values: Tensor
    valid: Tensor
    fold: Tensor

    def part(self, chosen: Tensor) -> PoolCandidates:
        """The queries where `chosen` is True."""
        return PoolCandidates(self.values[chosen], self.valid[chosen], self.fold[chosen])

    def reciprocal_ranks(self, pooled: Tensor) -> Tensor:
        """(Q,) of the answers under (Q, C) pooled log-probabilities; ties count half."""
        own, others, competes = pooled[:, :1], pooled[:, 1:], self.valid[:, 1:]
        better = ((others > own) & competes).sum(dim=1) + 0.5 * ((others == own) & competes).sum(dim=1)
        return 1.0 / (1.0 + better.double())

    def mrr(self, weights: Sequence[float]) -> float:
        """MRR of the pool with these K weights."""
        return float(self.reciprocal_ranks(self.values @ torch.tensor(weights, dtype=torch.float64)).mean())


@dataclass(frozen=True)
class Selection:
    """A chosen pool.

    Args:
        weights: of the K models; 0 for those left out, their sum is 1.
        alone: validation MRR of each model, among the cached candidates.
        held_back: MRR of the crosswise chosen pools on the triples they were not chosen on.
        held_back_single: the same of the crosswise chosen best single models.
    """

    weights: tuple[float, ...]
    alone: tuple[float, ...]
    held_back: float
    held_back_single: float


@torch.no_grad()
def pool_candidates(
    models: Sequence[Imf], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, budget: int = 2**29
) -> PoolCandidates:
    """Score held-out triples in both directions by all models, and keep the candidates that can matter.

    Args:
        models: of the same entities and relations; put into evaluation mode.
        triples: (T, 3); at most 4,000 of them are used, drawn by a fixed seed.
        known: other known answers are no competitors.
        budget: bytes that scores may take.
    """
    if len(triples) > _MAX_TRIPLES:
        triples = triples[np.sort(np.random.default_rng(0).choice(len(triples), _MAX_TRIPLES, replace=False))]
    asked = with_inverses(triples, graph.num_relations)
    order = np.argsort(asked[:, 1], kind="stable")  # a relation's matrix is then built once
    heads, relations, targets = np.ascontiguousarray(asked[order].T)
    scores = PooledScores(models, [1.0] * len(models), budget // 2)
    device, block = scores.device, min(scores.block, 256)
    both = torch.from_numpy(heads).to(device), torch.from_numpy(relations).to(device)
    values, valid = [], []
    for number, members in enumerate(scores.each(*both, block)):
        part = slice(number * block, (number + 1) * block)
        target = torch.from_numpy(targets[part]).to(device)
        competes = competing(members[0], target, known.lookup(heads[part], relations[part]))
        width = min(_PER_MODEL, scores.num_entities)
        strongest = [member.masked_fill(~competes, -torch.inf).topk(width, dim=1).indices for member in members]
        candidates = torch.cat([target[:, None], *strongest], dim=1)
        usable = competes.gather(1, candidates) & ~repeated(candidates)
        usable[:, 0] = True
        values.append(torch.stack([member.gather(1, candidates) for member in members], dim=2).double().cpu())
        valid.append(usable.cpu())
    fold = np.tile(folds(triples), 2)[order]
    return PoolCandidates(torch.cat(values), torch.cat(valid), torch.from_numpy(fold))


def greedy(candidates: PoolCandidates, rounds: int = ROUNDS) -> tuple[float, ...]:
    """(K,) weights of the best pool on these queries; ties go to the smaller pool and the earlier model."""
    count = candidates.values.shape[2]
    taken = np.zeros(count, dtype=np.int64)
    total = torch.zeros(candidates.values.shape[:2], dtype=torch.float64)
    best, best_taken, waited = -1.0, taken.copy(), 0
    for _ in range(rounds):
        tried = [
            float(candidates.reciprocal_ranks(total + candidates.values[:, :, place]).mean()) for place in range(count)
        ]
        chosen = int(np.argmax(tried))
        total += candidates.values[:, :, chosen]
        taken[chosen] += 1
        waited += 1
        if tried[chosen] > best:
            best, best_taken, waited = tried[chosen], taken.copy(), 0
        if waited >= _PATIENCE:
            break
    return tuple((best_taken / best_taken.sum()).tolist())


def select(
    models: Sequence[Imf], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, *, rounds: int = ROUNDS,
    memory: MemoryBudget | None = None,
) -> Selection:
    """Choose a pool on held-out triples.

    Args:
        models: K candidates of the same entities and relations.
        graph: of the triples.
        triples: (T, 3) validation triples.
        known: what is filtered.
        rounds: models taken at most, repeats counted.
        memory: for scores.
    """
    memory = memory or MemoryBudget.of(None, models[0].structure.device)
    cached = memory.within(lambda budget: pool_candidates(models, graph, triples, known, budget))
    single = np.eye(len(models)).tolist()
    alone = tuple(cached.mrr(row) for row in single)
    pooled, lone = [], []
    for fold in (0, 1):
        chosen_on, told_on = cached.part(cached.fold != fold), cached.part(cached.fold == fold)
        if not len(told_on.fold) or not len(chosen_on.fold):
            chosen_on = told_on = cached
        weights = torch.tensor(greedy(chosen_on, rounds), dtype=torch.float64)
        best = max(range(len(models)), key=lambda place: chosen_on.mrr(single[place]))
        pooled.append(told_on.reciprocal_ranks(told_on.values @ weights))
        lone.append(told_on.reciprocal_ranks(told_on.values[:, :, best]))
    return Selection(greedy(cached, rounds), alone, float(torch.cat(pooled).mean()), float(torch.cat(lone).mean()))
