"""The losses equal their textbook forms on dense labels, values and gradients, in float64."""

import pytest
import torch
from torch.nn import functional

from imf_core.model.losses.dense import binary_loss, binary_loss_of_probabilities, softmax_loss
from imf_core.model.losses.target import Positives


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, Positives]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(5, 7, dtype=torch.float64)
    for row, tails in enumerate([[0], [1, 6], [2, 3, 4], [5], [0, 1, 2, 3, 4, 5, 6]]):
        labels[row, tails] = 1
    rows, tails = labels.nonzero(as_tuple=True)
    return scores, labels, Positives(rows, tails, labels.sum(dim=1))


def check_same(ours: torch.Tensor, textbook: torch.Tensor, scores: torch.Tensor) -> None:
    torch.testing.assert_close(ours, textbook, rtol=1e-10, atol=1e-12)
    (first,) = torch.autograd.grad(ours, scores, retain_graph=True)
    (second,) = torch.autograd.grad(textbook, scores)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_loss(case: tuple, smoothing: float) -> None:
    scores, labels, positives = case
    target = (1 - smoothing) * labels / labels.sum(dim=1, keepdim=True) + smoothing / labels.shape[1]
    check_same(softmax_loss(scores, positives, smoothing), functional.cross_entropy(scores, target), scores)


def test_softmax_loss_per_triple_is_the_mean_over_the_answers(case: tuple) -> None:
    scores, labels, positives = case
    triples = -torch.log_softmax(scores, dim=1)[labels.bool()]
    check_same(softmax_loss(scores, positives, 0.0, per_triple=True), triples.mean(), scores)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_loss(case: tuple, smoothing: float) -> None:
    scores, labels, positives = case
    target = (1 - smoothing) * labels + (1 / labels.shape[1] if smoothing else 0.0)
    check_same(binary_loss(scores, positives, smoothing), functional.binary_cross_entropy_with_logits(scores, target), scores)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_loss_of_probabilities_agrees_with_the_logit_form(case: tuple, smoothing: float) -> None:
    scores, _, positives = case
    check_same(
        binary_loss_of_probabilities(scores.sigmoid(), positives, smoothing), binary_loss(scores, positives, smoothing), scores
    )


def test_softmax_loss_ignores_a_shift_of_all_scores(case: tuple) -> None:
    scores, _, positives = case
    torch.testing.assert_close(softmax_loss(scores + 100, positives, 0.1), softmax_loss(scores, positives, 0.1))
