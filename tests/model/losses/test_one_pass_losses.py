"""The one-pass loss equals the plain one, value and gradients, in float64: with masks,
smoothing, either weighting, and however the scores are cut into tiles and blocks."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.model.losses import autograd, tiles
from imf_core.model.losses import binary as joint_binary
from imf_core.model.losses import softmax as joint_softmax
from imf_core.model.losses.dense import binary_loss
from imf_core.model.losses.target import JointTarget, Positives
from imf_core.prepare.link_data import LinkData
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model

FREE_OF_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}


@pytest.mark.parametrize("pieces", ["whole", "tiles", "tiles and blocks"])
@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("modalities", [None, ["text"], []])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighting", ["triple", "query"])
@pytest.mark.parametrize("joint", [0.0, 0.7])
def test_equals_the_plain_loss(
    toy: LinkData, monkeypatch: pytest.MonkeyPatch, pieces: str, loss: str, modalities: list[str] | None, smoothing: float,
    weighting: str, joint: float,
) -> None:
    if pieces != "whole":
        monkeypatch.setattr(tiles, "_TILE", 1)
        monkeypatch.setattr(tiles, "_NARROWEST", 5)
    if pieces == "tiles and blocks":
        monkeypatch.setattr(joint_softmax, "_block_size", lambda *_: 7)
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
            "train.loss": loss,
        }
    )
    model = build_model(config, toy).double()
    if model.decision.logits is not None:
        model.decision.logits.copy_(torch.randn(model.decision.logits.shape, generator=torch.Generator().manual_seed(0)))
    batch = next(iter(TrainingQueries(toy.graph).epoch(24, 0, 1)))
    batch.positives.counts.data = batch.positives.counts.double()
    tables = model.tables()
    contexts = model.contexts(tables, batch.heads, batch.relations)
    towards = JointTarget(
        batch.positives, smoothing, weighting == "triple", joint, model.decision_weights(batch.heads, batch.relations),
        [model.mask(branch) for branch in model.branches],
    )
    expected_total, plain_parts = model.autograd_loss(tables, contexts, towards)
    fused, fused_parts = model.one_pass_loss(tables, contexts, towards)
    assert len(plain_parts) == len(fused_parts) == len(model.branches) + (joint > 0 and modalities != [])
    torch.testing.assert_close(fused, expected_total, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fused_parts, plain_parts, rtol=1e-10, atol=1e-10)
    parameters = [parameter for name, parameter in model.named_parameters()]
    expected = torch.autograd.grad(expected_total, parameters, retain_graph=True)
    got = torch.autograd.grad(fused, parameters)
    for name, first, second in zip(dict(model.named_parameters()), expected, got, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("one_pass", [joint_softmax.joint_softmax_loss, joint_binary.joint_binary_loss])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_frozen_table_gets_no_gradient_and_changes_no_other(
    one_pass: Callable[..., tuple[Tensor, Tensor]], smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[bool]] = []

    def watched(tables: Sequence[Tensor], needed: Sequence[bool], kind: torch.dtype) -> list[Tensor | None]:
        made.append(list(needed))
        return tiles.table_gradients(tables, needed, kind)

    for module in (joint_softmax, joint_binary):
        monkeypatch.setattr(module, "table_gradients", watched)
    generator = torch.Generator().manual_seed(0)
    contexts, tables = ([torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
                        for rows in (3, 9))
    positives = Positives(torch.tensor([0, 1, 1, 2]), torch.tensor([4, 0, 8, 2]), torch.tensor([1.0, 2.0, 1.0]).double())
    weights = torch.tensor([[0.3, 0.7]]).double().expand(3, -1)
    target = JointTarget(positives, smoothing, True, 0.7, weights, [None, None])
    inputs = [*contexts, tables[0]]
    expected, found = one_pass(contexts, tables, target)[0], one_pass(contexts, [tables[0], tables[1].detach()], target)[0]
    assert made == [[True, True], [True, False]] and found.item() == expected.item()
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("weighting", ["triple", "query"])
def test_distances_in_blocks_are_the_distances_at_once(toy: LinkData, loss: str, weighting: str) -> None:
    """TransE: with a budget for three queries at a time the loss, its parts and all gradients stay."""
    config = Config().updated({
        **FREE_OF_CHANCE, "model.dim": 8, "model.scoring": "transe", "model.decision": "relation", "train.loss": loss,
        "train.weighting": weighting, "train.label_smoothing": 0.1,
    })
    model = build_model(config, toy).double()
    batch = next(iter(TrainingQueries(toy.graph).epoch(24, 0, 1)))
    batch.positives.counts.data = batch.positives.counts.double()
    found = []
    for budget in (2**30, 3 * autograd.bytes_per_query(toy.graph.num_entities, len(model.branches), 8)):
        tables = model.tables()
        contexts = model.contexts(tables, batch.heads, batch.relations)
        towards = JointTarget(
            batch.positives, 0.1, weighting == "triple", 0.7, model.decision_weights(batch.heads, batch.relations),
            [model.mask(branch) for branch in model.branches], budget=budget,
        )
        calls = []
        real = model.branch_scores
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "branch_scores", lambda *given, real=real, calls=calls: calls.append(1) or real(*given))
            total, parts = model.autograd_loss(tables, contexts, towards)
            grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        found.append((len(calls), total, parts, [grad for grad in grads if grad is not None]))
    (once, total, parts, grads), (often, *others) = found
    assert (once, often) == (1, 16)  # eight blocks, each scored again in the backward pass
    torch.testing.assert_close(others[0], total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(others[1], parts, rtol=1e-12, atol=1e-12)
    assert len(grads) > 5
    torch.testing.assert_close(others[2], grads, rtol=1e-10, atol=1e-12)


def test_scores_of_a_certain_model_keep_their_loss() -> None:
    """Where sigmoids round to 1 the sum of logarithms is taken from the scores themselves."""
    context, table = torch.full((2, 1), 30.0), torch.linspace(-1.0, 1.0, 9)[:, None]
    positives = Positives(torch.tensor([0, 1]), torch.tensor([8, 0]), torch.ones(2))
    weights = torch.ones(2, 1)
    _, parts = joint_binary.joint_binary_loss([context], [table], JointTarget(positives, 0.1, False, 0.0, weights, [None]))
    torch.testing.assert_close(parts[0], binary_loss(context @ table.T, positives, 0.1))
    assert parts[0] > 5


def test_a_block_has_its_own_answers_only() -> None:
    positives = Positives(torch.tensor([0, 1, 1, 2]), torch.tensor([3, 1, 2, 0]), torch.tensor([1.0, 2.0, 1.0]))
    whole = JointTarget(positives, 0.0, True, 1.0, torch.eye(3), [None, None, None])
    part = whole.block(1, 3)
    assert part.positives.rows.tolist() == [0, 0, 1]
    assert part.positives.tails.tolist() == [1, 2, 0]
    assert part.positives.counts.tolist() == [2.0, 1.0]
    assert part.weights.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert whole.block(0, 3) is whole
