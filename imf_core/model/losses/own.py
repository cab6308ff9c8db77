"""A loss of one's own: any function of the scores of all candidates, taken by autograd.

Shapes: `b` queries of a block, `N` entities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imf_core.config_train import TrainConfig
from imf_core.model.losses.dense import LEAST_PROBABILITY
from imf_core.model.losses.target import Positives
from imf_core.parts.registry import named

Reading = Literal["ce", "bce"]


@dataclass(frozen=True)
class OwnLoss:
    """A loss that a part brings.

    Args:
        function: (scores (b, N), positives, label smoothing[, settings]) -> scalar, the mean over the queries.
        settings: those of the part, if it has some.
        reads: how scores become probabilities where branches are combined and answers are given: by softmax (`ce`) or by
            sigmoid (`bce`).
    """

    function: Callable[..., Tensor]
    settings: tuple[Any, ...]
    reads: Reading

    @classmethod
    def of(cls, train: TrainConfig) -> OwnLoss | None:
        """The loss of a training; None if it is one of the product's."""
        part = named("loss", train.loss)
        return cls(part.target, train.arguments(part)[1:], reading_of(train.loss)) if part.own else None

    def __call__(self, scores: Tensor, positives: Positives, smoothing: float) -> Tensor:
        """The loss of one branch."""
        return self.function(scores, positives, smoothing, *self.settings)

    def of_combined(self, combined: Tensor, positives: Positives, smoothing: float) -> Tensor:
        """The loss of the branches' combination: log-probabilities, or probabilities that become logits here, (b, N)."""
        if self.reads == "bce":
            combined = torch.logit(combined, eps=LEAST_PROBABILITY)
        return self(combined, positives, smoothing)


def reading_of(loss: str) -> Reading:
    """How the scores of a model trained with this loss become probabilities."""
    if loss not in ("ce", "bce"):
        loss = dict(named("loss", loss).facts).get("reads", "ce")
    return "bce" if loss == "bce" else "ce"
