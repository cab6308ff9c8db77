"""Decision fusion by hand: weights of each mode, renormalisation where a head or a candidate lacks a modality."""

from __future__ import annotations

import pytest
import torch

from imf_core.errors import ConfigError
from imf_core.model.decision import Decision, alternatives, combine, present_weights

BRANCHES = ("structure", "image", "text", "fused")
ASKED = torch.tensor([0, 3, 1])


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


# --- weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["uniform", "fixed", "learned", "relation"])
def test_every_mode_starts_at_the_plain_mean(mode: str) -> None:
    weights = Decision(mode, BRANCHES, 6).weights(ASKED)  # type: ignore[arg-type]
    assert torch.equal(weights, torch.full((3, 4), 0.25))


@pytest.mark.parametrize("mode", ["uniform", "fixed", "learned", "relation"])
def test_a_single_branch_has_the_whole_weight_and_nothing_to_learn(mode: str) -> None:
    decision = Decision(mode, ("structure",), 6)  # type: ignore[arg-type]
    assert torch.equal(decision.weights(ASKED), torch.ones(3, 1))
    assert decision.logits is None


def test_fixed_weights_are_normalised() -> None:
    decision = Decision("fixed", BRANCHES, 6, {"structure": 1.0, "fused": 2.0, "text": 1.0, "image": 4.0})
    assert torch.allclose(decision.weights(ASKED), torch.tensor([[0.125, 0.5, 0.125, 0.25]]).expand(3, -1))


def test_a_branch_left_out_of_the_fixed_weights_keeps_a_trace() -> None:
    weights = Decision("fixed", BRANCHES, 6, {"image": 2.0}).weights(ASKED)[0]
    assert weights.sum() == pytest.approx(1.0)
    assert weights[[0, 2, 3]].tolist() == pytest.approx([3e-4 / 1.0009] * 3, rel=1e-4)
    # An entity that lacks the only weighted modality is decided by the others, in equal parts.
    kept = present_weights(weights[None], [None, mask(0), None, None])
    assert kept[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], rel=1e-4)


@pytest.mark.parametrize(
    ("fixed", "message"), [({"sound": 1.0}, "'sound', which is no branch"), ({"text": 0.0}, "all zero"), ({}, "all zero")]
)
def test_fixed_weights_that_cannot_be(fixed: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decision("fixed", BRANCHES, 6, fixed)


def test_relation_weights_are_of_the_relation_asked() -> None:
    decision = Decision("relation", ("structure", "text"), 4)
    assert decision.logits is not None and decision.logits.shape == (4, 2)
    decision.logits.copy_(torch.log(torch.tensor([[1.0, 1.0], [1.0, 3.0], [1.0, 1.0], [4.0, 1.0]])))
    assert torch.allclose(decision.weights(ASKED), torch.tensor([[0.5, 0.5], [0.8, 0.2], [0.25, 0.75]]))


def test_learned_weights_are_shared_and_stored_but_not_trained_by_the_batches() -> None:
    decision = Decision("learned", ("structure", "text"), 4)
    assert decision.logits is not None
    decision.logits.copy_(torch.log(torch.tensor([[1.0, 4.0]])))
    assert torch.allclose(decision.weights(ASKED), torch.tensor([[0.2, 0.8]]).expand(3, -1))
    assert list(decision.parameters()) == []
    assert "logits" in decision.state_dict()


# --- heads --------------------------------------------------------------------------------------------------------------


def test_present_weights_by_hand() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    found = present_weights(weights, [None, mask(1, 0, 0), mask(1, 1, 0)])
    assert torch.allclose(found, torch.tensor([[0.5, 0.3, 0.2], [0.5 / 0.7, 0, 0.2 / 0.7], [1, 0, 0]]))


def test_present_weights_without_masks_are_the_weights() -> None:
    weights = torch.tensor([[0.5, 0.5]])
    assert present_weights(weights, [None, None]) is weights


# --- candidates ---------------------------------------------------------------------------------------------------------


def test_combine_by_hand() -> None:
    values = [torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-4.0, -5.0, -6.0]]), torch.tensor([[-7.0, -8.0, -9.0]])]
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    found = combine(values, weights, [None, mask(1, 0, 0), mask(1, 1, 0)])
    first = -1 * 0.5 - 4 * 0.3 - 7 * 0.2
    second = (-2 * 0.5 - 8 * 0.2) / 0.7
    assert torch.allclose(found, torch.tensor([[first, second, -3.0]]))


