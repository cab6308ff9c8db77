"""What makes each operator of a related system what it is; the contract is tested with all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config, ModelConfig
from imf_core.model.fusion import base
from imf_core.model.fusion.build import build_fusion
from imf_core.model.fusion.facts import some_facts
from imf_core.prepare.link_data import LinkData
from imf_core.testing.fusion import D, drawn, results
from imf_core.train.fit import build_model, fit

MASKS = [None, torch.arange(6) % 3 != 1, torch.arange(6) % 2 == 0]


def made(kind: str, views: int = 3, **settings: object) -> base.Fusion:
    torch.manual_seed(0)
    return build_fusion(ModelConfig(fusion=kind, dim=D, dropout_fusion=0.0, **settings), D, views).double()


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("masks", [[None] * 3, MASKS])
def test_multiscale_prefers_no_view(order: tuple[int, ...], masks: list[Tensor | None]) -> None:
    operator, views = made("multiscale"), drawn()
    moved = operator([views[place] for place in order], [masks[place] for place in order])
    torch.testing.assert_close(moved, operator(views, masks))


def test_multiscale_takes_any_number_of_views_with_the_same_weights() -> None:
    two, five = made("multiscale", 2), made("multiscale", 5)
    assert two.state_dict().keys() == five.state_dict().keys()
    five.load_state_dict(two.state_dict())
    views = drawn(2)
    has = [None, None, *[torch.zeros(6, dtype=torch.bool)] * 3]
    torch.testing.assert_close(five([*views, *drawn(3, seed=9)], has), two(views))


def test_each_scale_of_multiscale_counts() -> None:
    """A coarse scale alone cannot tell two views apart whose neighbouring coordinates have the same mean."""
    views = drawn(1)
    with torch.no_grad():
        coarse, fine = made("multiscale", 1, multiscale_pools=(D,)), made("multiscale", 1, multiscale_pools=(1,))
        for operator in (coarse, fine):
            operator.shared.weight.copy_(torch.eye(D))
        turned = [views[0].flip(1)]
        torch.testing.assert_close(coarse(turned), coarse(views))
        assert not torch.allclose(fine(turned), fine(views))


def test_a_view_attends_to_the_earlier_layers_of_the_others() -> None:
    """The logits' gradients: nothing flows from a view to itself, and the second layer hears the first two."""
    operator = made("cross_attention", 2, attention_layers=2, attention_heads=1)
    heard = []
    for layer in operator.layers:
        layer.out.register_forward_hook(lambda module, given, result: heard.append(given[0]))
    leaves = [view.requires_grad_() for view in drawn(2)]
    operator(leaves)
    first, second = heard  # (N, M, d) before the output projection
    own, other = torch.autograd.grad(first[:, 0].sum(), leaves, retain_graph=True)
    assert not own.any() and other.any()
    assert all(grad.any() for grad in torch.autograd.grad(second[:, 0].sum(), leaves))
    assert made("cross_attention", 2, attention_layers=3).layers[2].key.weight.shape == (D, D)


def test_a_single_view_attends_to_nothing() -> None:
    operator, views = made("cross_attention", 1), drawn(1)
    torch.testing.assert_close(operator(views), operator.out(operator.norm(views[0]) + operator.names + sum(
        layer.out.bias for layer in operator.layers
    )))


def test_a_modality_added_to_modular_keeps_all_weights() -> None:
    three, four = made("modular", 3), made("modular", 4)
    old, new = three.state_dict(), four.state_dict()
    assert {name for name in new if name not in old} == {"into.3.weight", "out.3.weight"}
    assert all(new[name].shape == tensor.shape for name, tensor in old.items())
    four.load_state_dict({**new, **old})
    views, nobody = drawn(4), torch.zeros(6, dtype=torch.bool)
    torch.testing.assert_close(four(views, [None, None, None, nobody]), three(views[:3]))


def test_modular_without_support_is_its_main_view() -> None:
    operator, views, nobody = made("modular"), drawn(), torch.zeros(6, dtype=torch.bool)
    adapted = views[0] + operator.out[0](operator.into[0](views[0]).tanh())
    torch.testing.assert_close(operator(views, [None, nobody, nobody]), operator.main(adapted))


