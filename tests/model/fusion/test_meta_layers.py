"""MetaMMF's layers against the formula that builds every node's weight, and against numbers of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from imf_core.config import ModelConfig
from imf_core.model.fusion.build import build_fusion
from imf_core.model.fusion.meta_layers import CpLayer, DynamicLayer, MetaStack, WeightedLayer

FIXTURE = Path(__file__).parents[2] / "fixtures" / "published_metammf.safetensors"
N, I, O, S, Q = 7, 6, 5, 3, 4  # noqa: E741


def weight_of(layer: WeightedLayer, signal: Tensor) -> Tensor:
    """(N, I, O): `W_i = W + T x_3 s_i`, built for each node."""
    if isinstance(layer, CpLayer):
        tensors = torch.einsum("iq,sq,qo->sio", layer.into, layer.mix, layer.out)
    else:
        assert isinstance(layer, DynamicLayer)
        tensors = layer.tensors
    return layer.static + torch.einsum("ns,sio->nio", signal, tensors)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["full", "cp"])
def layer(request: pytest.FixtureRequest) -> WeightedLayer:
    torch.manual_seed(0)
    return (DynamicLayer(I, O, S) if request.param == "full" else CpLayer(I, O, S, Q)).double()


def test_equals_a_weight_built_for_each_node(layer: WeightedLayer) -> None:
    inputs, signal = drawn(N, I).requires_grad_(), drawn(N, S, seed=2).requires_grad_()
    expected = torch.einsum("ni,nio->no", inputs, weight_of(layer, signal))
    found = layer(inputs, signal)
    torch.testing.assert_close(found, expected)
    leaves = [inputs, signal, *layer.parameters()]
    towards = drawn(N, O, seed=3)
    pairs = [torch.autograd.grad((made * towards).sum(), leaves) for made in (found, expected)]
    for left, right in zip(*pairs, strict=True):
        torch.testing.assert_close(left, right)
    frozen = torch.autograd.grad((layer(inputs.detach(), signal) * towards).sum(), leaves[1:])
    for left, right in zip(frozen, pairs[1][1:], strict=True):
        torch.testing.assert_close(left, right)


def test_nothing_of_the_size_of_the_weights_is_kept(layer: WeightedLayer) -> None:
    """Of N nodes, autograd holds no more than what it was given: no weight of each node, no S products."""
    kept: list[int] = []
    many = 1000
    inputs, signal = drawn(many, I).requires_grad_(), drawn(many, S).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        layer(inputs, signal)
    assert sorted(kept) == sorted([many * I, many * S, *(part.numel() for part in layer.parameters())])


def test_numbers_by_hand() -> None:
    layer = DynamicLayer(2, 1, 2)
    layer.static.data = torch.tensor([[1.0], [2.0]])
    layer.tensors.data = torch.tensor([[[1.0], [0.0]], [[0.0], [-1.0]]])
    # W_i = (1 + 3, 2 - 0.5)
    assert layer(torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0, 0.5]])).item() == 2 * 4 + 4 * 1.5
    cp = CpLayer(2, 1, 2, 1)
    cp.static.data, cp.into.data = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]])
    cp.mix.data, cp.out.data = torch.tensor([[2.0], [-2.0]]), torch.tensor([[0.5]])
    # static 2 + 8; (2 + 12) * (6 - 1) * 0.5
    assert cp(torch.tensor([[2.0, 4.0]]), torch.tensor([[3.0, 0.5]])).item() == 10 + 35


def test_meta_information_and_layers_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    stack = MetaStack((I, 4, 3, 2), lambda i, o: DynamicLayer(i, o, S), S, 8).double()
    features = drawn(N, I)
    assert stack.meta is not None
    first, second = stack.meta[0].weight, stack.meta[2].weight
    signal = torch.relu(features @ first.T) @ second.T
    made = features
    for place, layer in enumerate(stack.layers):
        made = torch.einsum("ni,nio->no", made, weight_of(layer, signal))
        if place < 2:
            made = functional.leaky_relu(made)
    torch.testing.assert_close(stack(features), made)
    assert signal.std() > 0.1  # the dynamic part is there from the start


def test_both_forms_start_alike() -> None:
    """The numbers of W_i vary as much in the factored form as in the full one, and as those of the static weight."""
    torch.manual_seed(0)
    signal = torch.eye(8)
    full, cp = DynamicLayer(96, 64, 8), CpLayer(96, 64, 8, 16)
    parts = [(weight_of(layer, signal) - layer.static).std().item() for layer in (full, cp)]
    assert parts == pytest.approx([full.static.std().item()] * 2, rel=0.2)


def test_a_factored_meta_learner_needs_few_parameters() -> None:
    counts = {
        kind: sum(part.numel() for part in build_fusion(ModelConfig(fusion=kind, dim=128), 128, 3).parameters())
        for kind in ("concat", "meta", "meta_cp")
    }
    weights = 384 * 128 + 128 * 128
    meta = 384 * 64 + 64 * 5
    assert counts == {
        "concat": weights, "meta": 6 * weights + meta, "meta_cp": weights + meta + 16 * (384 + 5 + 128 + 128 + 5 + 128),
    }


def published_cp(recorded: dict[str, Tensor]) -> CpLayer:
    """The published "CP" layer as the special case of a true one that it is.

    It multiplies the meta information, repeated Q times, with one column `C` (Q S, 1): a single number for each item, times
    `A B`. That is a CP whose columns of `C` are all alike, so that the rank of the dynamic part is 1, whatever Q.
    """
    factors = {name: recorded[f"weights.cpd.{name}"] for name in ("A", "B", "C", "M_1")}
    (width_in, rank), width_out = factors["A"].shape, factors["B"].shape[1]
    layer = CpLayer(width_in, width_out, len(factors["C"]) // rank, rank)
    column = factors["C"].view(rank, -1).sum(dim=0)
    layer.static.data, layer.into.data, layer.out.data = factors["M_1"], factors["A"], factors["B"]
    layer.mix.data = column[:, None].expand(-1, rank).clone()
    return layer


def check(path: Path) -> None:
    recorded = load_file(path)
    inputs, signal = recorded["in.feature"], recorded["in.signal"]
    full = DynamicLayer(8, 6, 5)
    full.static.data = recorded["weights.meta.M_1"]
    full.tensors.data = recorded["weights.meta.T_1"].view(5, 8, 6)
    with torch.no_grad():
        torch.testing.assert_close(full(inputs, signal), recorded["out.meta"], rtol=1e-5, atol=1e-5)
        cp = published_cp(recorded)
        torch.testing.assert_close(cp(inputs, signal), recorded["out.cpd"], rtol=1e-5, atol=1e-5)
        # One number an item times one matrix: not what a CP can do.
        parts = (weight_of(cp, signal) - cp.static).flatten(1)
        assert torch.linalg.matrix_rank(parts).item() == 1
        cp.mix.data = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        assert torch.linalg.matrix_rank((weight_of(cp, signal) - cp.static).flatten(1)).item() == 4


def test_recorded_layers() -> None:
    check(FIXTURE)


def test_fixture_is_the_shared_recording(shared_dir: Path) -> None:
    check(shared_dir / "parity" / "metammf.safetensors")
