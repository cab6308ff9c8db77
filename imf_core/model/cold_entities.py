"""Entities that no training triple names: their rows rest among those of the entities that they resemble.

As wrong answers to every query, the rows of such entities learn one thing, to be no answer; as heads they then say so of
everything. Where features describe them, they take the weighted mean row of the entities with the most similar features (a
Nadaraya-Watson estimate over the nearest ones); elsewhere the mean of all, which asks what the relation alone would answer.

Shapes: `N` entities, `U` unlinked ones, `k` neighbours, `d` width of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from imf_core.data.features.modality import Modality
from imf_core.model.modality_table import shared_tensor

# On MKG-Y (15 % of the validation triples are cold, names read by MiniLM), one ComplEx model, validation MRR of the cold ones:
# as trained 0.011, all at the mean 0.013, a ridge regression on the features 0.026, neighbours 0.038; with 40, 100 or 300 of
# them it differs by less than 0.003. The MRR of the whole rose by 0.003; other rows are not touched. On MKG-W (7.8 % are
# cold, structure alone) the mean took that of the cold ones from 0.037 to 0.062 and from 0.051 to 0.061 in two models.
NEAREST = 64
TEMPERATURE = 0.05  # of the softmax over cosines
_BLOCK = 2**24  # similarities at a time: 64 MB


@dataclass(frozen=True)
class Unlinked:
    """Who is unlinked, and whom they resemble.

    Args:
        rows: (U,) their ids.
        linked: (N,) bool, everyone else.
        near: (U, k) ids of linked entities with similar features.
        shares: (U, k) of each neighbour; a row sums to 1, or to 0 for an entity without features.
        structure: whether the structure table is to rest, too; one that was made elsewhere knows them.
    """

    rows: Tensor
    linked: Tensor
    near: Tensor
    shares: Tensor
    structure: bool = True

    @classmethod
    def of(cls, seen: Tensor, modalities: Sequence[Modality] = (), *, structure: bool = True) -> Unlinked | None:
        """Those that are not `seen` in training; None where there is nobody, or nobody else.

        Args:
            seen: (N,) bool.
            modalities: that the model uses.
            structure: see above.
        """
        if bool(seen.all()) or not bool(seen.any()):
            return None
        rows = (~seen).nonzero()[:, 0]
        near, shares = _neighbours(rows, seen, modalities)
        return cls(rows, seen.clone(), near, shares, structure)

    @torch.no_grad()
    def rest(self, table: Tensor, mask: Tensor | None = None) -> None:
        """Set the rows of a table (N, d), in place.

        Args:
            table: of vectors.
            mask: (N,) bool, who has one; the others' count for nothing. None: all.
        """
        rows, near, shares = (part.to(table.device) for part in (self.rows, self.near, self.shares))
        have = self.linked.to(table.device)
        if mask is not None:
            have = have & mask
            shares = shares * mask[near]
            shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        if not bool(have.any()):
            return
        made = functional.embedding_bag(near, table, per_sample_weights=shares.to(table.dtype), mode="sum")
        table[rows] = made + (1 - shares.sum(dim=1, keepdim=True).to(table.dtype)) * table[have].mean(dim=0)


def _neighbours(rows: Tensor, seen: Tensor, modalities: Sequence[Modality]) -> tuple[Tensor, Tensor]:
    """(U, k) linked entities with the largest mean cosine over the modalities that an unlinked one has, and their shares."""
    views = [(shared_tensor(item.standardised()), torch.from_numpy(item.mask.copy())) for item in modalities]
    count = min(NEAREST, int(seen.sum()))
    near, shares = torch.zeros(len(rows), count, dtype=torch.int64), torch.zeros(len(rows), count)
    if not views:
        return near[:, :1], shares[:, :1]
    lengths = [features.square().sum(dim=1).sqrt().clamp(min=1e-12) for features, _ in views]
    for low in range(0, len(rows), size := max(1, _BLOCK // len(seen))):
        part = rows[low : low + size]
        total = torch.zeros(len(part), len(seen))
        described = torch.zeros(len(part))
        for (features, mask), length in zip(views, lengths, strict=True):  # a missing row is zero, and so are its cosines
            total += (features[part] / length[part, None]) @ features.T / length
            described += mask[part]
        total /= described.clamp(min=1)[:, None]
        best = total.masked_fill_(~seen, -torch.inf).topk(count)
        near[low : low + size] = best.indices
        shares[low : low + size] = torch.softmax(best.values / TEMPERATURE, dim=1) * (described > 0)[:, None]
    return near, shares
