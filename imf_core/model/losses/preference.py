"""A direct preference loss on a query's hard negatives: a teacher says which of two is the better answer.

Shapes: `Q` training queries, `B` of them in a batch, `H` hard negatives of a query, `M` branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Preferences:
    """A teacher's hard negatives of the training queries: strong answers of its that no training triple knows.

    Args:
        keys: (Q,) int64, ascending: `entity * 2R + relation` of each query.
        entities: (Q, H) int64 ids.
        levels: (Q, H) float, how strongly the teacher is for each; where two differ, the larger is preferred. NaN: no answer.
        num_relations: R.
    """

    keys: Tensor
    entities: Tensor
    levels: Tensor
    num_relations: int

    def of(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
        """Entities (B, H) and levels (B, H) of training queries (B,)."""
        place = torch.searchsorted(self.keys, heads * (2 * self.num_relations) + relations)
        return self.entities[place], self.levels[place]

    def to(self, device: torch.device) -> Preferences:
        """A copy on another device."""
        return Preferences(self.keys.to(device), self.entities.to(device), self.levels.to(device), self.num_relations)

    @property
    def pairs(self) -> int:
        """Number of preferences: pairs of a query's hard negatives of different levels."""
        return sum(int(_preferred(part).sum()) for part in self.levels.split(2**14))


def preference_loss(logs: Tensor, levels: Tensor) -> Tensor:
    """`-log sigmoid(s_w - s_l)`, mean over all pairs of which w is preferred to l.

    Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, equation 7) against a uniform reference, as a model
    that is trained from the start has none; in place of a person the preferences come from a model or from rules (RLAIF for
    video, arXiv 2402.03746). Carried over: preferences of a machine, hard negatives, a direct loss; left: texts as the
    context of the teacher, a reward model and reinforcement learning.

    Args:
        logs: (B, H) log-probabilities of the hard negatives, up to a constant of each query.
        levels: (B, H), see `Preferences`.

    Returns:
        Scalar >= 0 in nats; ln 2 where nothing is preferred yet, 0 without a pair.
    """
    wins = _preferred(levels)
    margins = (logs[:, :, None] - logs[:, None, :])[wins]
    return functional.softplus(-margins).mean() if len(margins) else logs.sum() * 0.0


def _preferred(levels: Tensor) -> Tensor:
    """(B, H) -> (B, H, H) bool: whether the first is preferred to the second; never where one is NaN."""
    return levels[:, :, None] > levels[:, None, :]
