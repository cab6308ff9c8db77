"""How a trained link predictor answers validation, for the report: its MRR on each relation, right and wrong answers.

Shapes: `T` validation triples that are ranked, `Q` = 2T queries (tails first, then heads), `N` entities.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from imf_core.config import DataConfig
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.errors import DataError
from imf_core.evaluate.calibrate import folds, rank_by_fold
from imf_core.evaluate.ranking import ModelScores
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.prepare.appearance import Appearance, appearances
from imf_core.runtime import MemoryBudget
from imf_core.tasks.protocols import Answered, Entity, Examples, RelationScore

logger = logging.getLogger(__name__)

_MOST = 4 * 10**8  # scores, some seconds on two cores: of a larger validation split a sample is ranked
_EACH = 10  # right answers, and wrong ones
_PROPOSED = 3  # answers of the model beside a wrong one
_TEXT, _SIDE = 160, 64  # characters of a text; pixels of a picture


def sample(graph: KnowledgeGraph) -> np.ndarray:
    """(T, 3) validation triples to rank: the clean ones, or the same random ones of them for every model if ranking all would
    take long.
    """
    triples, most = graph.clean_valid, max(1, _MOST // (2 * graph.num_entities))
    if len(triples) <= most:
        return triples
    return triples[np.sort(np.random.default_rng(0).choice(len(triples), most, replace=False))]


def ranks(
    model: Imf, graph: KnowledgeGraph, known: KnownAnswers, by_fold: tuple[Decision, Decision], memory: MemoryBudget
) -> np.ndarray:
    """(Q,) filtered ranks of the `sample`, tails first, then heads.

    Args:
        known: answers that are filtered.
        by_fold: from `fold_decisions`.
    """
    return rank_by_fold(model, graph, sample(graph), known, [{"": one} for one in by_fold], memory=memory)[""].ranks


def examples(
    model: Imf, graph: KnowledgeGraph, data: DataConfig, by_fold: tuple[Decision, Decision], memory: MemoryBudget
) -> Examples:
    """Each relation's metrics on validation, and answers drawn at random, spread over the relations.

    Args:
        model: left in evaluation mode.
        graph: train and valid are read.
        data: where texts and pictures of the entities are.
        by_fold: from `fold_decisions`.
        memory: for scores.
    """
    triples, known = sample(graph), graph.known()
    heads, relations, targets = with_inverses(triples, graph.num_relations).T
    query_ranks = ranks(model, graph, known, by_fold, memory)
    right, wrong = (_spread(np.flatnonzero(mask), relations) for mask in (query_ranks <= 1, query_ranks > 1))
    chosen = np.array([*right, *wrong], dtype=np.int64)
    fold_of = np.tile(folds(triples), 2)[chosen]
    best = _best(model, by_fold, fold_of, heads[chosen], relations[chosen], targets[chosen], known)
    names = {*heads[chosen].tolist(), *targets[chosen].tolist(), *(entity for row in best for entity in row)}
    entities = _entities(graph, data, sorted(names))
    answered = [
        Answered(
            entities[int(heads[query])], graph.relations.names[relations[query] % graph.num_relations],
            bool(relations[query] < graph.num_relations), entities[int(targets[query])], float(query_ranks[query]),
            tuple(entities[entity] for entity in row) if query_ranks[query] > 1 else (),
        )
        for query, row in zip(chosen.tolist(), best, strict=True)
    ]
    return Examples(
        _relation_scores(graph, triples, query_ranks), tuple(answered[: len(right)]), tuple(answered[len(right) :]),
        len(triples), len(graph.clean_valid),
    )


def _relation_scores(graph: KnowledgeGraph, triples: np.ndarray, query_ranks: np.ndarray) -> tuple[RelationScore, ...]:
    """Metrics of each relation that validation has, the most frequent first."""
    of = np.tile(triples[:, 1], 2)
    counts = np.bincount(of, minlength=graph.num_relations)
    sums = np.bincount(of, weights=1 / query_ranks, minlength=graph.num_relations)
    hits = np.bincount(of, weights=query_ranks <= 10, minlength=graph.num_relations)
    means = (sums / np.maximum(counts, 1)).tolist(), (hits / np.maximum(counts, 1)).tolist()
    return tuple(
        RelationScore(graph.relations.names[row], int(counts[row]), means[0][row], means[1][row])
        for row in np.argsort(-counts, kind="stable").tolist() if counts[row]
    )


def _spread(queries: np.ndarray, relations: np.ndarray) -> list[int]:
    """Up to ten of the queries: one of each relation and direction at random, then a second of each, and so on."""
    shuffled = np.random.default_rng(0).permutation(queries)
    turn: dict[int, int] = {}
    order = []
    for query in shuffled.tolist():
        relation = int(relations[query])
        turn[relation] = turn.get(relation, 0) + 1
        order.append((turn[relation], query))
    return [query for _, query in sorted(order, key=lambda pair: pair[0])[:_EACH]]


@torch.no_grad()
def _best(
    model: Imf, by_fold: tuple[Decision, Decision], fold_of: np.ndarray, heads: np.ndarray, relations: np.ndarray,
    targets: np.ndarray, known: KnownAnswers,
) -> list[list[int]]:
    """The entities that the model ranks highest for each query, other known answers left out, as in its rank."""
    scores = ModelScores(model, 2**26, by_fold)
    rows, answers = known.lookup(heads, relations)
    others = answers != targets[rows]
    best: list[list[int]] = []
    asked = torch.from_numpy(heads).to(scores.device), torch.from_numpy(relations).to(scores.device)
    for tables in scores.blocks(*asked, 1):
        table = tables[fold_of[len(best)]]
        hidden = answers[others & (rows == len(best))]
        table[:, torch.from_numpy(hidden).to(scores.device)] = -torch.inf
        best.append(torch.topk(table[0], min(_PROPOSED, table.shape[1])).indices.tolist())
    return best


def _entities(graph: KnowledgeGraph, data: DataConfig, ids: Sequence[int]) -> Mapping[int, Entity]:
    """Entities with their texts and pictures, as far as the graph's folder still has them."""
    names = [graph.entities.names[entity] for entity in ids]
    views: Mapping[str, Appearance] = {}
    try:
        views = appearances(data, names, characters=_TEXT, side=_SIDE, form="PNG")
    except DataError as error:  # the answers are worth showing without
        logger.warning("the report shows entities by their names alone: %s", error.problem)
    shown = [views.get(name, Appearance()) for name in names]
    return {entity: Entity(name, view.text, view.picture) for entity, name, view in zip(ids, names, shown, strict=True)}
