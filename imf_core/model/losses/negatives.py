"""A sample of entities that stands for all of them, beside a query's known answers.

Shapes: `B` queries, `N` entities of the graph, `n` entities that the batch touches (rows of the tables), `k` sampled ones, `P`
known answers of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imf_core.model.losses.target import Positives


@dataclass(frozen=True)
class Drawn:
    """Entities that a step scores besides the known answers.

    Args:
        entities: (k,) int64, each once: ids, or rows of the tables.
        certain: (k,) bool: it stands for itself alone; the others are a uniform sample of all that are not certain.
    """

    entities: Tensor
    certain: Tensor


@dataclass(frozen=True)
class NegativeSample:
    """The sampled entities as each query sees them. Values of the answers are (P,), of the sampled entities (B, k).

    Args:
        positives: known answers of the B queries, each once; `tails` are rows of the tables.
        num_entities: N.
        stand_for: (B, k) number of entities that each sampled one stands for: 0 an answer of the query, 1 one that is certain,
            and the uniform sample for all others in equal parts.
    """

    positives: Positives
    num_entities: int
    stand_for: Tensor

    @classmethod
    def of(cls, drawn: Drawn, positives: Positives, num_rows: int, num_entities: int) -> NegativeSample:
        """Find the answers among the sampled entities.

        Args:
            drawn: rows of the sampled entities in the tables.
            positives: all known answers; the dtype of `counts` becomes that of `stand_for`.
            num_rows: n.
            num_entities: N.
        """
        counts, entities = positives.counts, drawn.entities
        columns = entities.new_full((num_rows,), -1)  # (n,) row of the tables -> position in the sample
        columns[entities] = torch.arange(len(entities), device=entities.device)
        position = columns[positives.tails]  # (P,)
        inside = position >= 0
        others = torch.ones(len(counts), len(entities), dtype=torch.bool, device=counts.device)  # (B, k) no answer
        others[positives.rows[inside], position[inside]] = False
        uniform = others & ~drawn.certain
        kept = uniform.sum(dim=1)  # (B,)
        left = num_entities - counts - (others.sum(dim=1) - kept)  # (B,) entities that the uniform sample stands for
        each = (left / kept.clamp_min(1)).to(counts.dtype)
        return cls(positives, num_entities, torch.where(uniform, each[:, None], others.to(counts.dtype)))

    def over_answers(self, pairs: Tensor) -> Tensor:
        """(P,) -> (B,): sum over each query's answers."""
        return torch.zeros_like(self.positives.counts).index_add(0, self.positives.rows, pairs)

    def over_all(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): estimated sum over all N entities."""
        return self.over_answers(pairs) + (self.stand_for * block).sum(dim=1)

    def log_norm(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): logarithm of the estimated sum of `exp` over all N entities."""
        rows = self.positives.rows
        top = block.detach().amax(dim=1).scatter_reduce(0, rows, pairs.detach(), "amax")  # (B,)
        return top + self.over_all((pairs - top[rows]).exp(), (block - top[:, None]).exp()).log()


def draw_negatives(num_entities: int, count: int, heads: Tensor) -> Drawn:
    """A uniform sample of entity ids, and as many heads of the batch's queries at most.

    An entity is most like itself, so that the most frequent wrong answer to a query is its own head, which a uniform sample
    hardly ever holds (the in-batch and self-negatives of SimKGC, Wang et al., ACL 2022, arXiv 2203.02167). The heads of a batch
    are its frequent entities: counted as if they were a part of the uniform sample, they would weigh N / k times too much.

    Args:
        num_entities: N.
        count: of the uniform sample, 0..N.
        heads: (B,) int64 of the queries.
    """
    heads = heads.unique()
    if len(heads) > count:
        heads = heads[draw_distinct(len(heads), count, heads.device)]
    entities = torch.cat([draw_distinct(num_entities, count, heads.device), heads]).unique()
    return Drawn(entities, torch.isin(entities, heads))


def draw_distinct(num_entities: int, count: int, device: torch.device) -> Tensor:
    """(count,) int64 distinct entity ids, every set of them equally likely.

    Args:
        num_entities: N.
        count: 0..N.
        device: where they are drawn.
    """
    if 4 * count >= num_entities:
        return torch.randperm(num_entities, device=device)[:count]
    drawn = torch.empty(0, dtype=torch.long, device=device)
    while len(drawn) < count:  # a random part of distinct draws is as good as any other
        drawn = torch.randint(num_entities, (count + count // 2 + 16,), device=device).unique()
    return drawn[torch.randperm(len(drawn), device=device)[:count]]
