"""Norm penalties against their formulas, triple by triple, and their gradients, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imf_core.config import Config, ModelConfig
from imf_core.model.imf import Imf
from imf_core.model.losses import regularizer
from imf_core.model.losses.target import Positives
from imf_core.model.scoring import Scorer, build_scorer, relation_width
from imf_core.prepare.link_data import LinkData
from imf_core.train.batches import QueryBatch, TrainingQueries
from imf_core.train.fit import build_model

KINDS = ("n3", "dura", "ivr")
SCORERS = ("contextual", "block", "transe", "distmult", "complex", "similarity")
PLAIN = {
    **{f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}, "model.dim": 8,
    "model.relation_dim": 4, "model.norm": "none", "model.block_size": 2, "train.label_smoothing": 0.0,
}
POSITIVES = Positives(
    torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 1, 2, 0, 4, 1]), torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
)


def scorer(kind: str) -> Scorer:
    torch.manual_seed(0)
    settings = {"dim": 8, "relation_dim": 4, "block_size": 2, "scoring": kind, "norm": "none"}
    return build_scorer(ModelConfig.model_validate(settings)).double().eval()


def vectors(kind: str) -> list[Tensor]:
    """Heads (3, d), relations (3, r), contexts (3, d), tails (6, d); one of each is zero, where a modulus has no slope."""
    generator = torch.Generator().manual_seed(1)
    narrow = relation_width(ModelConfig.model_validate({"dim": 8, "relation_dim": 4, "scoring": kind}))
    made = [torch.randn(rows, width, generator=generator, dtype=torch.float64)
            for rows, width in ((3, 8), (3, narrow), (3, 8), (6, 8))]
    made[0][1] = 0.0
    made[3][2] = 0.0
    return made


def cube(kind: str, vector: Tensor) -> Tensor:
    """Sum of cubed moduli of one vector."""
    if kind == "complex":
        half = len(vector) // 2
        return sum((abs(complex(vector[k], vector[k + half])) ** 3 for k in range(half)), torch.zeros(()).double())
    size = 2 if kind == "block" else 1
    return sum((part.norm() ** 3 for part in vector.split(size)), torch.zeros(()).double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scoring", SCORERS)
def test_is_the_mean_over_the_triples(kind: str, scoring: str) -> None:
    heads, relations, contexts, tails = vectors(scoring)
    expected = torch.zeros(()).double()
    for triple, row in enumerate(POSITIVES.rows):
        if kind == "dura":
            expected += contexts[row].square().sum() + tails[triple].square().sum()
        else:
            parts = [heads[row], relations[row], tails[triple], *([contexts[row]] if kind == "ivr" else [])]
            expected += torch.stack([cube(scoring, part) for part in parts]).sum()
    counted = POSITIVES.counts / POSITIVES.counts.sum()  # every triple counts the same
    found = getattr(regularizer, kind)(scorer(scoring), heads, relations, contexts, tails, POSITIVES, counted)
    torch.testing.assert_close(found, expected / len(POSITIVES.rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scoring", SCORERS)
def test_gradients(kind: str, scoring: str) -> None:
    made, weights = scorer(scoring), torch.tensor([0.5, 0.2, 0.3]).double()
    inputs = [part.requires_grad_() for part in vectors(scoring)]
    assert torch.autograd.gradcheck(lambda *parts: getattr(regularizer, kind)(made, *parts, POSITIVES, weights), inputs)


def batch_of(data: LinkData) -> QueryBatch:
    batch = next(iter(TrainingQueries(data.graph).epoch(24, 0, 1, per_triple=True)))
    batch.positives.counts.data = batch.positives.counts.double()
    return batch


def model_of(data: LinkData, changes: dict[str, Any]) -> tuple[Imf, Config]:
    config = Config().updated({**PLAIN, "model.modalities": [], **changes})
    return build_model(config, data).double(), config


def test_a_grouped_batch_is_one_versus_all(toy: LinkData) -> None:
    """Queries with several answers, weighed by their number, are the triples one by one: loss, penalty and gradients."""
    model, config = model_of(toy, {"model.scoring": "complex", "train.regularizer": "n3", "train.regularizer_weight": 0.05})
    batch = batch_of(toy)
    assert batch.positives.counts.max() > 1
    total = model(batch.heads, batch.relations, batch.positives, config.train)["total"]
    heads, relations = batch.heads[batch.positives.rows], batch.relations[batch.positives.rows]
    tails, table = batch.positives.tails, model.structure
    context = model.scorers["structure"].context(table[heads], model.relations["structure"], relations)  # type: ignore[operator,union-attr]
    plain = functional.cross_entropy(context @ table.T, tails)
    for vector in (table[heads], model.relations["structure"][relations], table[tails]):
        real, imaginary = vector.chunk(2, dim=1)
        plain = plain + 0.05 * (real.square() + imaginary.square()).pow(1.5).sum() / len(heads)
    torch.testing.assert_close(total, plain, rtol=1e-10, atol=1e-10)
    parameters = [model.structure, model.relations["structure"]]
    for ours, theirs in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_negatives_have_the_same_penalty(toy: LinkData, kind: str) -> None:
    changes = {"model.modalities": None, "model.contrastive_weight": 0.0, "train.regularizer": kind}
    model, config = model_of(toy, changes)
    model.eval()
    batch = batch_of(toy)
    fewer = config.train.model_copy(update={"num_negatives": 5})
    arguments = batch.heads, batch.relations, batch.positives
    whole, sampled = (model(*arguments, train)["penalty"] for train in (config.train, fewer))
    assert whole > 0
    torch.testing.assert_close(sampled, whole, rtol=1e-10, atol=1e-10)
    assert "penalty" not in model(*arguments, config.train.model_copy(update={"regularizer": "none"}))


@pytest.mark.parametrize("changes", [*({"train.regularizer": kind} for kind in KINDS), {"train.relation_weight": 0.1}])
@pytest.mark.parametrize("scoring", ["complex", "contextual"])
def test_a_step_in_bf16_has_nearly_the_loss_of_fp32(toy: LinkData, scoring: str, changes: dict[str, Any]) -> None:
    base = {**PLAIN, "model.scoring": scoring, "model.contrastive_weight": 0.0}
    config = Config().updated({**base, "train.regularizer_weight": 1.0, **changes})
    model = build_model(config, toy).eval()
    batch = next(iter(TrainingQueries(toy.graph).epoch(24, 0, 1, per_triple=True)))
    parts = [
        model(batch.heads, batch.relations, batch.positives, config.train.model_copy(update={"precision": precision}))
        for precision in ("fp32", "bf16")
    ]
    name = "relation" if config.train.relation_weight else "penalty"
    assert parts[0][name] > 0
    torch.testing.assert_close(parts[1][name], parts[0][name], rtol=0.02, atol=0.0)
    parts[1]["total"].backward()
    assert all(table.grad is not None and table.grad.isfinite().all() for table in model.structure_tables.values())
