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
class NegativeSample:
    """The sampled entities as each query sees them. Values of the answers are (P,), of the sampled entities (B, k).

    Args:
        positives: known answers of the B queries, each once; `tails` are rows of the tables.
        num_entities: N.
        hidden: (B, k) bool, the sampled entity is an answer of the query. All False where the sample holds nothing else: that
            row's factor is 0, and older versions of PyTorch make NaN of the gradient of a row that is masked throughout.
        factors: (B,) number of entities that each sampled one stands for; 0 where all of them are answers.
    """

    positives: Positives
    num_entities: int
    hidden: Tensor
    factors: Tensor

    @classmethod
    def of(cls, negatives: Tensor, positives: Positives, num_rows: int, num_entities: int) -> NegativeSample:
        """Find the answers among the sampled entities.

        Args:
            negatives: (k,) int64, rows of the sampled entities in the tables, each once.
            positives: all known answers; the dtype of `counts` becomes that of `factors`.
            num_rows: n.
            num_entities: N.
        """
        counts = positives.counts
        columns = negatives.new_full((num_rows,), -1)  # (n,) row of the tables -> position in the sample
        columns[negatives] = torch.arange(len(negatives), device=negatives.device)
        position = columns[positives.tails]  # (P,)
        inside = position >= 0
        hidden = torch.zeros(len(counts), len(negatives), dtype=torch.bool, device=counts.device)
        hidden[positives.rows[inside], position[inside]] = True
        kept = len(negatives) - torch.zeros_like(counts).index_add(0, positives.rows, inside.to(counts.dtype))  # (B,)
        some = kept > 0
        hidden &= some[:, None]
        factors = torch.where(some, (num_entities - counts) / kept.clamp_min(1), 0.0)
        return cls(positives, num_entities, hidden, factors)

    def over_answers(self, pairs: Tensor) -> Tensor:
        """(P,) -> (B,): sum over each query's answers."""
        return torch.zeros_like(self.factors).index_add(0, self.positives.rows, pairs)

    def over_all(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): estimated sum over all N entities."""
        return self.over_answers(pairs) + self.factors * block.masked_fill(self.hidden, 0.0).sum(dim=1)

    def log_norm(self, pairs: Tensor, block: Tensor) -> Tensor:
        """(P,), (B, k) -> (B,): logarithm of the estimated sum of `exp` over all N entities."""
        rows = self.positives.rows
        top = torch.full_like(self.factors, -torch.inf).scatter_reduce(0, rows, pairs.detach(), "amax")  # (B,)
        answers = top + self.over_answers((pairs - top[rows]).exp()).log()  # (B,)
        others = torch.logsumexp(block.masked_fill(self.hidden, -torch.inf), dim=1)  # (B,)
        return torch.logaddexp(answers, others + self.factors.log())


def draw_negatives(num_entities: int, count: int, heads: Tensor) -> Tensor:
    """(k,) int64 distinct entity ids: a uniform sample, and as many heads of the batch's queries at most.

    An entity is most like itself, so that the most frequent wrong answer to a query is its own head, which a uniform sample
    hardly ever holds (the in-batch and self-negatives of SimKGC, Wang et al., ACL 2022, arXiv 2203.02167).

    Args:
        num_entities: N.
        count: of the uniform sample, 0..N.
        heads: (B,) int64 of the queries.
    """
    heads = heads.unique()
    if len(heads) > count:
        heads = heads[draw_distinct(len(heads), count, heads.device)]
    return torch.cat([draw_distinct(num_entities, count, heads.device), heads]).unique()


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
