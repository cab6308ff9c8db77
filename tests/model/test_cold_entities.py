"""Cold entities get the weighted mean row of those that they resemble, or the mean row, so that the relation alone decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from imf_core.checkpoint.carry_over import carry_over
from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.evaluate.ranking import evaluate
from imf_core.model.cold_entities import NEAREST, TEMPERATURE, ColdEntities
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving
from tests.support.killed_run import Killed, stop_at

COUNT, NEW = 40, 4


@pytest.fixture(scope="module")
def world() -> LinkData:
    """36 entities that all say `kind` of entity 0, and four that only validation names: they say it too."""
    linked = COUNT - NEW
    triples = [(i, 0, 0) for i in range(1, linked)] + [(i, 1, (i * 7 + 3) % linked) for i in range(linked)]
    train = np.array(triples, dtype=np.int64)
    valid = np.array([(i, 0, 0) for i in range(linked, COUNT)], dtype=np.int64)
    names = Vocabulary(tuple(f"e{i}" for i in range(COUNT)))
    return LinkData(KnowledgeGraph(names, Vocabulary(("kind", "next"), "relation"), train, valid, source="world"), ())


def settings(**more: object) -> Config:
    return Config().updated({
        "model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.max_epochs": 8, "train.patience": 8,
        "train.lr": 0.01, **{key.replace("__", "."): value for key, value in more.items()},
    })


@pytest.mark.parametrize("more", [{}, {"model__scoring": "complex"}, {"train__num_negatives": 8}, {"train__average": 0.9}])
def test_they_get_the_mean_row_and_the_relation_answers(world: LinkData, more: dict[str, object]) -> None:
    config = settings(**more)
    model = build_model(config, world)
    assert model.cold_entities is not None and len(model.cold_entities.rows) == NEW
    fit(model, world, config)
    seen = torch.from_numpy(world.graph.seen)
    mean = model.structure[seen].mean(dim=0)
    assert torch.allclose(model.structure[~seen], mean.expand(NEW, -1), atol=1e-6)
    found = evaluate(model, world.graph, world.graph.valid, world.graph.known())
    assert found.tail_ranks.tolist() == [1.0] * NEW  # almost everyone is of kind 0, so they are too
    free = build_model(config, world)
    free.cold_entities = None
    fit(free, world, config)
    taught = evaluate(free, world.graph, world.graph.valid, world.graph.known())
    assert found.metrics.mrr >= taught.metrics.mrr


def test_a_resumed_run_replaces_them_as_the_unbroken_one(world: LinkData, tmp_path: Path) -> None:
    config = settings(train__max_epochs=4)
    whole = build_model(config, world)
    expected = fit(whole, world, config)
    with pytest.raises(Killed):
        fit(build_model(config, world), world, config, stop_at(2), saving=Saving(tmp_path, seconds=0))
    again = build_model(config, world)
    assert fit(again, world, config, saving=Saving(tmp_path, seconds=0)).curve == expected.curve
    assert torch.equal(again.structure, whole.structure)


def test_rows_that_come_from_elsewhere_stay(world: LinkData, tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(COUNT, 16)).astype(np.float32)
    kept = build_model(settings(), replace(world, structure=table))
    before = kept.structure.detach().clone()
    kept.replace_cold_rows()
    assert torch.equal(kept.structure, before)
    config = settings(train__max_epochs=1)
    model = build_model(config, world)
    save_checkpoint(tmp_path / "start", model, config, world.graph)
    fresh = build_model(config, world)
    carry_over(fresh, load_checkpoint(tmp_path / "start"), world)
    assert fresh.cold_entities is None


def test_nobody_and_everybody() -> None:
    some = torch.tensor([True, False, True])
    assert ColdEntities.of(torch.ones(3, dtype=torch.bool)) is None
    assert ColdEntities.of(torch.zeros(3, dtype=torch.bool)) is None
    found = ColdEntities.of(some)
    assert found is not None and found.rows.tolist() == [1]
    rows = torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 6.0]])
    found.replace_rows(rows)
    assert rows.tolist() == [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]
    found.replace_rows(rows, torch.tensor([False, True, False]))  # nobody to learn from
    assert rows.tolist() == [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]


def described(world: LinkData) -> LinkData:
    """The same with `next` for two kinds, where features tell the kinds apart: of the four new ones, one has none."""
    rng = np.random.default_rng(0)
    kinds = np.arange(COUNT) % 2
    features = (rng.normal(size=(COUNT, 8)) * 0.1 + np.eye(8)[kinds] * 3).astype(np.float32)
    mask = np.ones(COUNT, dtype=bool)
    mask[COUNT - 1] = False
    features[~mask] = 0
    linked = COUNT - NEW
    train = np.array([(i, 0, i % 2) for i in range(2, linked)] + [(i, 1, (i * 7 + 3) % linked) for i in range(linked)])
    valid = np.array([(i, 0, i % 2) for i in range(linked, COUNT)])
    return replace(world, graph=replace(world.graph, train=train, valid=valid), modalities=(Modality("text", features, mask),))


def test_those_with_features_take_the_mean_of_whom_they_resemble(world: LinkData) -> None:
    data = described(world)
    (item,) = data.modalities
    seen = torch.from_numpy(data.graph.seen)
    found = ColdEntities.of(seen, data.modalities)
    assert found is not None
    vectors = torch.nn.functional.normalize(torch.from_numpy(item.standardised()), dim=1)
    table = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(0))
    expected = table.clone()
    for row in found.rows[:-1]:  # by the definition, over all: here are fewer than are looked at
        cosines = (vectors @ vectors[row])[seen]
        assert len(cosines) < NEAREST
        expected[row] = torch.softmax(cosines / TEMPERATURE, dim=0) @ table[seen]
    expected[COUNT - 1] = table[seen].mean(dim=0)
    found.replace_rows(table)
    assert torch.allclose(table, expected, atol=1e-5)
    resembled = found.near[0][found.shares[0] > 0.01]
    assert (resembled % 2 == found.rows[0] % 2).all()

    few = torch.from_numpy(item.mask) & (torch.arange(COUNT) < 10)  # a table in which others have no vector
    found.replace_rows(table, few)
    alike = torch.zeros(COUNT)
    alike[found.near[0]] = found.shares[0] * few[found.near[0]]
    assert torch.allclose(table[found.rows[0]], (alike / alike.sum()) @ table, atol=1e-5)


@pytest.mark.parametrize("finetune", [True, False])
def test_features_answer_for_entities_that_no_triple_names(world: LinkData, finetune: bool) -> None:
    data = described(world)
    config = settings(model__finetune_features=finetune, model__decision="uniform")
    model = build_model(config, data)
    fit(model, data, config)
    found = evaluate(model, data.graph, data.graph.valid, data.graph.known())
    assert found.tail_ranks[:-1].tolist() == [1.0] * (NEW - 1)  # which of the two kinds, the names of the kinds being equal
    free = build_model(config, data)
    free.cold_entities = None
    fit(free, data, config)
    taught = evaluate(free, data.graph, data.graph.valid, data.graph.known())
    assert found.metrics.mrr >= taught.metrics.mrr
