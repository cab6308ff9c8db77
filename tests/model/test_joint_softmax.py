"""The one-pass loss equals the plain one, value and gradients, in float64: with masks, smoothing, either weighting."""

import pytest
import torch

from imf_core.config import Config
from imf_core.data.prepared import LinkData
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model

FREE_OF_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}


@pytest.mark.parametrize("modalities", [None, ["text"], []])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighting", ["triple", "query"])
@pytest.mark.parametrize("joint", [0.0, 0.7])
def test_equals_the_plain_loss(
    toy: LinkData, modalities: list[str] | None, smoothing: float, weighting: str, joint: float
) -> None:
    config = Config().updated(
        {
            **FREE_OF_CHANCE,
            "model.dim": 8,
            "model.relation_dim": 4,
            "model.modalities": modalities,
            "model.joint_weight": joint,
            "train.label_smoothing": smoothing,
            "train.weighting": weighting,
            "model.decision": "relation",
        }
    )
    model = build_model(config, toy).double()
    if model.decision.logits is not None:
        model.decision.logits.copy_(torch.randn(model.decision.logits.shape, generator=torch.Generator().manual_seed(0)))
    batch = next(iter(TrainingQueries(toy.graph).epoch(24, 0, 1)))
    batch.positives.counts.data = batch.positives.counts.double()
    tables = model.tables()
    contexts = model.contexts(tables, batch.heads, batch.relations)
    arguments = (batch.heads, batch.relations, batch.positives, config.train)
    plain = model._plain_parts(model.branch_scores(tables, contexts), *arguments)
    fused = model._fused_parts(tables, contexts, *arguments)
    assert plain.keys() == fused.keys()
    assert ("joint" in fused) == (joint > 0 and modalities != [])
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-10, atol=1e-10)
    parameters = [parameter for name, parameter in model.named_parameters()]
    expected = torch.autograd.grad(plain["total"], parameters, retain_graph=True)
    got = torch.autograd.grad(fused["total"], parameters)
    for name, first, second in zip(dict(model.named_parameters()), expected, got, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-8, atol=1e-10, msg=name)
