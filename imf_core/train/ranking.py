"""Filtered ranking with realistic ties, in chunks, and metrics that can be summed over shards (model section 6).

Shapes: `T` triples, `B` queries of a block, `N` entities, `C` candidates of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph import CATEGORY_NAMES, KnowledgeGraph, KnownAnswers
from imf_core.errors import DivergedError
from imf_core.model.imf import Imf
from imf_core.train.batches import Shard

HITS = (1, 3, 10)


class Scores(Protocol):
    """Scores of all candidates, in chunks. Scoring the same chunk twice gives the same numbers."""

    num_entities: int
    device: torch.device

    def block(self, heads: Tensor, relations: Tensor) -> BlockScores:
        """Prepare the scores of B queries."""
        ...


class BlockScores(Protocol):
    """Scores of one block of queries."""

    def chunk(self, low: int, high: int) -> Tensor:
        """(B, high - low) scores of the candidates low..high."""
        ...


class ModelScores:
    """`Scores` of an `Imf` in evaluation mode; node tables are computed once.

    Args:
        model: the model.
        chunk_size: candidates scored at a time, 1..N.
    """

    def __init__(self, model: Imf, chunk_size: int) -> None:
        model.eval()
        self.model, self.chunk_size = model, chunk_size
        self.num_entities = model.num_entities
        self.device = model.structure.device
        with torch.no_grad():
            self.tables = model.tables()

    def block(self, heads: Tensor, relations: Tensor) -> _ModelBlock:
        """See `Scores.block`."""
        return _ModelBlock(self, heads, relations)


class _ModelBlock:
    def __init__(self, scores: ModelScores, heads: Tensor, relations: Tensor) -> None:
        self.owner, model = scores, scores.model
        self.contexts = model.contexts(scores.tables, heads, relations)
        self.weights = model.decision_weights(heads, relations)
        self.whole: list[Tensor] | None = None  # the raw scores, kept where one chunk holds every candidate
        norms: list[list[Tensor]] = []
        for low in range(0, model.num_entities, scores.chunk_size):
            part = model.branch_scores(scores.tables, self.contexts, low, low + scores.chunk_size)
            norms.append([torch.logsumexp(score, dim=1) for score in part])
            if scores.chunk_size >= model.num_entities:
                self.whole = part
        self.log_norms = [torch.logsumexp(torch.stack(column), dim=0) for column in zip(*norms, strict=True)]

    def chunk(self, low: int, high: int) -> Tensor:
        model = self.owner.model
        part = self.whole if self.whole is not None else model.branch_scores(self.owner.tables, self.contexts, low, high)
        return model.decide(part, self.log_norms, self.weights, low, high)


def chunk_size(num_entities: int, num_branches: int, block: int, budget_mb: int) -> int:
    """Candidates per chunk so that a block's scores (branches, combination, temporaries) fit the budget, in MiB."""
    per_candidate = block * 4 * (2 * num_branches + 3)
    return max(1, min(num_entities, budget_mb * 2**20 // per_candidate))


@torch.no_grad()
def rank(
    scores: Scores,
    heads: np.ndarray,
    relations: np.ndarray,
    targets: np.ndarray,
    known: KnownAnswers,
    *,
    block: int,
    chunk: int,
) -> np.ndarray:
    """Filtered realistic rank of each target: the mean of the optimistic and the pessimistic rank among its ties.

    The target's score is read from the row it is compared with. Other known answers are set to -inf.

    Args:
        scores: what is ranked.
        heads, relations, targets: (T,) queries (relation ids below 2R) and their answers.
        known: answers to filter out (the target itself always stays).
        block: queries scored at a time.
        chunk: candidates scored at a time.

    Returns:
        (T,) float64 ranks, 1 is best.

    Raises:
        DivergedError: a score is not finite.
    """
    ranks = np.empty(len(heads), dtype=np.float64)
    device = scores.device
    for start in range(0, len(heads), block):
        place = slice(start, start + block)
        target = torch.from_numpy(targets[place]).to(device)
        rows, answers = known.lookup(heads[place], relations[place])
        others = answers != targets[place][rows]
        hide_rows, hide = torch.from_numpy(rows[others]).to(device), torch.from_numpy(answers[others]).to(device)
        made = scores.block(torch.from_numpy(heads[place]).to(device), torch.from_numpy(relations[place]).to(device))
        single = chunk >= scores.num_entities
        bounds = [(low, min(low + chunk, scores.num_entities)) for low in range(0, scores.num_entities, chunk)]
        whole = made.chunk(0, scores.num_entities) if single else None
        own = _own_scores(made, whole, bounds, target)
        greater = torch.zeros(len(target), dtype=torch.int64, device=device)
        equal = torch.zeros_like(greater)
        for low, high in bounds:
            part = whole if whole is not None else made.chunk(low, high)
            if not torch.isfinite(part.sum()):  # one number tells of any NaN or infinity in the chunk
                raise DivergedError(
                    f"non-finite score in the block of queries {start}..{start + len(target) - 1}",
                    remedy="lower the learning rate",
                    quantity="score",
                )
            inside = (hide >= low) & (hide < high)
            part[hide_rows[inside], hide[inside] - low] = -torch.inf
            greater += (part > own[:, None]).sum(dim=1)
            equal += (part == own[:, None]).sum(dim=1)
        ranks[place] = (greater.double() + (equal.double() + 1) / 2).cpu().numpy()
    return ranks


def _own_scores(made: BlockScores, whole: Tensor | None, bounds: Sequence[tuple[int, int]], target: Tensor) -> Tensor:
    """(B,) score of each target, read from the row in which it is ranked."""
    if whole is not None:
        return whole.gather(1, target[:, None])[:, 0].clone()
    own = torch.empty(len(target), device=target.device)
    for low, high in bounds:
        inside = (target >= low) & (target < high)
        if inside.any():
            own[inside] = made.chunk(low, high)[inside].gather(1, target[inside, None] - low)[:, 0].to(own.dtype)
    return own


@dataclass(frozen=True)
class RankingMetrics:
    """Sums over ranks, so that shards add up exactly; the means are properties.

    Args:
        count: ranks counted.
        reciprocal: sum of 1 / rank.
        total: sum of ranks.
        hits: number of ranks at most 1, 3, 10.
        slices: the same for named parts (`head`, `tail`, `1-1`, ..., `cold`, `warm`).
    """

    count: int = 0
    reciprocal: float = 0.0
    total: float = 0.0
    hits: tuple[int, ...] = (0,) * len(HITS)
    slices: dict[str, RankingMetrics] = field(default_factory=dict)

    @classmethod
    def of(cls, ranks: np.ndarray, parts: dict[str, np.ndarray] | None = None) -> RankingMetrics:
        """Metrics of (T,) ranks; `parts` maps a slice's name to its (T,) bool mask."""
        return cls(
            len(ranks), float((1.0 / ranks).sum()), float(ranks.sum()), tuple(int((ranks <= k).sum()) for k in HITS),
            {name: cls.of(ranks[mask]) for name, mask in (parts or {}).items()},
        )

    def __add__(self, other: RankingMetrics) -> RankingMetrics:
        empty = RankingMetrics()
        names = list(dict.fromkeys([*self.slices, *other.slices]))
        return RankingMetrics(
            self.count + other.count, self.reciprocal + other.reciprocal, self.total + other.total,
            tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
            {name: self.slices.get(name, empty) + other.slices.get(name, empty) for name in names},
        )

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, 0..1 (0 where nothing was ranked)."""
        return self.reciprocal / self.count if self.count else 0.0

    @property
    def mean_rank(self) -> float:
        """Mean rank, 1 is best (0 where nothing was ranked)."""
        return self.total / self.count if self.count else 0.0

    def hits_at(self, k: int) -> float:
        """Share of ranks at most k, for k in 1, 3, 10."""
        return self.hits[HITS.index(k)] / self.count if self.count else 0.0

    def flat(self) -> dict[str, float]:
        """`mrr`, `mean_rank`, `hits_at_1`, `hits_at_3`, `hits_at_10`."""
        return {"mrr": self.mrr, "mean_rank": self.mean_rank, **{f"hits_at_{k}": self.hits_at(k) for k in HITS}}

    def as_dict(self) -> dict[str, object]:
        """`flat()` with counts and slices, for JSON."""
        return {
            "count": self.count,
            **self.flat(),
            "slices": {name: {"count": part.count, **part.flat()} for name, part in self.slices.items()},
        }

    def vector(self) -> np.ndarray:
        """All sums as one float64 vector (slices in name order), for an all-reduce."""
        own = [float(self.count), self.reciprocal, self.total, *map(float, self.hits)]
        return np.concatenate([own, *(self.slices[name].vector() for name in sorted(self.slices))])

    def with_vector(self, vector: np.ndarray) -> RankingMetrics:
        """The metrics whose `vector()` this is, with the same slices."""
        width = 3 + len(HITS)
        parts = {name: vector[(1 + i) * width : (2 + i) * width] for i, name in enumerate(sorted(self.slices))}
        own = vector[:width]
        return RankingMetrics(
            round(own[0]), float(own[1]), float(own[2]), tuple(round(number) for number in own[3:]),
            {name: RankingMetrics().with_vector(part) for name, part in parts.items()},
        )


@dataclass(frozen=True)
class Ranked:
    """Ranks of a split's triples in both directions.

    Args:
        tail_ranks, head_ranks: (T,) float64 rank of the tail given (h, r), of the head given (r, t).
        metrics: over both, with slices.
    """

    tail_ranks: np.ndarray
    head_ranks: np.ndarray
    metrics: RankingMetrics


def evaluate(
    model: Imf,
    graph: KnowledgeGraph,
    triples: np.ndarray,
    known: KnownAnswers,
    *,
    budget_mb: int = 512,
    shard: Shard = Shard(),  # noqa: B008
) -> Ranked:
    """Rank a split in both directions with all slices.

    Args:
        model: the model; left in evaluation mode.
        graph: for slices (relation categories and cold entities, both from train).
        triples: (T, 3) triples to rank.
        known: what is filtered: train and valid while searching; all three splits for test.
        budget_mb: memory for scores, MiB.
        shard: this rank ranks the triples rank, rank + world, ...; the metrics of all ranks add up.
    """
    mine = triples[shard.rank :: shard.world]
    block = max(1, min(256, len(mine)))
    chunk = chunk_size(graph.num_entities, len(model.branches), block, budget_mb)
    scores = ModelScores(model, chunk)
    heads, relations, tails = mine[:, 0], mine[:, 1], mine[:, 2]
    by_direction = [
        rank(scores, heads, relations, tails, known, block=block, chunk=chunk),
        rank(scores, tails, relations + graph.num_relations, heads, known, block=block, chunk=chunk),
    ]
    return Ranked(by_direction[0], by_direction[1], RankingMetrics.of(np.concatenate(by_direction), slices(graph, mine)))


def slices(graph: KnowledgeGraph, triples: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the 2T ranks (tails first, then heads): direction, relation category, cold and warm."""
    count = len(triples)
    is_tail = np.arange(2 * count) < count
    category = np.tile(graph.categories[triples[:, 1]], 2)
    cold = np.tile(~(graph.seen[triples[:, 0]] & graph.seen[triples[:, 2]]), 2)
    return {
        "tail": is_tail, "head": ~is_tail, **{name: category == position for position, name in enumerate(CATEGORY_NAMES)},
        "cold": cold, "warm": ~cold,
    }
