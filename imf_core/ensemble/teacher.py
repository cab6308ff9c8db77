"""A teacher's answers to the training queries, made once before a student is trained.

Shapes: `Q` training queries, `S` answers of a query.
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

ANSWERS = 32  # of a query: the rest of a trained teacher's probability is spread thin


@torch.no_grad()
def teach(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, *, answers: int = ANSWERS,
    memory: MemoryBudget | None = None,
) -> SoftTargets:
    """Ask a teacher the training queries, in the order of `TrainingQueries`; no validation or test triple is looked at.

    Args:
        models, weights: the teacher, see `PooledScores`; one model is a teacher too.
        graph: whose training triples ask.
        answers: S; at most N are kept.
        memory: for scores.

    Returns:
        (Q, S) on the CPU; 12 bytes an answer.
    """
    queries = TrainingQueries(graph)
    width = min(answers, graph.num_entities)
    order = np.argsort(queries.relations, kind="stable")  # a relation's matrix is then built once

    def _asked(budget: int) -> SoftTargets:
        found = torch.empty(len(queries), width, dtype=torch.long)
        likely = torch.empty(len(queries), width)
        scores = PooledScores(models, weights, budget)
        device = scores.device
        pair = torch.from_numpy(queries.heads[order]).to(device), torch.from_numpy(queries.relations[order]).to(device)
        size = scores.block
        for number, pooled in enumerate(scores.blocks(*pair, size)):
            place = torch.from_numpy(order[number * size : (number + 1) * size])
            best = pooled[0].topk(width, dim=1)
            found[place] = best.indices.cpu()
            likely[place] = torch.softmax(best.values.float(), dim=1).cpu()
        return SoftTargets(found, likely)

    return (memory or MemoryBudget.of(None, models[0].structure.device)).within(_asked)
