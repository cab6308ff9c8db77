"""Sampled candidates in the model: with all of them the full loss, and of the tables only what a step touches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.model.imf import Imf
from imf_core.model.losses import sampled
from imf_core.model.losses.negatives import draw_distinct, draw_negatives
from imf_core.model.losses.target import Positives
from imf_core.prepare.link_data import LinkData
from imf_core.train.batches import QueryBatch, TrainingQueries
from imf_core.train.fit import build_model

SMALL = {
    "model.dim": 8, "model.relation_dim": 4, "model.decision": "relation", "model.contrastive_weight": 0.3,
    **{f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")},
}


def made(toy: LinkData, **more: object) -> tuple[Imf, Config, QueryBatch]:
    """A model in double precision and a batch."""
    config = Config().updated({**SMALL, **{key.replace("__", "."): value for key, value in more.items()}})
    model = build_model(config, toy).double()
    if model.decision.logits is not None:
        torch.nn.init.normal_(model.decision.logits)
    batch = next(iter(TrainingQueries(toy.graph).epoch(24, 0, 1)))
    batch.positives.counts.data = batch.positives.counts.double()
    return model, config, batch


def gradients(model: Imf, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: part.to_dense() for name, part in zip(names, found, strict=True) if part is not None}


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("scoring", ["contextual", "distmult", "transe"])
@pytest.mark.parametrize(
    ("modalities", "missing", "finetune"),
    [
        ([], "learned", False), (None, "learned", False), (None, "neutral", True), (None, "mean", False),
        (["text"], "mean", True),
    ],
)
@pytest.mark.parametrize("at_a_time", [1, 200, 10**6])
def test_with_all_candidates_it_is_the_full_loss(
    toy: LinkData, loss: str, scoring: str, modalities: list[str] | None, missing: str, finetune: bool, at_a_time: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampled, "_AT_A_TIME", at_a_time)
    model, config, batch = made(
        toy, train__loss=loss, model__scoring=scoring, model__modalities=modalities, model__missing=missing,
        model__finetune_features=finetune, train__label_smoothing=0.1,
    )
    arguments = (batch.heads, batch.relations, batch.positives, config.train)
    full, estimated = model(*arguments), model.sampled_parts(*arguments, model.num_entities)
    assert full.keys() == estimated.keys()
    for name, value in full.items():
        torch.testing.assert_close(estimated[name], value, rtol=1e-9, atol=1e-9)
    if missing == "mean" and modalities is None:
        return  # the mean that fills missing images is a constant of the sampled loss
    expected, found = gradients(model, full["total"]), gradients(model, estimated["total"])
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("finetune", [False, True])
def test_a_step_touches_few_rows(toy: LinkData, finetune: bool) -> None:
    model, config, batch = made(toy, train__num_negatives=3, model__finetune_features=finetune)
    sparse = model.sparse_parameters(config.train)
    assert set(sparse) == {"structure", *({"features.image.table", "features.text.table"} if finetune else set())}
    torch.manual_seed(4)
    inside = batch.positives.rows < 2
    few = Positives(batch.positives.rows[inside], batch.positives.tails[inside], batch.positives.counts[:2])
    model(batch.heads[:2], batch.relations[:2], few, config.train)["total"].backward()
    touched = set(batch.heads[:2].tolist()) | set(few.tails.tolist())
    for table in sparse.values():
        assert table.grad is not None and table.grad.is_sparse
        rows = set(table.grad.coalesce().indices()[0].tolist())
        assert touched <= rows and len(rows) <= len(touched) + 3 < model.num_entities
    others = [parameter.grad for name, parameter in model.named_parameters() if name not in sparse]
    assert all(grad is None or not grad.is_sparse for grad in others)


def test_as_many_as_there_are_entities_is_one_to_n(toy: LinkData) -> None:
    model, config, _ = made(toy)
    for count in (None, model.num_entities, 10**9):
        assert model.sparse_parameters(config.train.model_copy(update={"num_negatives": count})) == {}


@pytest.mark.parametrize(("entities", "count"), [(10, 10), (10, 1), (1000, 40), (10**6, 5000)])
def test_drawn_entities_are_distinct(entities: int, count: int) -> None:
    torch.manual_seed(0)
    drawn = draw_distinct(entities, count, torch.device("cpu"))
    assert len(drawn) == count == len(drawn.unique())
    assert int(drawn.min()) >= 0 and int(drawn.max()) < entities


def test_every_entity_is_as_likely() -> None:
    torch.manual_seed(0)
    counts = torch.zeros(50)
    for _ in range(4000):
        counts[draw_distinct(50, 5, torch.device("cpu"))] += 1
    assert float(((counts - 400) ** 2 / 360).sum()) < 85  # chi squared, 49 degrees of freedom: p = 0.001


def test_the_heads_of_a_batch_are_among_its_negatives() -> None:
    torch.manual_seed(0)
    heads = torch.tensor([7, 7, 999_999, 12])
    drawn = draw_negatives(10**6, 30, heads)
    assert set(heads.tolist()) <= set(drawn.tolist())
    assert 30 <= len(drawn) <= 33 and len(drawn) == len(drawn.unique())
    many = torch.arange(5000, 6000)
    drawn = draw_negatives(10**6, 40, many)  # no more than are drawn: a large batch costs no multiple of what was asked for
    assert len(drawn) <= 80 and len(set(drawn.tolist()) & set(many.tolist())) >= 40


def test_a_model_learns_from_the_heads(toy: LinkData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no other entity is drawn they are all that competes with the only answer of each query."""
    monkeypatch.setattr("imf_core.model.losses.negatives.draw_distinct", lambda *_: torch.zeros(0, dtype=torch.int64))
    model, config, batch = made(toy, model__modalities=[], train__label_smoothing=0.0)
    alone = batch.positives.counts[batch.positives.rows] == 1
    heads, relations = (part[batch.positives.counts == 1] for part in (batch.heads, batch.relations))
    tails = batch.positives.tails[alone]
    answers = Positives(torch.arange(len(tails)), tails, torch.ones(len(tails), dtype=torch.float64))
    assert len(heads) == len(tails) > 2
    assert model.sampled_parts(heads, relations, answers, config.train, len(heads))["total"].item() > 0.1