def test_combine_without_masks_is_the_weighted_mean() -> None:
    values = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    found = combine(values, torch.tensor([[0.25, 0.75], [1.0, 0.0]]), [None, None])
    assert torch.allclose(found, torch.tensor([[4.0, 5.0], [3.0, 4.0]]))


def test_head_and_candidate_masks_together() -> None:
    """A head without image and a candidate without text: structure alone decides."""
    weights = present_weights(torch.tensor([[0.2, 0.4, 0.4]]), [None, mask(0), None])
    found = combine(
        [torch.tensor([[-2.0]]), torch.tensor([[-50.0]]), torch.tensor([[-70.0]])], weights, [None, mask(1), mask(0)]
    )
    assert found.item() == pytest.approx(-2.0, rel=1e-5)


def test_equal_branches_give_their_value_whatever_is_missing() -> None:
    value = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    weights = torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    found = combine([value] * 3, weights, [None, mask(1, 0, 1, 0, 1, 0), mask(0, 0, 1, 1, 0, 1)])
    assert torch.allclose(found, value, atol=1e-5)


def test_little_weight_kept_is_not_lost_to_rounding() -> None:
    weights = Decision("fixed", ("structure", "image"), 2, {"image": 1.0}).weights(torch.tensor([0]))
    found = combine([torch.tensor([[-3.0, -3.0]]), torch.tensor([[-1.0, 0.0]])], weights, [None, mask(1, 0)])
    assert found[0, 1].item() == pytest.approx(-3.0, rel=1e-6)
    assert found[0, 0] > found[0, 1]  # it has the image and a likelier value: lacking one is no advantage


def test_masked_values_are_never_read() -> None:
    found = combine(
        [torch.tensor([[-1.0, -1.0]]), torch.tensor([[-2.0, 1e30]])], torch.tensor([[0.5, 0.5]]), [None, mask(1, 0)]
    )
    assert torch.allclose(found, torch.tensor([[-1.5, -1.0]]))


def test_nothing_to_combine() -> None:
    with pytest.raises(ValueError, match="nothing"):
        combine([], torch.ones(1, 0), [])


# --- alternatives -------------------------------------------------------------------------------------------------------


def test_alternatives_are_the_mean_each_branch_and_all_but_one() -> None:
    own = Decision("relation", BRANCHES, 6)
    found = alternatives(own)
    assert list(found) == [
        "uniform", *(f"{branch} alone" for branch in BRANCHES), *(f"without {branch}" for branch in BRANCHES),
    ]
    assert found["uniform"].weights(ASKED)[0].tolist() == [0.25] * 4
    # A weight of 0 is 0.0003: it decides where nothing else is there.
    torch.testing.assert_close(found["text alone"].weights(ASKED)[1], torch.tensor([0.0, 0, 1, 0]), rtol=0, atol=1e-3)
    expected = torch.tensor([1 / 3, 0, 1 / 3, 1 / 3])
    torch.testing.assert_close(found["without image"].weights(ASKED)[2], expected, rtol=0, atol=1e-3)


def test_two_branches_have_no_all_but_one_and_a_single_branch_no_alternative() -> None:
    assert list(alternatives(Decision("learned", ("structure", "text"), 6))) == ["uniform", "structure alone", "text alone"]
    assert alternatives(Decision("uniform", ("structure",), 6)) == {}
