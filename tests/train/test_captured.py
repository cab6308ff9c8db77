"""Captured steps: warmed up, copied into and replayed as the plain ones; without a graph they go on, and say so once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.model.static.step import StaticStep
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import WHOLE, MemoryBudget
from imf_core.train.batches import TrainingQueries
from imf_core.train.epoch import train_epoch
from imf_core.train.fit import build_model, build_optimizers, fit, precision_on
from imf_core.train.step.captured import Recorder
from imf_core.train.step.planning import Planning
from imf_core.train.step.steps import Steps

CPU = torch.device("cpu")


class Repeating:
    """Stands for a GPU: what it captured is done again at each replay, on the memory of the first batch."""

    def __init__(self) -> None:
        self.aside_calls, self.captures, self.replays = 0, 0, 0

    def aside(self, work: Callable[[], Tensor]) -> Tensor:
        self.aside_calls += 1
        return work()

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1

        def replay() -> Tensor:
            self.replays += 1
            return work()

        return replay


class Failing(Repeating):
    """Captures nothing."""

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong advice")


def trained(toy: LinkData, config: Config, recorder: Recorder | None) -> tuple[Steps, list[dict[str, float]], Tensor]:
    """Two epochs: their losses, and all weights."""
    model = build_model(config, toy)
    step = StaticStep(model, config.train)
    optimizers = build_optimizers(model, config, early=False)
    optimizers.capturable = True  # as on a GPU
    steps = Steps(step, config.train, optimizers, CPU, MemoryBudget(2**26), planning=Planning(step), recorder=recorder)
    queries = TrainingQueries(toy.graph)
    losses = [train_epoch(steps, queries, config, epoch, WHOLE) for epoch in (1, 2)]
    return steps, losses, torch.cat([part.detach().double().flatten() for part in model.state_dict().values()])


def assert_equal_losses(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    """But for the last digit of a displayed sum, which depends on where in the memory a batch lies."""
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


@pytest.fixture
def toy_config() -> Config:
    return Config().updated({"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 64, "train.max_epochs": 2})


@pytest.fixture
def config(toy_config: Config) -> Config:
    return toy_config.updated({"train.batch_size": 7, "train.average": 0.9, "train.lr_decay": 0.5, "model.dropout_input": 0.3})


def test_replayed_steps_are_the_plain_ones(toy: LinkData, config: Config) -> None:
    """Weights to the bit, with dropout, two sizes of batch and a learning rate that decays."""
    recorder = Repeating()
    _, plain_losses, plain = trained(toy, config, None)
    steps, losses, weights = trained(toy, config, recorder)
    assert torch.equal(weights, plain)
    assert_equal_losses(losses, plain_losses)
    assert recorder.captures >= 1
    assert recorder.aside_calls >= 3 * recorder.captures  # each size is warmed up
    assert recorder.replays > recorder.captures  # later batches were copied into the memory of the first
    assert recorder.aside_calls + recorder.replays == 2 * TrainingQueries(toy.graph).num_steps(7)
    assert steps.captured is not None and steps.captured.failure is None and not steps.notes


def test_a_capture_that_fails_is_said_once_and_training_goes_on(
    toy: LinkData, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Failing()
    _, plain_losses, plain = trained(toy, config, None)
    with caplog.at_level(logging.WARNING):
        steps, losses, weights = trained(toy, config, recorder)
    assert torch.equal(weights, plain)
    assert_equal_losses(losses, plain_losses)
    assert recorder.captures == 1 and recorder.replays == 0
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing" in record.message and "advice" not in record.message
    assert steps.captured is not None and steps.captured.failure is not None
    (note,) = steps.notes
    assert "not captured" in note and "capturing" in note


def test_memory_that_runs_out_in_the_warm_up_takes_the_step_apart(
    toy: LinkData, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget falls before anything is captured; where the scores no longer fit it, the step works branch by branch."""
    real, calls = StaticStep.losses, [0]

    def failing(self: StaticStep, *arguments: object) -> dict[str, Tensor]:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("CUDA out of memory")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(StaticStep, "losses", failing)
    recorder = Repeating()
    steps, losses, _ = trained(toy, config, recorder)
    assert steps.memory.size == 2**25
    assert len(steps.memory.notes) == 1
    monkeypatch.setattr(StaticStep, "losses", real)
    _, expected, _ = trained(toy, config, None)
    assert_equal_losses(losses, expected)  # what the failed attempt drew and counted is undone


def test_optimizers_that_cannot_be_captured_are_not(toy: LinkData, config: Config) -> None:
    model = build_model(config, toy)
    optimizers = build_optimizers(model, config.updated({"train.optimizer": "adagrad"}), early=False)
    assert not optimizers.capturable
    step = StaticStep(model, config.train)
    steps = Steps(step, config.train, optimizers, CPU, MemoryBudget(2**26), planning=Planning(step), recorder=Repeating())
    assert steps.captured is None


@pytest.mark.parametrize("more", [{}, {"model.heads": [{"view": "structure", "scoring": "complex"}]}, {"train.loss": "bce"}])
def test_a_static_training_learns_as_the_plain_one(toy: LinkData, toy_config: Config, more: dict[str, object]) -> None:
    no_chance = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}
    config = toy_config.updated({**more, **no_chance})
    curves = [fit(build_model(config, toy), toy, config, static=static, device=CPU).curve for static in (False, True)]
    assert len(curves[0]) == len(curves[1]) >= 2
    for (_, plain), (_, static) in zip(*curves, strict=True):
        assert static == pytest.approx(plain, abs=0.02)


def test_what_is_not_static_is_trained_branch_by_branch_and_said(
    toy: LinkData, toy_config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config.updated({"train.num_negatives": 5, "train.max_epochs": 1})
    with caplog.at_level(logging.INFO):
        result = fit(build_model(config, toy), toy, config, static=True, device=CPU)
    assert result.epochs == 1
    assert any("branch by branch" in record.message and "num_negatives" in record.message for record in caplog.records)


def test_a_precision_means_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert [precision_on(gpu, asked) for asked in ("fp32", "tf32", "bf16", "auto")] == ["fp32", "tf32", "bf16", "tf32"]
    for features, auto in (({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda features=features: features)
        assert [precision_on(CPU, asked) for asked in ("fp32", "tf32", "bf16", "auto")] == ["fp32", "fp32", "bf16", auto]


def test_tf32_is_on_in_training_steps_alone(toy: LinkData, toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = Steps.run

    def run(self: Steps, batch: object) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return real(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Steps, "run", run)
    monkeypatch.setattr("imf_core.train.fit.precision_on", lambda device, asked: asked)  # as on a GPU
    before = torch.backends.cuda.matmul.allow_tf32
    for precision in ("tf32", "fp32"):
        seen.clear()
        config = toy_config.updated({"train.precision": precision, "train.max_epochs": 1})
        fit(build_model(config, toy), toy, config, device=CPU)
        assert set(seen) == {precision == "tf32"}
        assert torch.backends.cuda.matmul.allow_tf32 == before
