"""Optimizers: stepping in the backward pass changes nothing but the moment."""

from __future__ import annotations

import platform

import pytest
import torch
from torch import Tensor, nn

from imf_core.config import Config
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import keep_freed_memory
from imf_core.train import optimizers as module
from imf_core.train.fit import build_model
from imf_core.train.optimizers import Optimizers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))


def train(net: nn.Module, made: Optimizers | torch.optim.Optimizer, steps: int = 4) -> None:
    for step in range(steps):
        loss = net(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean()
        made.zero_grad()
        loss.backward()
        made.step()


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(("kind", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_equals_the_optimizer_of_torch(
    kind: str, theirs: type[torch.optim.Adam], early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGE", 100)  # two of the four parameters
    ours, reference = network(), network()
    made, plain = Optimizers(ours, kind, 0.01, 0.1, early=early), theirs(reference.parameters(), lr=0.01, weight_decay=0.1)
    train(ours, made)
    train(reference, plain)
    made.scale_lr(5.0)
    for group in plain.param_groups:
        group["lr"] = 0.05
    train(ours, made)
    train(reference, plain)
    assert torch.allclose(weights(ours), weights(reference), atol=1e-7)
    assert not torch.equal(weights(ours), weights(network()))


@pytest.mark.parametrize("early", [False, True])
def test_adagrad_moves_the_tables_and_adam_the_rest(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 100)
    ours, reference = network(), network()
    made = Optimizers(ours, "adagrad", 0.01, 0.1, early=early, tables=[ours[0].weight], table_lr=0.2)
    others = [parameter for parameter in reference.parameters() if parameter is not reference[0].weight]
    plain = torch.optim.Adagrad([reference[0].weight], lr=0.2), torch.optim.Adam(others, lr=0.01, weight_decay=0.1)
    train(ours, made)
    for step in range(4):
        loss = reference(torch.randn(8, 6, generator=torch.Generator().manual_seed(step))).square().mean()
        reference.zero_grad()
        loss.backward()
        for optimizer in plain:
            optimizer.step()
    assert torch.allclose(weights(ours), weights(reference), atol=1e-6)
    assert not torch.allclose(weights(ours), weights(network()), atol=1e-2)


def test_large_gradients_are_gone_after_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 100)
    net = network()
    made = Optimizers(net, "adam", 0.01, 0.0, early=True)
    net(torch.ones(2, 6)).sum().backward()
    assert [parameter.grad is None for parameter in net.parameters()] == [True, False, True, False]
    made.close()
    before = weights(net)
    net(torch.ones(2, 6)).sum().backward()
    assert torch.equal(weights(net), before) and all(parameter.grad is not None for parameter in net.parameters())


def test_the_state_is_numbered_by_the_parameters_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGE", 100)
    early, late = network(), network()
    first, second = Optimizers(early, "adam", 0.01, 0.0, early=True), Optimizers(late, "adam", 0.01, 0.0)
    assert first.state() == {}
    train(early, first)
    # A run that began alone goes on with several workers.
    second.load_state({place: {name: value.clone() for name, value in entry.items()} for place, entry in first.state().items()})
    late.load_state_dict(early.state_dict())
    train(early, first)
    train(late, second)
    assert sorted(second.state()) == [0, 1, 2, 3]
    assert torch.allclose(weights(early), weights(late), atol=1e-7)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_c_library_keeps_freed_memory() -> None:
    assert keep_freed_memory()


def rows_network(sparse: bool) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(50, 3, sparse=sparse)


def train_rows(net: nn.Embedding, made: Optimizers, times: int) -> None:
    for step in range(times):
        net(torch.tensor([1, 4, 4 + step])).square().sum().backward()
        made.step()
        made.zero_grad()


def test_sparse_rows_move_as_under_adam_and_the_others_do_not() -> None:
    whole, rows = rows_network(False), rows_network(True)
    train_rows(whole, Optimizers(whole, "adam", 0.01, 0.0), 1)
    train_rows(rows, Optimizers(rows, "adam", 0.01, 0.0, rows.parameters()), 1)
    assert torch.allclose(whole.weight, rows.weight, atol=1e-7)
    moved = (rows.weight != rows_network(True).weight).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [1, 4]


@pytest.mark.parametrize("kind", ["adamw", "adagrad"])
def test_sparse_moments_are_restored(kind: str) -> None:
    net, copy = rows_network(True), rows_network(True)
    made, other = (
        Optimizers(part, kind, 0.01, 0.5, part.parameters(), tables=part.parameters()) for part in (net, copy)
    )
    train_rows(net, made, 3)
    copy.load_state_dict(net.state_dict())
    other.load_state({place: {name: value.clone() for name, value in entry.items()} for place, entry in made.state().items()})
    train_rows(net, made, 2)
    train_rows(copy, other, 2)
    assert torch.equal(net.weight, copy.weight)


def test_a_head_may_have_an_optimizer_of_its_own(toy: LinkData) -> None:
    heads = [{"view": "structure", "scoring": "block", "optimizer": "adam"}, {"view": "text", "scoring": "complex"}]
    base = Config().updated({"model.dim": 8, "model.heads": heads})

    def by_adagrad(config: Config) -> set[str]:
        model = build_model(config, toy)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(parameter)] for parameter in model.adagrad_parameters(config.train)}

    tables = {"structure", *(f"relations.{name}" for name in ("structure", "text", "image", "text_complex"))}
    assert by_adagrad(base.updated({"train.optimizer": "adagrad"})) == tables
    assert by_adagrad(base) == set()
    heads[0]["optimizer"] = "adagrad"
    only = base.updated({"model.heads": heads})
    assert by_adagrad(only) == {"head_structure.structure_block", "relations.structure_block"}
    finetuned = by_adagrad(base.updated({"train.optimizer": "adagrad", "model.finetune_features": True}))
    assert finetuned == tables | {"features.text.table", "features.image.table", "head_features.text_complex.table"}
