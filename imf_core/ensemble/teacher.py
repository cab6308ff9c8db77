"""What a teacher tells a student: answers to the training queries and preferences, computed once, or itself, to be asked.

Shapes: `Q` training queries, `S` answers and `H` hard negatives of a query, `N` entities, `M` branches of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from imf_core.data.audit.baseline import OneStepRules
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets, Teacher
from imf_core.model.losses.preference import Preferences
from imf_core.runtime import MemoryBudget
from imf_core.train.batches import TrainingQueries

ANSWERS = 32  # of a query; the rest of a trained teacher's probability is spread over very many
HARD = 8  # hard negatives of a query: 28 preferences
UNASKED = 60_000  # queries that no training triple asks: two thirds of those that MKG-W's validation asks are among them
_BLOCK = 2048  # entities whose unasked queries are weighed at a time
_QUERIES = 512  # whose answers each branch scores at a time


@torch.no_grad()
def teach(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, *, answers: int = ANSWERS,
    memory: MemoryBudget | None = None, unknown: bool = False,
) -> SoftTargets:
    """Answer the training queries with a teacher, in the order of `TrainingQueries`. Validation and test are not read.

    A teacher that was trained on the same triples gives most of its probability to the known answers, which the student's own
    loss teaches anyway; what it alone can tell is how it orders the others.

    Args:
        models, weights: the teacher, see `PooledScores`; it may be a single model.
        graph: of the training triples.
        answers: S; at most N are kept.
        memory: for scores; None: a share of the free memory.
        unknown: only answers that no training triple knows; S is then at most what the query with the most answers leaves.

    Returns:
        (Q, S) on the CPU, the strongest first; 12 bytes for each answer.
    """
    queries = TrainingQueries(graph)
    most = int(np.diff(queries.index.offsets).max(initial=0)) if unknown else 0
    width = max(1, min(answers, graph.num_entities - most))
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
            if unknown:
                place, tails = queries.index.lookup(queries.heads[rows.numpy()], queries.relations[rows.numpy()])
                pooled[0][torch.from_numpy(place).to(device), torch.from_numpy(tails).to(device)] = -torch.inf
            best = pooled[0].topk(width, dim=1)
            strongest[rows] = best.indices.cpu()
            probabilities[rows] = torch.softmax(best.values.float(), dim=1).nan_to_num().cpu()
        return SoftTargets(strongest, probabilities)

    return (memory or MemoryBudget.of(None, models[0].structure.device)).within(answered)


@torch.no_grad()
def with_branches(
    soft: SoftTargets, models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, student: Imf
) -> SoftTargets:
    """Add what the teacher's branches say of its answers: for each branch of the student those that score the same view.

    Args:
        soft: (Q, S) answers, from `teach`.
        models, weights: the teacher.
        graph: of the training triples.
        student: its branches are taught.

    Returns:
        The answers with `branches` (Q, S, m), weighted geometric means, and `taught`.
    """
    queries, count = TrainingQueries(graph), soft.answers.shape[1]
    views = [branch.view for branch in student.of_branch.values()]
    logs = torch.zeros(*soft.answers.shape, len(views))
    shares = torch.zeros(len(views))
    for model, weight in zip(models, weights, strict=True):
        model.eval()
        device, tables = model.structure.device, model.tables()
        taught = [[place for place, view in enumerate(views) if view == branch.view] for branch in model.of_branch.values()]
        for places in taught:
            shares[places] += weight
        for low in range(0, len(queries), _QUERIES):
            rows = slice(low, low + _QUERIES)
            heads, relations = (torch.from_numpy(part[rows]).to(device) for part in (queries.heads, queries.relations))
            answers = soft.answers[rows].to(device).flatten()
            contexts = model.contexts(tables, heads, relations)
            for branch, places, context in zip(model.branches, taught, contexts, strict=True):
                scores = model.scorers[branch].score_pairs(  # type: ignore[operator]
                    context.repeat_interleave(count, dim=0), tables.entities[branch][answers]
                ).view(-1, count)
                if model.loss_kind == "bce":
                    scores = torch.nn.functional.logsigmoid(scores)
                for place in places:
                    logs[rows, :, place] += weight * torch.log_softmax(scores.float(), dim=1).cpu()
    taught_by = tuple(shares.nonzero()[:, 0].tolist())
    return replace(soft, branches=torch.softmax((logs / shares)[:, :, list(taught_by)], dim=1), taught=taught_by)


def whole(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, *, memory: MemoryBudget | None = None
) -> Teacher:
    """A teacher that gives a student its distribution over all entities in each step; arguments as of `teach`.

    What an ensemble knows and its strongest answers to the training queries do not tell is how it ranks the rest, and what it
    says of queries that no training triple asks, as two of five validation queries of MKG-W are.
    """
    memory = memory or MemoryBudget.of(None, models[0].structure.device)
    scores = PooledScores(models, weights, memory.size)

    @torch.no_grad()
    def ask(heads: Tensor, relations: Tensor) -> Tensor:
        order = relations.to(scores.device).argsort(stable=True)  # a relation's matrix is then built once
        pair = heads.to(scores.device)[order], relations.to(scores.device)[order]
        answers = torch.empty(len(order), scores.num_entities, device=scores.device)
        for rows, block in zip(order.split(scores.block), scores.blocks(*pair, scores.block), strict=True):
            answers[rows] = block[0].float()
        return answers

    heads, relations, cumulated = map(torch.from_numpy, _unasked(graph.known(graph.train), graph.num_entities))
    return Teacher(ask, heads, relations, cumulated)


def _unasked(known: KnownAnswers, num_entities: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads (U,), relations (U,) and cumulated weights (U,) of the likeliest queries of known entities that `known` lacks.

    An entity is as likely to be asked for a relation as the relations that it has let one expect, each by itself: with
    `p(r | s)`, the share of the entities with s that have r too, it is `1 - product over s of (1 - p(r | s))`.
    """
    width = 2 * known.num_relations
    heads, relations = known.queries()
    starts = np.searchsorted(heads, np.arange(0, num_entities + _BLOCK, _BLOCK))
    together = np.zeros((width, width))

    def has(number: int) -> np.ndarray:
        """(b, 2R) which relations the entities of a block are asked for."""
        part, low = slice(starts[number], starts[number + 1]), number * _BLOCK
        block = np.zeros((min(_BLOCK, num_entities - low), width))
        block[heads[part] - low, relations[part]] = 1
        return block

    numbers = range(-(-num_entities // _BLOCK))
    for number in numbers:
        block = has(number)
        together += block.T @ block
    share = together / np.maximum(together.diagonal(), 1)[:, None]  # (2R, 2R) p(r | s) in row s
    unlikely = np.log1p(-np.minimum(share, 0.98))
    keys, likely = np.empty(0, np.int64), np.empty(0)
    for number in numbers:
        block = has(number)
        wanted = (1 - np.exp(block @ unlikely)) * (block == 0)
        found = np.flatnonzero(wanted)
        keys = np.concatenate([keys, found + number * _BLOCK * width])
        likely = np.concatenate([likely, wanted.ravel()[found]])
        if len(keys) > UNASKED:
            best = np.sort(np.argpartition(-likely, UNASKED)[:UNASKED])
            keys, likely = keys[best], likely[best]
    return keys // width, keys % width, np.cumsum(likely) / likely.sum() if len(keys) else likely


def preferences_of(
    models: Sequence[Imf], weights: Sequence[float], graph: KnowledgeGraph, memory: MemoryBudget | None = None
) -> Preferences:
    """A teacher's preferences among the strongest answers that no training triple knows; arguments as of `teach`."""
    soft = teach(models, weights, graph, answers=HARD, memory=memory, unknown=True)
    return Preferences(_keys(graph), soft.answers, soft.probabilities, graph.num_relations)


def rule_preferences(graph: KnowledgeGraph) -> Preferences:
    """Preferences of the one-step rules: the strongest answers that a rule gives and no training triple knows."""
    rules, queries = OneStepRules(graph.train, graph.num_entities, graph.num_relations), TrainingQueries(graph)
    entities, levels = rules.best(queries.heads, queries.relations, queries.index, HARD)
    return Preferences(_keys(graph), torch.from_numpy(entities), torch.from_numpy(levels), graph.num_relations)


def _keys(graph: KnowledgeGraph) -> Tensor:
    return torch.from_numpy(graph.known(graph.train).keys.copy())
