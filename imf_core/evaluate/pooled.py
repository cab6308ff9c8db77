"""Scores of an ensemble: the weighted geometric mean of the probabilities that its models give the entities.

A model combines its branches in the same way (`imf_core.model.decision`): a candidate that one of them rules out is ruled out.
On MKG-Y's validation split it ranks 0.2 points of MRR better than the arithmetic mean of the same models (`results/README.md`).

Shapes: `K` models, `B` queries of a block, `N` entities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.evaluate.calibrate import folds
from imf_core.evaluate.ranking import ModelScores, Ranked, rank
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget


def log_distribution(decided: Tensor, loss: str) -> Tensor:
    """(B, N) log-probabilities over the entities from a model's decided scores; in place.

    Args:
        decided: (B, N) weighted log-probabilities (`ce`, which need not sum to 1), or probabilities of sigmoids (`bce`).
        loss: `ce` or `bce`.
    """
    if loss == "bce":
        decided.clamp_min_(torch.finfo(decided.dtype).tiny).log_()
    return decided.sub_(torch.logsumexp(decided, dim=1, keepdim=True))


class PooledScores:
    """`Scores` of several models: the weighted mean of their log-probabilities, as a distribution.

    Args:
        models: K models of the same entities and relations; put into evaluation mode.
        weights: K numbers above 0; they are normalised to sum 1.
        budget: bytes that a block's scores and intermediate results may take.
        decisions: of the K models; default: their own.
    """

    num_variants = 1

    def __init__(
        self, models: Sequence[Imf], weights: Sequence[float], budget: int, decisions: Sequence[Decision] = ()
    ) -> None:
        self.kinds = [model.loss_kind for model in models]
        self.shares = [float(weight / sum(weights)) for weight in weights]
        chosen = decisions or [model.decision for model in models]
        share = budget // (len(models) + 1)
        self.parts = [ModelScores(model, share, [decision]) for model, decision in zip(models, chosen, strict=True)]
        self.num_entities, self.device = models[0].num_entities, self.parts[0].device

    @property
    def block(self) -> int:
        """B: the smallest block among the models."""
        return min(part.block for part in self.parts)

    def each(self, heads: Tensor, relations: Tensor, size: int) -> Iterator[list[Tensor]]:
        """K tensors (B, N) of log-probabilities, block by block; arguments and lifetime as of `Scores.blocks`."""
        for tables in zip(*(part.blocks(heads, relations, size) for part in self.parts), strict=True):
            yield [log_distribution(table[0], kind) for table, kind in zip(tables, self.kinds, strict=True)]

    def pool(self, members: Sequence[Tensor]) -> Tensor:
        """K tensors (B, N) of log-probabilities -> (B, N) log-probabilities of their weighted geometric mean."""
        pooled = members[0] * self.shares[0]
        for member, share in zip(members[1:], self.shares[1:], strict=True):
            pooled.add_(member, alpha=share)
        return pooled.sub_(torch.logsumexp(pooled, dim=1, keepdim=True))

    def blocks(self, heads: Tensor, relations: Tensor, size: int) -> Iterator[Tensor]:
        """See `imf_core.evaluate.ranking.Scores`."""
        for members in self.each(heads, relations, size):
            yield self.pool(members)[None]


def evaluate_pooled(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers,
    memory: MemoryBudget | None = None, *, counted: np.ndarray | None = None, decisions: Sequence[Decision] = (),
) -> Ranked:
    """Filtered ranking of a split by an ensemble; other arguments and errors as of `imf_core.evaluate.ranking.evaluate`.

    Args:
        models, weights, decisions: as of `PooledScores`.
    """
    heads, relations, targets = with_inverses(triples, graph.num_relations).T

    def ranked(budget: int) -> np.ndarray:
        scores = PooledScores(models, weights, budget, decisions)
        return rank(scores, heads, relations, targets, known, block=scores.block)[0]

    ranks = (memory or MemoryBudget.of(None, models[0].structure.device)).within(ranked)
    return Ranked.of(ranks, graph, triples, counted)


def pooled_by_fold(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, known: KnownAnswers,
    by_fold: Sequence[Sequence[Decision]], memory: MemoryBudget | None = None,
) -> Ranked:
    """Filtered ranking of validation by an ensemble, each fold under decisions of its own; see `evaluate_pooled`.

    Args:
        by_fold: for fold 0 and 1 the decisions of the K models.
    """
    triples, counted = graph.valid, graph.counted_valid
    fold_of, ranks = folds(triples), np.empty((2, len(triples)))
    for fold, decisions in enumerate(by_fold):
        chosen = fold_of == fold
        ranked = evaluate_pooled(models, weights, graph, triples[chosen], known, memory, decisions=decisions)
        ranks[:, chosen] = ranked.tail_ranks, ranked.head_ranks
    return Ranked.of(ranks.reshape(-1), graph, triples, counted)
