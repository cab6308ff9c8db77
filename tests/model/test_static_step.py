"""The static step: the numbers of the branches, no shape that depends on the data, and padding that counts for nothing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.launches import Launches
from benchmarks.speed import generated
from imf_core.config import Config, published
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets
from imf_core.model.static.contexts import into_blocks, out_of_blocks
from imf_core.model.static.plan import BLOCK, Planner, room
from imf_core.model.static.step import StaticStep, why_not_static
from imf_core.train.batches import QueryBatch, TrainingQueries
from imf_core.train.step.packing import packed, unpacked
from imf_core.train.step.planning import Planning

ENTITIES, RELATIONS, QUERIES = 150, 6, 48
SMALL = {"model.dim": 12, "model.relation_dim": 8, "train.batch_size": QUERIES}
NO_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}
EXACT = 1e-6  # of numbers in double precision: the weights of a plan have single precision
BASES = {"published": published, "default": Config}
_HEADS = [{"view": "structure", "scoring": "complex"}, {"view": "text", "scoring": "distmult", "dim": 10},
          {"view": "image", "scoring": "complex"}]
VARIANTS: dict[str, dict[str, object]] = {
    "published, joint": {"train.loss": "bce", "model.joint_weight": 0.7, "model.decision": "relation"},
    "neutral": {"model.missing": "neutral", "train.weighting": "query"},
    "mean, frozen": {"model.missing": "mean", "model.finetune_features": False, "model.norm": "none"},
    "no smoothing": {"train.label_smoothing": 0.0, "model.decision": "relation"},
    "no smoothing, bce": {"train.label_smoothing": 0.0, "train.loss": "bce"},
    "no joint": {"model.joint_weight": 0.0},
    "structure": {"model.modalities": []},
    "complex": {"model.scoring": "complex"},
    "distmult": {"model.scoring": "distmult", "model.fusion": "none"},
    "block": {"model.scoring": "block", "model.block_size": 4},
    "concat": {"model.fusion": "concat", "model.missing": "neutral"},
    "gated": {"model.fusion": "gated"},
    "meta": {"model.fusion": "meta", "model.fusion_widths": [6]},
    "compared": {"model.heads": [*_HEADS, {"view": "text", "scoring": "similarity"}], "model.finetune_features": True},
    "only compared": {"model.heads": [{"view": "text", "scoring": "similarity", "only": True}]},
    "heads": {"model.heads": _HEADS, "train.regularizer": "n3", "train.regularizer_weight": 0.1},
}


def data(gaps: bool) -> tuple[KnowledgeGraph, list[Modality]]:
    rng, ids = np.random.default_rng(0), np.arange(ENTITIES)
    views = []
    for number, name in enumerate(("image", "text")):
        mask = ids % 5 != number if gaps else ids >= 0
        views.append(Modality(name, rng.standard_normal((ENTITIES, 7), dtype=np.float32) * mask[:, None], mask))
    return generated(ENTITIES, RELATIONS, 700, 20), views


def made(base: str, gaps: bool, kind: torch.dtype = torch.float64, **more: object) -> tuple[Imf, Config, list[QueryBatch]]:
    """A model without chance, and its first batches: those of one size."""
    config = BASES[base]().updated({**SMALL, **NO_CHANCE, **more})
    graph, views = data(gaps)
    views = views if config.model.modalities is None else []
    torch.manual_seed(0)
    model = Imf(config.model, ENTITIES, RELATIONS, views, config.train.loss).train()
    batches = list(TrainingQueries(graph).epoch(QUERIES, 0, 1, together=3))
    size = len(batches[-1].heads)
    return model.to(kind), config, [batch for batch in batches if len(batch.heads) == size]


def losses(model: Imf, config: Config, batch: QueryBatch, static: bool, soft: SoftTargets | None = None) -> dict[str, Tensor]:
    if static:
        step = StaticStep(model, config.train)
        planned = Planning(step).planned(batch, 2**30)
        assert planned.plan is not None
        exact = replace(planned.positives, counts=planned.positives.counts.to(model.structure.dtype))
        parts = step(planned.heads, planned.relations, exact, config.train, soft, planned.plan)
    else:
        exact = replace(batch.positives, counts=batch.positives.counts.to(model.structure.dtype))
        parts = model(batch.heads, batch.relations, exact, config.train, soft)
    parts["total"].backward()
    return {name: value.detach() for name, value in parts.items()}


def named(name: str) -> Callable[[str], str]:
    return lambda text: f"{name}: {text}"


def assert_equal_steps(plain: Imf, config: Config, batch: QueryBatch, allowed: float, soft: SoftTargets | None = None) -> None:
    """Losses, all gradients and BatchNorm statistics of a static step are those of the plain one."""
    plain.zero_grad()
    stacked = copy.deepcopy(plain)
    expected, found = losses(plain, config, batch, False, soft), losses(stacked, config, batch, True, soft)
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=allowed, atol=allowed, msg=named(name))
    grads = {name: part.grad for name, part in plain.named_parameters() if part.grad is not None}
    assert len(grads) > 5
    whole = float(torch.stack([grad.norm() for grad in grads.values()]).norm())
    for name, part in stacked.named_parameters():
        if name not in grads:
            assert part.grad is None or not part.grad.any(), name
            continue
        assert part.grad is not None, name
        assert float((part.grad - grads[name]).norm()) <= allowed * whole, name
    buffers = dict(stacked.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=allowed, atol=allowed, msg=named(name))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_losses_gradients_and_statistics_are_those_of_the_branches(base: str, gaps: bool) -> None:
    model, config, batches = made(base, gaps)
    assert_equal_steps(model, config, batches[0], EXACT)
    assert_equal_steps(model.float(), config, batches[1], 1e-5)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_that_has_a_static_form_gives_the_same_numbers(variant: str, gaps: bool) -> None:
    model, config, batches = made("default", gaps, **VARIANTS[variant])
    assert why_not_static(model, config.train) is None
    assert_equal_steps(model, config, batches[0], EXACT)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_teacher_teaches_a_static_step_too(loss: str) -> None:
    model, config, batches = made("default", True, **{"train.loss": loss})
    generator = torch.Generator().manual_seed(0)
    count = len(batches[0].heads)
    answers = torch.stack([torch.randperm(ENTITIES, generator=generator)[:4] for _ in range(count)])
    soft = SoftTargets(answers, torch.rand(count, 4, generator=generator, dtype=torch.float64).softmax(dim=1))
    assert_equal_steps(model, config, batches[0], EXACT, soft)


def test_bf16_is_near() -> None:
    model, config, batches = made("default", True, torch.float32)
    expected = losses(model, config, batches[0], False)
    found = losses(copy.deepcopy(model), config.updated({"train.precision": "bf16"}), batches[0], True)
    assert found["total"].item() == pytest.approx(expected["total"].item(), rel=0.02)
    assert found["total"].dtype == torch.float32
    assert found["total"] != expected["total"]


def planner(model: Imf, config: Config) -> Planner:
    return Planner(ENTITIES, config.train.loss, config.train.weighting == "triple", [None])


def test_a_plan_puts_every_query_in_a_block_of_its_relation() -> None:
    model, config, (batch, *_) = made("default", False)
    relations, heads = batch.relations.numpy(), batch.heads.numpy()
    sizes = room(relations, len(batch.positives.rows))
    plan, positives = planner(model, config).plan(heads, relations, batch.positives, sizes)
    assert len(plan.distinct) == sizes.relations >= len(np.unique(relations))
    rows = plan.places
    assert torch.equal(plan.distinct[plan.owners[rows // BLOCK]], batch.relations)
    assert torch.equal(plan.slots[rows], torch.arange(len(relations)))
    assert plan.filled.sum() == len(relations) and bool((plan.filled[rows] == 1).all())
    assert positives.real is not None and positives.real.sum() == len(batch.positives.rows) < len(positives.rows)
    assert plan.answer_weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert not plan.answer_weights[len(batch.positives.rows) :].any()
    assert torch.equal(plan.nodes.unique(), batch.heads.unique())


@pytest.mark.parametrize("relations", [[0] * 70, list(range(40)), [5] * 33 + [2] * 31 + [9], [3]])
def test_any_mix_of_relations_fits_its_sizes(relations: list[int]) -> None:
    asked = np.random.default_rng(0).permutation(np.array(relations))
    model, config, (batch, *_) = made("default", False)
    count = len(asked)
    answers = replace(batch.positives, rows=torch.arange(count), tails=torch.arange(count), counts=torch.ones(count))
    plan, _ = planner(model, config).plan(np.arange(count), asked, answers, room(asked, count))
    rows = torch.randn(2, count, 3, dtype=torch.float64)
    blocks = into_blocks(rows, plan)
    assert torch.equal(out_of_blocks(blocks, plan), rows)
    for block, owner in enumerate(plan.owners.tolist()):
        inside = plan.filled[block * BLOCK : (block + 1) * BLOCK] > 0
        queries = plan.slots[block * BLOCK : (block + 1) * BLOCK][inside]
        assert {asked[query] for query in queries.tolist()} <= {plan.distinct[owner].item()}
    assert not blocks[:, plan.filled == 0].any()


def test_padding_poisoned_with_nan_does_not_leak() -> None:
    """Into the rows of the queries, their gradients and those of the matrices."""
    model, config, (batch, *_) = made("default", False)
    relations = batch.relations.numpy()
    plan, _ = planner(model, config).plan(
        batch.heads.numpy(), relations, batch.positives, room(relations, len(batch.positives.rows))
    )
    padding = plan.filled == 0
    assert padding.any()
    rows = torch.randn(2, len(relations), 3, requires_grad=True)
    blocks = into_blocks(rows, plan)
    blocks.register_hook(lambda grad: grad.index_fill(1, padding.nonzero()[:, 0], torch.nan))
    out = out_of_blocks(blocks.index_fill(1, padding.nonzero()[:, 0], torch.nan), plan)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, 2 * rows.detach())


def test_what_padding_points_at_does_not_matter() -> None:
    """Padded answers, blocks, relations and nodes of a plan, pointed at others: the same loss and gradients."""
    model, config, (batch, *_) = made("default", True)
    step = StaticStep(model, config.train)
    planned = Planning(step).planned(batch, 2**30)
    plan, real = planned.plan, planned.positives.real
    assert plan is not None and real is not None
    used, distinct, nodes = len(batch.positives.rows), len(batch.relations.unique()), len(batch.heads.unique())
    assert used < len(plan.answers) and distinct < len(plan.distinct) and nodes < len(plan.nodes)
    other = replace(
        plan,
        answers=torch.cat([plan.answers[:used], plan.answers.new_full((len(plan.answers) - used,), 77)]),
        distinct=torch.cat([plan.distinct[:distinct], (plan.distinct[distinct:] + 3) % (2 * RELATIONS)]),
        nodes=torch.cat([plan.nodes[:nodes], (plan.nodes[nodes:] + 11) % ENTITIES]),
        slots=torch.where(plan.filled > 0, plan.slots, 5),
    )
    found = []
    for part in (plan, other):
        model.zero_grad()
        total = step(batch.heads, batch.relations, planned.positives, config.train, None, part)["total"]
        total.backward()
        found.append((total.detach(), [None if item.grad is None else item.grad.clone() for item in model.parameters()]))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-12)
    for first, second in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_one_trace_serves_all_batches(base: str, gaps: bool) -> None:
    """`torch.compile` finds no break in the step, and three more batches need no second trace."""
    model, config, batches = made(base, gaps, torch.float32, **{"model.dropout_input": 0.2})
    step = StaticStep(model, config.train)
    planning = Planning(step)
    for batch in batches:  # the sizes that hold them all
        planning.planned(batch, 2**30)
    planned = [planning.planned(batch, 2**30) for batch in batches[:4]]
    torch.compiler.reset()
    traced = torch.compile(step.losses, backend="aot_eager", fullgraph=True, dynamic=False)

    def run(batch: QueryBatch) -> float:
        model.zero_grad()
        total = traced(batch.heads, batch.relations, batch.positives, None, batch.plan)["total"]
        total.backward()
        return float(total.detach())

    found = [run(planned[0])]
    with torch.compiler.set_stance("fail_on_recompile"):
        found += [run(batch) for batch in planned[1:]]
    assert len(found) == 4 and np.isfinite(found).all()
    assert model.structure.grad is not None and model.structure.grad.any()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_nothing_is_read_back(base: str, gaps: bool) -> None:
    """Fake tensors have no numbers: reading one, or a shape that depends on one, raises."""
    model, config, batches = made(base, gaps, torch.float32, **{"model.dropout_relation": 0.2})
    step = StaticStep(model, config.train)
    planned = Planning(step).planned(batches[0], 2**30)
    buffers = packed(planned)
    with FakeTensorMode() as mode:
        for module in step.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        store[name] = mode.from_tensor(tensor)  # type: ignore[assignment]
        fake = unpacked(planned, [mode.from_tensor(buffer) for buffer in buffers])
        total = step(fake.heads, fake.relations, fake.positives, config.train, None, fake.plan)["total"]
        total.backward()
    assert model.structure.grad is not None and model.structure.grad.shape == (ENTITIES, 12)
    with Launches() as counted:
        model, config, batches = made(base, gaps, torch.float32)
        losses(model, config, batches[0], False)
    assert counted.read  # branch by branch the same counter finds something


@pytest.mark.parametrize(("more", "reason"), [
    ({"train.num_negatives": 5}, "num_negatives"), ({"model.scoring": "transe"}, "relation model"),
    ({"train.relation_weight": 0.1}, "relation_weight"),
])
def test_what_has_no_static_form_says_why(more: dict[str, object], reason: str) -> None:
    model, config, _ = made("default", False, **more)
    assert reason in str(why_not_static(model, config.train))


def test_whatever_watches_the_models_own_pass_is_not_passed_by() -> None:
    model, config, _ = made("default", False)
    handle = model.fuse_entities.register_forward_hook(lambda module, arguments, fused: None)
    assert "watches" in str(why_not_static(model, config.train))
    handle.remove()
    assert why_not_static(model, config.train) is None


def test_a_step_that_is_larger_than_the_budget_has_no_plan() -> None:
    model, config, batches = made("default", False)
    planning = Planning(StaticStep(model, config.train))
    assert planning.planned(batches[0], 1000) is batches[0]
    assert planning.planned(batches[0], 2**30).plan is not None


def test_a_batch_and_its_copy_in_buffers_are_equal() -> None:
    model, config, batches = made("default", True)
    planned = Planning(StaticStep(model, config.train)).planned(batches[0], 2**30)
    buffers = packed(planned)
    assert sorted(str(buffer.dtype) for buffer in buffers) == ["torch.float32", "torch.int64"]
    again = unpacked(planned, buffers)
    assert again.plan is not None and planned.plan is not None
    assert torch.equal(again.heads, planned.heads) and again.weight == planned.weight
    for name, value in vars(planned.plan).items():
        assert torch.equal(getattr(again.plan, name), value), name
    buffers[0].zero_()
    assert not again.heads.any()  # a view


def test_a_step_that_cannot_be_compiled_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def compiled(*arguments: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nlong advice")

        return compiled

    model, config, batches = made("default", False)
    step = StaticStep(model, config.train)
    planned = Planning(step).planned(batches[0], 2**30)
    monkeypatch.setattr(torch, "compile", no_compiler)
    step.compile_losses()
    with caplog.at_level(logging.WARNING):
        found = [
            step(planned.heads, planned.relations, planned.positives, config.train, None, planned.plan)["total"].item()
            for _ in range(2)
        ]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    (record,) = caplog.records  # said once
    assert "train.compile" in record.message and "No working C++ compiler" in record.message and "advice" not in record.message


def test_batches_of_two_sizes_share_their_room() -> None:
    model, config, _ = made("default", False)
    graph, _ = data(False)
    planning = Planning(StaticStep(model, config.train))
    batches = list(islice(TrainingQueries(graph).epoch(QUERIES, 0, 1), 40))
    for batch in batches:
        planning.planned(batch, 2**30)
    again = {
        (len(plan.places), len(plan.distinct), len(plan.answers))
        for batch in batches if (plan := planning.planned(batch, 2**30).plan) is not None
    }
    assert len(again) == len({len(batch.heads) for batch in batches}) <= 2
