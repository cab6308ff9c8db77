"""Recommending by name with a trained checkpoint.

Shapes: `B` users of a block, `I` items, `k` items for a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from imf_core.answers import Known
from imf_core.errors import ImfError
from imf_core.recommend.checkpoint import RecommenderCheckpoint, load_recommender
from imf_core.recommend.data.interactions import Owned

_BUDGET = 2**28  # bytes that the scores of a block may take


@dataclass(frozen=True)
class Recommendation:
    """One proposed item.

    Args:
        item: its name, as in the data.
        score: dot product of the user's and the item's vector; only the order of scores is meaningful.
        cold: the item has no training interaction, so only its features recommend it.
        known: the user has the item already, in train or validation.
    """

    item: str
    score: float
    cold: bool
    known: bool = False


class ItemRecommender:
    """Proposes items for users, by name.

        ItemRecommender.load("results/mine/best").recommend("cp437", k=10)

    Args:
        checkpoint: of a recommender.
    """

    def __init__(self, checkpoint: RecommenderCheckpoint) -> None:
        self.checkpoint = checkpoint
        data = checkpoint.interactions
        with torch.no_grad():
            self._users, self._items = checkpoint.model.eval().vectors()
        self._known = Owned.build([data.train, data.valid], data.num_users, data.num_items)

    @classmethod
    def load(cls, path: Path | str) -> ItemRecommender:
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it is missing, damaged, or no recommender.
        """
        return cls(load_recommender(path))

    def knows(self, user: str) -> bool:
        """Whether the user has a training interaction; without one, the items of the mean user are recommended.

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
        """
        return bool(self.checkpoint.model.seen_users[self.checkpoint.interactions.users.id(user)])

    def recommend(self, user: str, k: int = 10, *, known: str = "drop") -> list[Recommendation]:
        """The k items with the highest scores for a user; fewer where there are not so many.

        Args:
            user: name, as in the data.
            k: at least 1.
            known: items that the user has already (in train or validation) are left out (`drop`), stand among the others with
                their mark (`mark`), or stand alone (`only`).

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
            ImfError: k below 1.
            ConfigError: another word for `known`.
        """
        return self.recommend_all([user], k, known=known)[0]

    @torch.no_grad()
    def recommend_all(self, users: Sequence[str], k: int = 10, *, known: str = "drop") -> list[list[Recommendation]]:
        """As `recommend`, for many users; all names are looked up before anything is scored."""
        if k < 1:
            raise ImfError(f"k must be at least 1, found {k}", remedy="ask for one item or more", value=k)
        choice, data = Known.of(known), self.checkpoint.interactions
        ids = torch.tensor([data.users.id(user) for user in users], dtype=torch.long)
        block = max(1, _BUDGET // (4 * data.num_items))
        answers: list[list[Recommendation]] = []
        for low in range(0, len(ids), block):
            part = ids[low : low + block]
            scores = self._users[part] @ self._items.T  # (B, I)
            rows, items = self._known.of(part.numpy())
            owned = torch.zeros_like(scores, dtype=torch.bool)  # (B, I)
            owned[torch.from_numpy(rows), torch.from_numpy(items)] = True
            if choice is not Known.MARK:
                scores.masked_fill_(owned if choice is Known.DROP else ~owned, -torch.inf)
            # A stable sort: of equal scores the item with the smaller id comes first, on every machine.
            order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]  # (B, k)
            best = scores.gather(1, order)
            columns = (order.tolist(), best.tolist(), owned.gather(1, order).tolist())
            answers += [self._named(*row) for row in zip(*columns, strict=True)]
        return answers

    def _named(self, items: list[int], scores: list[float], owned: list[bool]) -> list[Recommendation]:
        names, seen = self.checkpoint.interactions.items.names, self.checkpoint.model.seen_items
        return [
            Recommendation(names[item], score, not bool(seen[item]), known)
            for item, score, known in zip(items, scores, owned, strict=True) if score != -torch.inf
        ]
