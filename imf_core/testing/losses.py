"""The contracts of a loss and of a regularizer.

Shapes: `B` queries, `N` entities, `P` known answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imf_core.config_train import TrainConfig
from imf_core.model.losses.target import Positives
from imf_core.model.scoring import build_scorer, relation_width
from imf_core.testing.base import ModelPartContract

POSITIVES = Positives(
    torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 1, 2, 0, 4, 1]), torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
)


class LossContract(ModelPartContract):
    """A loss: a finite mean over the queries, whose gradient raises the scores of known answers."""

    kind, chosen_by = "loss", "train.loss"

    def loss(self, scores: Tensor, positives: Positives = POSITIVES, smoothing: float = 0.0) -> Tensor:
        """The loss of (B, N) scores."""
        train: TrainConfig = self.config().train
        value: Tensor = self.part.target(scores, positives, smoothing, *train.arguments(self.part)[1:])
        return value

    def test_it_is_a_finite_number_with_finite_gradients(self) -> None:
        for scale in (1.0, 30.0):
            scores = (scale * torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
            value = self.loss(scores.requires_grad_(), smoothing=0.1)
            assert value.shape == () and torch.isfinite(value)
            value.backward()
            assert scores.grad is not None and torch.isfinite(scores.grad).all()

    def test_higher_scores_of_known_answers_lower_it(self) -> None:
        scores = torch.zeros(3, 5, dtype=torch.float64)
        better = scores.clone()
        better[POSITIVES.rows, POSITIVES.tails] += 1.0
        assert self.loss(better) < self.loss(scores)

    def test_it_is_a_mean_over_the_queries(self) -> None:
        """Queries are taken in blocks where memory is short."""
        scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        parts = []
        for row in range(3):
            tails = POSITIVES.tails[POSITIVES.rows == row]
            alone = Positives(torch.zeros_like(tails), tails, POSITIVES.counts[row : row + 1])
            parts.append(self.loss(scores[row : row + 1], alone))
        torch.testing.assert_close(self.loss(scores), torch.stack(parts).mean())


class RegularizerContract(ModelPartContract):
    """A regularizer: a finite penalty, at least 0, with the gradients of finite differences."""

    kind, chosen_by = "regularizer", "train.regularizer"

    def inputs(self, scoring: str) -> tuple[Any, list[Tensor], Tensor]:
        """Scorer; heads (B, d), relations (B, r), contexts (B, d), tails (P, d); weights of the queries (B,)."""
        torch.manual_seed(0)
        settings = {"model__scoring": scoring, "model__block_size": 2, "model__norm": "none"}
        model = self.config(**settings).model
        generator = torch.Generator().manual_seed(1)
        widths = ((3, model.dim), (3, relation_width(model)), (3, model.dim), (6, model.dim))
        vectors = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in widths]
        return build_scorer(model).double().eval(), vectors, POSITIVES.counts / POSITIVES.counts.sum()

    def penalty(self, scorer: Any, *vectors: Any) -> Tensor:
        """The penalty with the settings of the tests."""
        train = self.config().train
        value: Tensor = self.part.target(scorer, *vectors, *train.arguments(self.part)[1:])
        return value

    def test_it_is_a_penalty_with_right_gradients_for_every_relation_model(self) -> None:
        """A finite scalar >= 0 with the gradients of finite differences."""
        for scoring in ("contextual", "block", "transe", "distmult", "complex"):
            scorer, vectors, weights = self.inputs(scoring)
            value = self.penalty(scorer, *vectors, POSITIVES, weights)
            assert value.shape == () and torch.isfinite(value) and value >= 0, scoring

            def of(*parts: Tensor, scorer: Any = scorer, weights: Tensor = weights) -> Tensor:
                return self.penalty(scorer, *parts, POSITIVES, weights)

            assert torch.autograd.gradcheck(of, [part.requires_grad_() for part in vectors]), scoring

    def test_vectors_of_zeros_have_finite_gradients(self) -> None:
        scorer, vectors, weights = self.inputs("distmult")
        zeros = [torch.zeros_like(part).requires_grad_() for part in vectors]
        grads = torch.autograd.grad(self.penalty(scorer, *zeros, POSITIVES, weights), zeros, allow_unused=True)
        assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)
