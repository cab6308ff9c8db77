"""The moving average of the weights: its numbers, that it is what is evaluated and kept, and that a run resumes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imf_core.config import Config
from imf_core.errors import CheckpointError, ConfigError
from imf_core.evaluate.ranking import evaluate
from imf_core.prepare.link_data import LinkData
from imf_core.train.averaging import WeightAverage, averaged_tensors
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving
from tests.support.killed_run import Killed, stop_at

SMALL = {
    "model.dim": 16, "model.relation_dim": 8, "model.decision": "uniform", "train.batch_size": 16, "train.lr": 0.01,
    "train.max_epochs": 4, "train.patience": 4,
}


def test_the_average_of_numbers() -> None:
    value = torch.tensor([1.0, -1.0], dtype=torch.float64)
    average = WeightAverage({"w": value}, 0.5)
    expected = value.clone()
    for step, new in enumerate([3.0, 5.0, -2.0, 8.0, 0.5, 1.0, 4.0, 9.0, 2.0, 7.0], start=1):
        value.copy_(torch.tensor([new, 2 * new]))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.state()["w"], expected)
    assert int(average.state()["steps"]) == 10


def test_a_share_spans_the_last_steps() -> None:
    """The weight of step s falls as (s / t)^2: the average of a line lies a quarter of its length before the end."""
    value = torch.zeros(1, dtype=torch.float64)
    average = WeightAverage({"w": value}, 0.0, share=1 / 3)
    for step in range(1, 3001):
        value.fill_(step)
        average.update()
        if step == 1:
            assert average.state()["w"].item() == 1.0  # nothing is left of the initial values
    assert average.state()["w"].item() == pytest.approx(3000 * 3 / 4, rel=1e-3)
    constant = WeightAverage({"w": value}, 0.0, share=1.0)  # the plain mean
    for number in (3.0, 4.0, 8.0):
        value.fill_(number)
        constant.update()
    assert constant.state()["w"].item() == pytest.approx(5.0)


def test_within_the_block_the_model_is_the_average_and_afterwards_as_before() -> None:
    weight, statistic = torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    average = WeightAverage({"w": weight, "s": statistic}, 0.9)
    weight += 1.0
    before, mean = weight.clone(), average.state()["w"].clone()
    with average.applied():
        assert torch.equal(weight, mean)
        statistic += 3.0  # what an evaluation does to the averaged model stays in the average
    assert torch.equal(weight, before)
    assert torch.equal(average.state()["w"], mean)
    assert statistic.sum() == 0 and average.state()["s"].sum() == 6.0
    with pytest.raises(KeyError), average.applied():
        raise KeyError
    assert torch.equal(weight, before)


def test_counters_and_named_tensors_have_no_average() -> None:
    state = {"a": torch.zeros(1), "b": torch.zeros(1), "count": torch.zeros(1, dtype=torch.long)}
    assert list(averaged_tensors(state, ["b"])) == ["a"]


def _config(**more: Any) -> Config:
    return Config().updated({**SMALL, **{key.replace("__", "."): value for key, value in more.items()}})


@pytest.mark.parametrize("negatives", [None, 8])
def test_the_average_is_what_is_validated_and_kept(toy: LinkData, negatives: int | None) -> None:
    plain, averaged = _config(train__num_negatives=negatives), _config(train__num_negatives=negatives, train__average=0.9)
    runs = {}
    for config in (plain, averaged):
        model = build_model(config, toy)
        losses: list[float] = []
        result = fit(model, toy, config, lambda report: losses.append(report.train_loss))  # noqa: B023
        again = evaluate(model, toy.graph, toy.graph.valid, toy.graph.known()).metrics
        assert again.mrr == pytest.approx(result.best_mrr, abs=1e-9)
        runs[config.train.average] = result.curve, losses
    assert runs[0.0][1] == runs[0.9][1]  # training does not see it
    assert runs[0.0][0] != runs[0.9][0]


@pytest.mark.parametrize("average", [{"train__average": 0.99}, {"train__average_share": 0.5}], ids=["decay", "share"])
def test_an_interrupted_run_goes_on_to_the_bit(toy: LinkData, tmp_path: Path, average: dict[str, float]) -> None:
    config, saving = _config(**average, model__decision="learned"), Saving(tmp_path / "state", seconds=0)
    unbroken = build_model(config, toy)
    expected = fit(unbroken, toy, config)
    with pytest.raises(Killed):
        fit(build_model(config, toy), toy, config, stop_at(2), saving=saving)
    resumed = build_model(config, toy)
    assert fit(resumed, toy, config, saving=saving).curve == expected.curve
    own = resumed.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in unbroken.state_dict().items())


def test_a_state_without_an_average_is_refused(toy: LinkData, tmp_path: Path) -> None:
    saving = Saving(tmp_path / "state", seconds=0)
    with pytest.raises(Killed):
        fit(build_model(_config(), toy), toy, _config(), stop_at(1), saving=saving)
    config = _config(train__average=0.9)
    with pytest.raises(CheckpointError, match=r"without train\.average"):
        fit(build_model(config, toy), toy, config, saving=saving)


def test_its_bounds() -> None:
    for value in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"train\.average"):
            _config(train__average=value)
    with pytest.raises(ConfigError, match="exclude each other"):
        _config(train__average=0.9, train__average_share=0.3)
