"""A teacher's answers to the training queries, computed once before a student is trained.

Shapes: `Q` training queries, `S` answers of a query, `N` entities.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets
from imf_core.runtime import MemoryBudget
from imf_core.train.batches import TrainingQueries

ANSWERS = 32  # of a query; the rest of a trained teacher's probability is spread over very many


@torch.no_grad()
def teach(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, *, answers: int = ANSWERS,
    memory: MemoryBudget | None = None,
) -> SoftTargets:
    """Answer the training queries with a teacher, in the order of `TrainingQueries`. Validation and test are not read.

    Args:
        models, weights: the teacher, see `PooledScores`; it may be a single model.
        graph: of the training triples.
        answers: S; at most N are kept.
        memory: for scores; None: a share of the free memory.

    Returns:
        (Q, S) on the CPU; 12 bytes for each answer.
    """
    queries = TrainingQueries(graph)
    width = min(answers, graph.num_entities)
    order = np.argsort(queries.relations, kind="stable")  # a relation's matrix is then built once

    def answered(budget: int) -> SoftTargets:
        """The strongest answers to all queries, with scores in blocks of `budget` bytes."""
        strongest = torch.empty(len(queries), width, dtype=torch.long)
        probabilities = torch.empty(len(queries), width)
        scores = PooledScores(models, weights, budget)
        device = scores.device
        pair = torch.from_numpy(queries.heads[order]).to(device), torch.from_numpy(queries.relations[order]).to(device)
        size = scores.block
        for number, pooled in enumerate(scores.blocks(*pair, size)):
            rows = torch.from_numpy(order[number * size : (number + 1) * size])
            best = pooled[0].topk(width, dim=1)
            strongest[rows] = best.indices.cpu()
            probabilities[rows] = torch.softmax(best.values.float(), dim=1).cpu()
        return SoftTargets(strongest, probabilities)

    return (memory or MemoryBudget.of(None, models[0].structure.device)).within(answered)
