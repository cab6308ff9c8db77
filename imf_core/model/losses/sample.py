"""A uniform sample of entities that stands for all of them, beside a query's known answers.

Shapes: `B` queries, `N` entities of the graph, `n` touched ones (rows of the tables), `k` sampled, `P` positives of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imf_core.model.losses.plain_forms import Positives


@dataclass(frozen=True)
class Sample:
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
    def of(cls, negatives: Tensor, positives: Positives, num_rows: int, num_entities: int) -> Sample:
        """Find the answers among the sampled entities.

        Args:
            negatives: (k,) int64, rows of the sampled entities in the tables, each once.
            positives: all known answers; the dtype of `counts` becomes that of `factors`.
            num_rows: n.
            num_entities: N.
        """
        counts = positives.counts
        columns = negatives.new_full((num_rows,), -1)
        columns[negatives] = torch.arange(len(negatives), device=negatives.device)
        found = columns[positives.tails]
        inside = found >= 0
        hidden = torch.zeros(len(counts), len(negatives), dtype=torch.bool, device=counts.device)
        hidden[positives.rows[inside], found[inside]] = True
        kept = len(negatives) - torch.zeros_like(counts).index_add(0, positives.rows, inside.to(counts.dtype))
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
        top = torch.full_like(self.factors, -torch.inf).scatter_reduce(0, rows, pairs.detach(), "amax")
        answers = top + self.over_answers((pairs - top[rows]).exp()).log()
        others = torch.logsumexp(block.masked_fill(self.hidden, -torch.inf), dim=1)
        return torch.logaddexp(answers, others + self.factors.log())


def draw_distinct(num_entities: int, count: int, device: torch.device) -> Tensor:
    """(count,) distinct entity ids, every set of them equally likely."""
    if 4 * count >= num_entities:
        return torch.randperm(num_entities, device=device)[:count]
    found = torch.empty(0, dtype=torch.long, device=device)
    while len(found) < count:  # a random part of distinct draws is as good as any other
        found = torch.randint(num_entities, (count + count // 2 + 16,), device=device).unique()
    return found[torch.randperm(len(found), device=device)[:count]]