def test_operators_of_blocks_keep_no_intermediate_results_of_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many blocks a backward pass finds less kept than without; results and gradients are the same."""
    views = drawn(3, nodes=640)

    def kept(kind: str) -> tuple[int, list[Tensor]]:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda x: x):
            fused = made(kind)([view.clone().requires_grad_() for view in views])
        return sum(sizes), [fused.detach(), *results(made(kind), views)]

    for kind in ("multiscale", "cross_attention", "hub", "modular"):
        whole, expected = kept(kind)
        with monkeypatch.context() as patch:
            patch.setattr(base, "_ROWS_TIMES_WIDTH", 1)
            blocks, found = kept(kind)
        assert blocks < whole / 4
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right)


def test_some_facts_of_each_entity_are_of_many_relations() -> None:
    train = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 4], [4, 0, 0]])
    facts = some_facts(train, 6, 2, 3)
    assert facts.shape == (6, 3, 2)
    assert sorted(facts[0, :, 0]) == [0, 1, 2]  # asked by 0 and 1, and answered by (4, 0, ?)
    assert (facts[0][facts[0, :, 0] == 1] == [[1, 4]]).all() and (facts[0][facts[0, :, 0] == 2] == [[2, 4]]).all()
    assert facts[2].tolist() == [[2, 0], [-1, -1], [-1, -1]]
    assert (facts[5] == -1).all()
    np.testing.assert_array_equal(facts, some_facts(train, 6, 2, 3))
    assert len(some_facts(np.zeros((0, 3), dtype=np.int64), 2, 1, 2)) == 2


def hub(toy: LinkData, **changes: object) -> Config:
    return Config().updated({
        "model.fusion": "hub", "model.dim": 8, "model.relation_dim": 6, "train.batch_size": 32, "train.max_epochs": 2,
        "model.dropout_fusion": 0.0, **{name.replace("__", "."): value for name, value in changes.items()},
    })


def test_the_hub_hears_relations_and_facts_of_training_alone(toy: LinkData) -> None:
    model = build_model(hub(toy), toy).eval()
    before = model.tables().entities["fused"].detach().clone()
    known = {(int(head), int(relation)) for head, relation, _ in toy.graph.train}
    facts = model.fuse_entities.facts
    assert all((entity, int(relation)) in known for entity in range(5) for relation in facts[entity, :, 0] if 0 <= relation < 4)
    with torch.no_grad():
        model.relations["structure"][0] += 3.0
    moved = (model.tables().entities["fused"].detach() - before).abs().amax(dim=1) > 1e-6
    assert torch.equal(moved, (facts[:, :, 0] == 0).any(dim=1))
    grads = torch.autograd.grad(model.tables().entities["fused"].square().sum(), list(model.fuse_entities.parameters()))
    assert all(grad.any() for grad in grads)
    assert not hasattr(build_model(hub(toy, model__hub_context=0), toy).fuse_entities, "facts")
    assert not hasattr(model.fuse_relations, "facts")


def test_the_hub_fuses_a_part_of_the_entities_as_it_fuses_all(toy: LinkData) -> None:
    model = build_model(hub(toy), toy).eval()
    nodes = torch.tensor([3, 7, 8, 20, 29])
    torch.testing.assert_close(model.tables(nodes).entities["fused"], model.tables().entities["fused"][nodes])
    with pytest.raises(ValueError, match="4 entities to fuse, the pass computes all"):
        model.fuse_entities([torch.zeros(4, 8)] * 3)


def test_a_hub_of_a_checkpoint_has_its_facts(toy: LinkData, tmp_path: Path) -> None:
    config = hub(toy)
    model = build_model(config, toy)
    fit(model, toy, config)
    save_checkpoint(tmp_path, model, config, toy.graph, {})
    loaded = load_checkpoint(tmp_path).model
    torch.testing.assert_close(loaded.tables().entities["fused"], model.eval().tables().entities["fused"])
    assert "fuse_entities.facts" not in model.state_dict()
