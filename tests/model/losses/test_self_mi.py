"""The mutual-information terms by hand, and in a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.model.auxiliary import Auxiliary
from imf_core.model.losses.self_mi import SelfMi, Views, class_logits, predictive_loss, unimodal_loss
from imf_core.prepare.link_data import LinkData
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving


def test_information_by_hand() -> None:
    """Orthogonal views: the own one has cosine 1, the others 0."""
    eye = torch.eye(3)
    wanted = math.log(math.exp(1 / 0.5) + 2) - 1 / 0.5
    assert float(predictive_loss(2 * eye, 5 * eye, 0.5)) == pytest.approx(wanted, abs=1e-6)
    assert float(predictive_loss(eye[[1, 2, 0]], eye, 0.5)) == pytest.approx(math.log(math.exp(2) + 2), abs=1e-6)
    assert float(predictive_loss(torch.ones(3, 2), torch.ones(3, 2), 0.5)) == pytest.approx(math.log(3), abs=1e-6)


def test_distances_to_class_centres_by_hand() -> None:
    rows, place = torch.tensor([[0.0], [2.0], [6.0]]), torch.tensor([0, 0, 1])
    everyone = torch.ones(3, dtype=torch.bool)
    logits, there = class_logits(rows, everyone, place, 3, 1.0)  # centres 1, 6 and none
    squares = torch.tensor([[1.0, 36.0, 0.0], [1.0, 16.0, 4.0], [25.0, 0.0, 36.0]])
    torch.testing.assert_close(logits, -squares / squares[:, :2].mean())
    assert there.tolist() == [True, True, False]
    logits, _ = class_logits(rows, torch.tensor([True, False, True]), place, 2, 1.0)  # centres 0 and 6
    torch.testing.assert_close(logits.argmax(dim=1), torch.tensor([0, 0, 1]))


def test_a_class_without_centre_is_no_target() -> None:
    rows, place = torch.tensor([[0.0], [4.0], [9.0]]), torch.tensor([0, 1, 2])
    has, target = torch.tensor([True, True, False]), torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    loss = unimodal_loss(rows, has, place, target, 1.0)
    logits, _ = class_logits(rows, has, place, 3, 1.0)
    logs = torch.log_softmax(logits[:2, :2], dim=1)
    torch.testing.assert_close(loss, -(logs[0, 0] + logs[1, 1]) / 2)


def test_views_that_entities_lack_do_not_count() -> None:
    torch.manual_seed(0)
    loss = SelfMi(4, ("structure", "image"), 0.3).double()
    fused, structure, image = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    has = {"structure": torch.ones(6, dtype=torch.bool), "image": torch.arange(6) % 2 == 0}
    classes, other = torch.tensor([0, 0, 1, 1, 2, 2]), torch.where(has["image"][:, None], image, 100.0)

    def of(views: torch.Tensor) -> torch.Tensor:
        part = Views({"structure": structure, "image": views}, fused, has)
        return loss(part, part, classes)

    torch.testing.assert_close(of(image), of(other))
    nobody = Views({"structure": structure, "image": image}, fused, dict.fromkeys(has, torch.zeros(6, dtype=torch.bool)))
    assert loss(nobody, nobody, classes).item() == 0.0


def settings(**more: object) -> Config:
    return Config().updated({
        "model.dim": 8, "model.relation_dim": 6, "train.batch_size": 32, "train.max_epochs": 4, "train.lr": 0.02,
        "train.self_mi_weight": 0.5, **{name.replace("__", "."): value for name, value in more.items()},
    })


@pytest.mark.parametrize("more", [{}, {"train__num_negatives": 8}, {"train__precision": "bf16"}, {"model__missing": "neutral"}])
def test_a_training_tells_views_better_and_leaves_nothing_behind(toy: LinkData, more: dict[str, object]) -> None:
    config = settings(**more)
    model, losses = build_model(config, toy), list[dict[str, float]]()
    before = set(model.state_dict())
    fit(model, toy, config, lambda report: losses.append(report.losses))
    assert losses[-1]["self_mi"] < losses[0]["self_mi"]
    assert set(model.state_dict()) == before and not model._forward_hooks and not model.fuse_entities._forward_hooks


def test_the_loss_is_added_with_its_weight(toy: LinkData) -> None:
    config = settings()
    model = build_model(config, toy)
    batch = next(iter(TrainingQueries(toy.graph).epoch(32, 0, 1)))
    given = batch.heads, batch.relations, batch.positives, config.train
    auxiliary = Auxiliary(model, config.train)
    torch.manual_seed(0)
    parts = model(*given)
    assert next(name for name, _ in model.auxiliary.named_parameters()).startswith("predictors.")
    auxiliary.close()
    torch.manual_seed(0)
    plain = model(*given)
    assert "self_mi" not in plain
    torch.testing.assert_close(parts["total"], plain["total"] + 0.5 * parts["self_mi"])


def test_rows_of_a_sampled_step_are_those_of_the_entities(toy: LinkData) -> None:
    """Nothing is dropped: the terms of the queries' heads and answers are those of a step over all entities."""
    off = {f"model__dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}
    found = []
    for negatives in (None, 5):
        config = settings(train__num_negatives=negatives, **off)
        model = build_model(config, toy)
        batch = next(iter(TrainingQueries(toy.graph).epoch(12, 0, 1)))
        Auxiliary(model, config.train)
        found.append(model(batch.heads, batch.relations, batch.positives, config.train)["self_mi"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_an_interrupted_training_goes_on_to_the_bit_and_its_checkpoint_has_the_model_alone(
    toy: LinkData, tmp_path: Path
) -> None:
    config = settings()
    whole = build_model(config, toy)
    fit(whole, toy, config)

    class StopError(Exception):
        pass

    def stop(report: object) -> None:
        if getattr(report, "epoch", 0) == 2:
            save_checkpoint(tmp_path / "running", broken, config, toy.graph, {})
            raise StopError

    broken, again = build_model(config, toy), build_model(config, toy)
    with pytest.raises(StopError):
        fit(broken, toy, config, stop, saving=Saving(tmp_path / "state", 0.0))
    fit(again, toy, config, saving=Saving(tmp_path / "state", 0.0))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert load_checkpoint(tmp_path / "running").config == config


def test_without_a_fusion_there_is_nothing_to_inform(toy: LinkData) -> None:
    config = settings(model__modalities=[], train__max_epochs=1)
    model, losses = build_model(config, toy), list[dict[str, float]]()
    fit(model, toy, config, lambda report: losses.append(report.losses))
    assert "self_mi" not in losses[0]
