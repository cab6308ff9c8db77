"""Filtered ranking with realistic ties: scores, filter and ranks in one pass, no sort (model section 6).

Shapes: `T` triples, `Q` queries, `B` queries of a block, `N` entities, `R` relations (2R with inverses), `M` branches, `V`
decisions that are ranked side by side, `d` entity width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import ALL_LINES, CATEGORY_NAMES, KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.errors import DivergedError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.model.combined_scores import ROWS, Known, buffer_size, combined_scores
from imf_core.model.decision import Decision, present_weights
from imf_core.model.imf import Imf
from imf_core.runtime import WHOLE, MemoryBudget, Shard

_MOST = 1024  # queries of a block; larger blocks are not faster
_AHEAD = 2**15  # most queries whose contexts are computed at once
_ROWS = 2**20  # numbers that are compared at a time on a CPU: they stay in its cache
_ON_GPU = 2**28
_EXACT = 2**24  # integers up to this are exact in fp32


class Scores(Protocol):
    """Scores of all candidates under V decisions."""

    num_entities: int
    num_variants: int
    device: torch.device

    def blocks(self, heads: Tensor, relations: Tensor, size: int) -> Iterator[Tensor]:
        """Score `size` queries after the other.

        Args:
            heads, relations: (Q,) int64 ids, relations below 2R.
            size: B, at least 1; the last block may be smaller.

        Yields:
            (V, B, N), higher is more plausible. The caller may overwrite them; they are valid until it asks for the next block.
        """
        ...


class ModelScores:
    """`Scores` of an `Imf` in evaluation mode; the entity and relation tables are computed once.

    Args:
        model: put into evaluation mode.
        budget: bytes that a block's scores and intermediate results may take.
        variants: V decisions, all from the same scores of the branches; default: the model's own.
    """

    def __init__(self, model: Imf, budget: int, variants: Sequence[Decision] = ()) -> None:
        model.eval()
        self.model, self.budget, self.variants = model, budget, tuple(variants) or (model.decision,)
        self.num_entities, self.num_variants = model.num_entities, len(self.variants)
        self.device = model.structure.device
        with torch.no_grad():
            self.tables = model.tables()
        self._known = Known.of(model, self.variants)

    @property
    def block(self) -> int:
        """B: as many queries as the budget allows, at least 1; above `ROWS` a multiple of it, since all those are computed."""
        each = 4 * self.num_entities * (self.num_variants + 1)
        fitting = max(1, min(_MOST, self.budget // each))
        return fitting - fitting % ROWS if fitting > ROWS else fitting

    def blocks(self, heads: Tensor, relations: Tensor, size: int) -> Iterator[Tensor]:
        """See `Scores.blocks`. Queries ordered by relation are fastest: a relation's matrix is built once for all of them."""
        model = self.model
        each = 4 * model.config.dim * len(model.branches)  # bytes of a query's contexts
        ahead = size * max(1, min(_AHEAD, self.budget // (4 * each)) // size)
        # One buffer for all blocks: the kernel takes as long to hand out the pages of a new one as it takes to fill them.
        buffer = self.tables.entities[model.branches[0]].new_empty(buffer_size(model, self.num_variants, min(size, len(heads))))
        for low in range(0, len(heads), ahead):
            head, relation = heads[low : low + ahead], relations[low : low + ahead]
            contexts = self._contexts(head, relation)  # M x (ahead, d)
            masks = [None if mask is None else mask[head] for mask in map(model.mask, model.branches)]
            weights = torch.stack([present_weights(variant.weights(relation), masks) for variant in self.variants])  # (V, ., M)
            for start in range(0, len(head), size):
                part = slice(start, start + size)
                block = [context[part] for context in contexts]
                yield combined_scores(model, self.tables, block, weights[:, part], buffer, self._known)

    def _contexts(self, heads: Tensor, relations: Tensor) -> list[Tensor]:
        """(Q,), (Q,) -> M tensors (Q, d)."""
        model = self.model
        parts = [model.contexts(self.tables, heads[run], relations[run]) for run in self.relation_runs(relations)]
        return [torch.cat(branch) for branch in zip(*parts, strict=True)]

    def relation_runs(self, relations: Tensor) -> list[slice]:
        """Cut queries (Q,), ordered by relation, into runs whose relation matrices fit the budget together."""
        first = torch.ones(len(relations), dtype=torch.long, device=relations.device)  # 1 where a relation begins
        first[1:] = relations[1:] != relations[:-1]
        matrix = 4 * self.model.matrix_width**2 or 1  # bytes
        number = (first.cumsum(0) - 1) // max(1, self.budget // (4 * matrix))
        stops = number.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
        return [slice(low, high) for low, high in zip([0, *stops], stops, strict=False)]


@torch.no_grad()
def rank(
    scores: Scores, heads: np.ndarray, relations: np.ndarray, targets: np.ndarray, known: KnownAnswers, *, block: int
) -> np.ndarray:
    """Filtered realistic rank of each target: the mean of the optimistic and the pessimistic rank among its ties.

    The target's score is read from the row it is compared with. Other known answers are set to -inf.

    Args:
        scores: of the model or ensemble.
        heads, relations, targets: (Q,) int64 queries (relation ids below 2R) and their answers.
        known: answers to filter out (the target itself always stays).
        block: queries scored at a time.

    Returns:
        (V, Q) float64 ranks, 1 is best.

    Raises:
        DivergedError: a score is not finite.
    """
    order = np.argsort(relations, kind="stable")
    device = scores.device
    asked = torch.from_numpy(heads[order]).to(device), torch.from_numpy(relations[order]).to(device)
    leads = torch.empty(scores.num_variants, len(heads), dtype=torch.float64, device=device)
    # Nothing is read from a GPU before all blocks are done: it would idle after each.
    total, hide = torch.zeros((), dtype=torch.float64, device=device), torch.tensor(-torch.inf, device=device)
    for number, variants in enumerate(scores.blocks(*asked, block)):
        part = slice(number * block, (number + 1) * block)
        queries = order[part]
        rows, answers = known.lookup(heads[queries], relations[queries])
        others = answers != targets[queries][rows]
        indices = torch.from_numpy(np.concatenate([targets[queries], rows[others], answers[others]])).to(device)
        target, *hidden = indices.split([len(queries), *[int(others.sum())] * 2])
        for table, lead in zip(variants, leads[:, part], strict=True):
            total += table.sum()  # shows any NaN or infinity
            answer = table.gather(1, target[:, None])  # (B, 1)
            table.index_put_(tuple(hidden), hide.to(table.dtype))
            _leads(table, answer, lead)
    if not torch.isfinite(total):
        raise _diverged(len(heads), "queries")
    ranks = np.empty(leads.shape)
    ranks[:, order] = (leads.cpu().numpy() + (scores.num_entities + 1)) / 2
    return ranks


def check_finite(scores: Tensor, what: str) -> None:
    """Refuse scores (B, N) of which one is NaN or infinite.

    Args:
        scores: of some queries or users.
        what: `queries` or `users`, for the message.

    Raises:
        DivergedError: one is.
    """
    if not torch.isfinite(scores.sum()):  # the sum shows any NaN or infinity
        raise _diverged(len(scores), what)


def _diverged(count: int, what: str) -> DivergedError:
    return DivergedError(f"non-finite score among those of {count} {what}", remedy="lower the learning rate", quantity="score")


def _leads(table: Tensor, answer: Tensor, out: Tensor) -> None:
    """How many more candidates score above the answer than below it. (lead + N + 1) / 2 is the mean of the best and the worst
    rank among its ties.

    Args:
        table: (B, N) scores, -inf for what does not compete; overwritten.
        answer: (B, 1) score of the answer, which ties with itself.
        out: (B,) float64.
    """
    queries, entities = table.shape
    step = max(1, (_ROWS if table.device.type == "cpu" else _ON_GPU) // entities)
    kind = torch.float64 if entities > _EXACT else table.dtype
    for low in range(0, queries, step):
        part = slice(low, low + step)
        out[part] = table[part].sub_(answer[part]).sign_().sum(dim=1, dtype=kind)


@dataclass(frozen=True)
class Ranked:
    """Ranks of a split's triples in both directions.

    Args:
        tail_ranks, head_ranks: (T,) float64 rank of the tail given (h, r), of the head given (r, t).
        metrics: over both, with slices; see `metrics_of`.
    """

    tail_ranks: np.ndarray
    head_ranks: np.ndarray
    metrics: RankingMetrics

    @classmethod
    def of(cls, ranks: np.ndarray, graph: KnowledgeGraph, triples: np.ndarray, counted: np.ndarray | None) -> Ranked:
        """From (2T,) ranks, tails first; other arguments as of `metrics_of`."""
        return cls(ranks[: len(triples)], ranks[len(triples) :], metrics_of(ranks, graph, triples, counted))

    @property
    def ranks(self) -> np.ndarray:
        """(2T,), tails first."""
        return np.concatenate([self.tail_ranks, self.head_ranks])


def evaluate(
    model: Imf,
    graph: KnowledgeGraph,
    triples: np.ndarray,
    known: KnownAnswers,
    *,
    counted: np.ndarray | None = None,
    memory: MemoryBudget | None = None,
    shard: Shard = WHOLE,
) -> Ranked:
    """Rank a split in both directions with all slices.

    Args:
        model: left in evaluation mode.
        graph: for slices (relation categories and cold entities, both from train).
        triples: (T, 3) int64, to be ranked.
        known: answers to filter out: train and valid while searching; all three splits for test.
        counted: (T,) bool, the triples that the metrics are of, from `counted_triples`; None: all.
        memory: for scores; None: a share of the free memory. If it runs out, the ranking is repeated with less.
        shard: this process ranks the triples rank, rank + world, ...; the metrics of all processes add up.

    Raises:
        DivergedError: a score is not finite.
        ResourceError: not even one query at a time fits the memory.
    """
    variants = {"": model.decision}
    return evaluate_decisions(model, graph, triples, known, variants, counted=counted, memory=memory, shard=shard)[""]


def evaluate_decisions(
    model: Imf,
    graph: KnowledgeGraph,
    triples: np.ndarray,
    known: KnownAnswers,
    variants: Mapping[str, Decision],
    *,
    counted: np.ndarray | None = None,
    memory: MemoryBudget | None = None,
    shard: Shard = WHOLE,
) -> dict[str, Ranked]:
    """As `evaluate`, under several decisions by name, such as `alternatives(model.decision)`; the branches are scored once for
    all of them.
    """
    part = triples[shard.rank :: shard.world]
    heads, relations, targets = with_inverses(part, graph.num_relations).T

    def ranked(budget: int) -> np.ndarray:
        scores = ModelScores(model, budget, list(variants.values()))
        return rank(scores, heads, relations, targets, known, block=scores.block)

    memory = memory or MemoryBudget.of(None, model.structure.device)
    ranks = memory.within(ranked)
    if counted is not None:
        counted = counted[shard.rank :: shard.world]
    return {name: Ranked.of(row, graph, part, counted) for name, row in zip(variants, ranks, strict=True)}


def metrics_of(ranks: np.ndarray, graph: KnowledgeGraph, triples: np.ndarray, counted: np.ndarray | None) -> RankingMetrics:
    """Metrics of some triples of a split, with slices; those of all its triples are the slice `all lines`.

    Args:
        ranks: (2T,), tails first.
        graph: for slices.
        triples: (T, 3).
        counted: (T,) bool, which triples; None: all, without that slice.
    """
    masks = slices(graph, triples)
    if counted is None:
        return RankingMetrics.of(ranks, masks)
    both = np.tile(counted, 2)
    metrics = RankingMetrics.of(ranks[both], {name: mask[both] for name, mask in masks.items()})
    return replace(metrics, slices={ALL_LINES: RankingMetrics.of(ranks), **metrics.slices})


def slices(graph: KnowledgeGraph, triples: np.ndarray) -> dict[str, np.ndarray]:
    """(2T,) bool masks over the ranks (tails first, then heads): direction, relation category, cold and warm."""
    count = len(triples)
    is_tail = np.arange(2 * count) < count
    category = np.tile(graph.categories[triples[:, 1]], 2)
    cold = np.tile(~(graph.seen[triples[:, 0]] & graph.seen[triples[:, 2]]), 2)
    return {
        "tail": is_tail, "head": ~is_tail, **{name: category == position for position, name in enumerate(CATEGORY_NAMES)},
        "cold": cold, "warm": ~cold,
    }
