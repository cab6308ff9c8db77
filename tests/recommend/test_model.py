"""The recommender against its formulas; the graph layer against the library's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from imf_core.data.features.modality import Modality
from imf_core.recommend.config import RecommenderConfig
from imf_core.recommend.model import MetaMMF_GCN, MetaMMF_MF, Recommender, build_recommender
from imf_core.recommend.sage import Neighbours, SageLayer

U, I = 5, 6  # noqa: E741
TRAIN = np.array([(0, 0), (0, 1), (1, 1), (1, 2), (2, 0), (2, 3), (3, 4)])  # user 4 and item 5 are cold


def features(missing: bool = False) -> list[Modality]:
    random = np.random.default_rng(0)
    mask = np.arange(I) != 2 if missing else np.ones(I, dtype=bool)
    tags = np.where(mask[:, None], random.normal(size=(I, 3)), 0).astype(np.float32)
    return [Modality("tags", tags, mask), Modality("sound", random.normal(size=(I, 4)).astype(np.float32), np.ones(I, bool))]


def made(modalities: list[Modality] | None = None, **settings) -> Recommender:
    torch.manual_seed(0)
    config = RecommenderConfig(**{"widths": (8, 4), "id_width": 3, "meta_dim": 2, "meta_hidden": 5, "cp_rank": 3, **settings})
    return build_recommender(config, U, I, features() if modalities is None else modalities, TRAIN)


def test_mean_of_neighbours_by_hand() -> None:
    hears = Neighbours(np.array([(2, 0), (0, 1), (2, 3)]), 3)
    table = torch.arange(8.0).view(4, 2)
    assert hears(table).tolist() == [[2, 3], [0, 0], [3, 4]]
    assert hears.degrees.tolist() == [1, 0, 2]


def test_the_layer_is_that_of_the_library() -> None:
    from torch_geometric.nn import SAGEConv

    torch.manual_seed(1)
    theirs, ours = SAGEConv(4, 6), SageLayer(4, 6)
    ours.others.load_state_dict(theirs.lin_l.state_dict())
    ours.own.load_state_dict(theirs.lin_r.state_dict())
    users, items = torch.randn(U, 4, requires_grad=True), torch.randn(I, 4, requires_grad=True)
    edges = torch.from_numpy(TRAIN.T.copy()) + torch.tensor([[0], [U]])
    expected = theirs(torch.cat((users, items)), torch.cat((edges, edges.flip(0)), dim=1))
    found = torch.cat((
        ours(users, Neighbours(TRAIN, U)(items)), ours(items, Neighbours(TRAIN[:, ::-1], I)(users)),
    ))
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(found)
    for left, right in zip(*(torch.autograd.grad((x * towards).sum(), (users, items)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(left, right)


def test_neighbours_are_drawn_where_there_are_many() -> None:
    hears = Neighbours(np.array([(0, item) for item in range(50)] + [(1, 7), (1, 8)]), 3)
    table = torch.eye(50)
    torch.manual_seed(0)
    drawn = hears(table, most=4)
    assert (drawn[0] > 0).sum() <= 4
    assert drawn[0].sum().item() == pytest.approx(1)
    assert drawn[1].nonzero().ravel().tolist() == [7, 8]  # few neighbours are all heard
    assert not drawn[2].any()
    mean = torch.stack([hears(table, most=4)[0] for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, torch.full((50,), 1 / 50), atol=0.01, rtol=0)


@pytest.mark.parametrize("fusion", ["meta", "meta_cp", "mlp"])
def test_an_item_is_its_fused_features_beside_its_own_vector(fusion: str) -> None:
    model = made(fusion=fusion)
    given = torch.from_numpy(np.concatenate([part.standardised() for part in features()], axis=1))
    vectors = model.item_vectors()
    assert vectors.shape == (I, 7)
    torch.testing.assert_close(vectors[:, :4], model.fuse(given))
    torch.testing.assert_close(vectors[:5, 4:], model.item_table[:5])
    assert not vectors[5, 4:].any()  # training never saw it: no vector of its own
    assert vectors[5, :4].abs().sum() > 0


def test_the_fusion_of_an_item_is_its_own() -> None:
    """With meta layers the same change of a hidden value moves two items differently; with static layers, alike."""
    slopes = {}
    for fusion in ("meta", "mlp"):
        model = made(fusion=fusion, widths=(4,))  # one layer: linear in the features where the weights are shared
        table = model.features.table
        signal = model.fuse.meta(table) if model.fuse.meta is not None else None
        moved = [model.fuse.layers[0](table + step * torch.eye(7)[0], signal) for step in (0.0, 1.0)]
        slopes[fusion] = moved[1] - moved[0]
    assert slopes["mlp"].std(dim=0).max() < 1e-6
    assert slopes["meta"].std(dim=0).min() > 1e-3


@pytest.mark.parametrize("fusion", ["meta", "meta_cp"])
def test_dynamic_layers_begin_near_the_static_control(fusion: str) -> None:
    """Of four layers on wide features, first vectors are of the size that static ones have, and differ from them."""
    random = np.random.default_rng(0)
    wide = [Modality("sound", random.normal(size=(I, 200)).astype(np.float32), np.ones(I, bool))]
    shape = {"widths": (256, 128, 64, 32), "meta_dim": 5, "meta_hidden": 64, "cp_rank": 32}
    sizes = {kind: made(wide, fusion=kind, **shape).item_vectors()[:, :32].std().item() for kind in (fusion, "mlp")}
    assert 0.5 < sizes[fusion] / sizes["mlp"] < 3
    for layer in made(wide, fusion="meta", **shape).fuse.layers:
        assert layer.tensors.std().item() == pytest.approx((2 / (5 + layer.static.numel())) ** 0.5, rel=0.05)


def test_the_graph_model_by_hand() -> None:
    model = made(encoder="gcn").eval()
    assert isinstance(model, MetaMMF_GCN)
    users, items = model.user_table.detach(), model.item_vectors().detach()
    incidence = torch.zeros(U, I)
    incidence[TRAIN[:, 0], TRAIN[:, 1]] = 1
    to_users = incidence / incidence.sum(1, keepdim=True).clamp(min=1)
    to_items = (incidence / incidence.sum(0).clamp(min=1)).T
    for layer in model.layers:
        own, others, bias = layer.own.weight.T, layer.others.weight.T, layer.others.bias
        users, items = (
            functional.leaky_relu(users @ own + (to_users @ items) @ others + bias),
            functional.leaky_relu(items @ own + (to_items @ users) @ others + bias),
        )
    found = model.vectors()
    torch.testing.assert_close(found[1], items)
    torch.testing.assert_close(found[0][:4], users[:4])
    torch.testing.assert_close(found[0][4], users[:4].mean(dim=0))  # a user without interactions is the mean user


def test_bpr_by_hand() -> None:
    model = made(encoder="mf")
    assert isinstance(model, MetaMMF_MF)
    users, items = model.vectors()
    score = (users @ items.T).detach().double().numpy()
    loss = model(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([[3, 4], [0, 5]]))
    gaps = [score[0, 0] - score[0, 3], score[0, 0] - score[0, 4], score[1, 2] - score[1, 0], score[1, 2] - score[1, 5]]
    assert loss.item() == pytest.approx(float(sum(np.log1p(np.exp(-gap)) for gap in gaps) / 4), abs=1e-6)


def test_the_graph_is_encoded_once_a_step_and_not_once_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(encoder="gcn")
    calls: list[int] = []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, *parts: calls.append(1) or encode(self, *parts))
    model(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3]), torch.randint(0, I, (3, 5)))
    assert len(calls) == 1


def test_a_missing_modality_is_a_trained_vector_and_never_read() -> None:
    model = made(features(missing=True), encoder="mf")
    assert list(model.features.missing) == ["tags"]
    with torch.no_grad():
        model.features.missing["tags"].fill_(9.0)
    rows = model.features()
    assert rows[2, :3].tolist() == [9, 9, 9]
    assert (rows[[0, 1, 3, 4, 5]] != 9).all()
    model(torch.tensor([1]), torch.tensor([2]), torch.tensor([[0]])).backward()
    assert model.features.missing["tags"].grad.abs().sum() > 0


def test_the_control_without_features_reads_none() -> None:
    model = made([], fusion="id")
    assert model.fuse is None
    assert model.item_vectors().shape == (I, 7)
    assert model.modality_names == ()


def test_every_parameter_is_trained() -> None:
    for encoder in ("mf", "gcn"):
        for fusion in ("meta", "meta_cp", "mlp", "id"):
            model = made(features(missing=True), encoder=encoder, fusion=fusion)
            model(torch.tensor([0, 1]), torch.tensor([0, 2]), torch.tensor([[3, 4], [0, 5]])).backward()
            without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
            assert without == []
