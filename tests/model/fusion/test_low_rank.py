"""Tucker fusion against its formula, written out."""

from __future__ import annotations

import pytest
import torch

from imf_core.model.fusion import base
from imf_core.model.fusion.low_rank import TuckerFusion


def fusion(width: int = 4, views: int = 3, rank: int = 2, dropout: float = 0.0) -> TuckerFusion:
    torch.manual_seed(0)
    return TuckerFusion(width, views, rank, dropout)


def drawn(views: int, nodes: int = 5, width: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(nodes, width, generator=generator) for _ in range(views)]


def factor(made: TuckerFusion, view: int, i: int, values: torch.Tensor) -> torch.Tensor:
    """`relu(W_i^m e_m + b_i^m)` with the weights of rank i."""
    layer, d = made.factors[view], made.width
    assert isinstance(layer, torch.nn.Linear)
    return torch.relu(values @ layer.weight[i * d : (i + 1) * d].T + layer.bias[i * d : (i + 1) * d])


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("views", [1, 2, 4])
def test_equals_the_formula(rank: int, views: int) -> None:
    made, values = fusion(views=views, rank=rank), drawn(views)
    expected = torch.zeros(5, 4)
    for i in range(rank):
        product = torch.ones(5, 4)
        for m, value in enumerate(values):
            product = product * factor(made, m, i, value)
        expected = expected + product
    assert torch.allclose(made(values), expected, atol=1e-6)


def test_numbers_by_hand() -> None:
    made = fusion(width=1, views=2, rank=2)
    for layer, weight, bias in zip(made.factors, ([[2.0], [-1.0]], [[1.0], [1.0]]), ([0.0, 4.0], [1.0, 0.0]), strict=True):
        assert isinstance(layer, torch.nn.Linear)
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    # rank 1: relu(2 * 3) * relu(5 + 1) = 36; rank 2: relu(-3 + 4) * relu(5) = 5
    assert made([torch.tensor([[3.0]]), torch.tensor([[5.0]])]).item() == 41.0
    # rank 1: relu(-2) = 0; rank 2: relu(1 + 4) * 5 = 25
    assert made([torch.tensor([[-1.0]]), torch.tensor([[5.0]])]).item() == 25.0


def test_a_masked_view_counts_as_one() -> None:
    made, values = fusion(), drawn(3)
    masks = [None, torch.tensor([True, False, True, False, False]), None]
    found = made(values, masks)
    whole = made(values)
    without = sum(factor(made, 0, i, values[0]) * factor(made, 2, i, values[2]) for i in range(2))
    assert isinstance(without, torch.Tensor)
    assert torch.allclose(found[[0, 2]], whole[[0, 2]])
    assert torch.allclose(found[[1, 3, 4]], without[[1, 3, 4]], atol=1e-6)


def test_all_views_masked_give_the_rank() -> None:
    nobody = torch.zeros(5, dtype=torch.bool)
    assert torch.equal(fusion(views=2, rank=3)(drawn(2), [nobody, nobody]), torch.full((5, 4), 3.0))


def test_gradients_flow_to_all_views_and_weights_but_not_through_a_mask() -> None:
    made = fusion()
    values = [value.requires_grad_() for value in drawn(3)]
    made(values, [None, torch.tensor([True, False, True, True, True]), None]).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in values)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    assert values[1].grad is not None and not values[1].grad[1].any()


def test_dropout_in_training_alone() -> None:
    made, values = fusion(dropout=0.5), drawn(3)
    torch.manual_seed(3)
    assert not torch.allclose(made.train()(values), made(values))
    made.eval()
    assert torch.equal(made(values), made(values))
    assert torch.allclose(made(values), fusion()(values))


def test_a_node_does_not_see_its_neighbours() -> None:
    made, values = fusion(), drawn(3)
    assert torch.allclose(made(values)[2:3], made([value[2:3] for value in values]), atol=1e-6)


@pytest.mark.parametrize("views", [[], [torch.ones(1, 4)]])
def test_a_wrong_number_of_views(views: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError):
        fusion(views=3)(views)


@pytest.mark.parametrize("nodes", [1, 64, 150])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_those_of_autograd(nodes: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, over several tiles of rows, with the gradients of views, weights and biases."""
    monkeypatch.setattr(base, "_ROWS_TIMES_WIDTH", 1)  # 64 rows at a time
    made, drawn_ = fusion(width=6, rank=2).double(), [value.double() for value in drawn(3, nodes, 6)]
    mask = torch.arange(nodes) % 3 != 1 if masked else None
    towards = torch.randn(nodes, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def gradients(plain: bool) -> list[torch.Tensor]:
        views = [value.clone().requires_grad_() for value in drawn_]
        if plain:
            total = torch.zeros(nodes, 6, dtype=torch.float64)
            for i in range(2):
                parts = [factor(made, m, i, view) for m, view in enumerate(views)]
                if mask is not None:
                    parts[1] = torch.where(mask[:, None], parts[1], 1.0)
                total = total + parts[0] * parts[1] * parts[2]
        else:
            total = made(views, [None, mask, None])
        return list(torch.autograd.grad((total * towards).sum(), [*views, *made.parameters()]))

    for found, expected in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(found, expected, atol=1e-12)


def test_the_dropped_elements_get_no_gradient() -> None:
    made, values = fusion(width=8, dropout=0.5).train(), [value.requires_grad_() for value in drawn(3, 9, 8)]
    torch.manual_seed(5)
    masks = [made.drop.draw(value) for value in values]
    torch.manual_seed(5)
    made(values).sum().backward()
    for value, mask in zip(values, masks, strict=True):
        assert value.grad is not None and mask is not None
        assert not value.grad[~mask.keep].any() and value.grad[mask.keep].any()
