"""What the contracts of all kinds share: the part, its settings, a graph to train on, and a training with its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.config import Config
from imf_core.config_base import Tunable
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.model.imf import Imf
from imf_core.parts.registry import KINDS, Part, named
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData
from imf_core.train.estimate import estimate_of
from imf_core.train.fit import build_model, fit

SMALL = {"model.dim": 8, "model.relation_dim": 6, "train.batch_size": 32, "train.max_epochs": 2}


def toy() -> LinkData:
    """A graph of 30 entities with a pattern to learn, an image for two thirds of them, and a text for all."""
    count = 30
    triples = [(i, 0, (i + 1) % count) for i in range(count)] + [(i, 1, (i * 7 + 3) % count) for i in range(count)]
    triples += [(i, 2, i % 5) for i in range(count)] + [(i, 3, (i // 2) % 10) for i in range(count)]
    rows = np.random.default_rng(0).permutation(np.array(triples, dtype=np.int64))
    entities = Vocabulary(tuple(f"entity {i}" for i in range(count)))
    relations = Vocabulary(("next", "jump", "rest", "half"), "relation")
    graph = KnowledgeGraph(entities, relations, rows[:100], rows[100:], source="toy")
    draw = np.random.default_rng(1).normal
    mask = np.arange(count) % 3 != 0
    image = Modality("image", np.where(mask[:, None], draw(size=(count, 6)), 0.0).astype(np.float32), mask)
    text = Modality("text", draw(size=(count, 5)).astype(np.float32), np.ones(count, dtype=bool))
    return LinkData(graph, (image, text))


class PartContract:
    """A part has a description, and settings whose ranges hold values that they accept.

    Attributes:
        kind: of the part; each contract sets it.
        name: of the part; the author sets it. The part must be registered: import its module, or install its package.
        settings: other settings of the tests by dotted name, such as `{"model.rotate.margin": 4.0}`.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    @property
    def part(self) -> Part:
        """The part.

        Raises:
            ConfigError: it is not registered.
        """
        return named(self.kind, self.name)

    def test_it_has_a_description(self) -> None:
        assert self.part.description, f"the {KINDS[self.kind].title} {self.name} has no docstring and no description="
        assert "\n" not in self.part.description

    def test_its_settings_are_described_and_their_ranges_accepted(self) -> None:
        """Each setting has a description, a default, and a search range within its bounds."""
        kind = self.part.settings
        if kind is None:
            return
        for name, field in kind.model_fields.items():
            assert field.description, f"the setting {name} has no description: Field(..., description=...)"
            assert not field.is_required(), f"the setting {name} has no default"
            for mark in field.metadata:
                if isinstance(mark, Tunable):
                    for value in mark.choices if mark.choices is not None else (mark.low, mark.high):
                        kind.model_validate({name: int(value) if field.annotation is int else value})


class ModelPartContract(PartContract):
    """A part of a model is trained, kept and asked as the product's own are."""

    chosen_by: ClassVar[str]

    def config(self, **changes: Any) -> Config:
        """Settings of a small model with the part; `changes` have `__` for the dot: `train__max_epochs=3`."""
        flat = {name.replace("__", "."): value for name, value in changes.items()}
        return Config().updated({**SMALL, self.chosen_by: self.name, **self.settings, **flat})

    def test_a_configuration_holds_its_settings(self) -> None:
        config = self.config()
        flat, section = config.flat(), self.chosen_by.partition(".")[0]
        assert flat[self.chosen_by] == self.name
        kind = self.part.settings
        for name in kind.model_fields if kind is not None else ():
            assert f"{section}.{self.name}.{name}" in flat
        assert Config.build(config.model_dump()) == config

    def test_a_training_lowers_the_loss_and_repeats_itself(self) -> None:
        config = self.config(train__max_epochs=4, train__lr=0.02)
        first, second = self.trained(config), self.trained(config)
        for name, tensor in first.state_dict().items():
            assert torch.isfinite(tensor.float()).all(), f"{name} is not finite after the training"
            assert torch.equal(tensor, second.state_dict()[name]), f"{name} differs from one training to the next"
        losses = self.losses
        assert losses[-1] < losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"

    def trained(self, config: Config) -> Imf:
        """A model after its training; `self.losses` are its mean losses, epoch by epoch."""
        self.losses: list[float] = []
        data = toy()
        model = build_model(config, data)
        fit(model, data, config, lambda report: self.losses.append(report.train_loss))
        return model.eval()

    def test_a_checkpoint_answers_as_the_model_did(self, tmp_path: Path) -> None:
        config = self.config()
        data, model = toy(), self.trained(config)
        save_checkpoint(tmp_path / "best", model, config, data.graph, {})
        loaded = load_checkpoint(tmp_path / "best")
        assert loaded.config == config
        assert torch.equal(self.scores(loaded.model), self.scores(model))
        answers = Predictor(loaded).tails("entity 4", "next", k=3, known="mark")
        assert len(answers) == 3 and answers[0].score >= answers[-1].score

    @torch.no_grad()
    def scores(self, model: Imf) -> Tensor:
        """(M, 2, N) raw scores of two questions in each branch."""
        tables = model.tables()
        contexts = model.contexts(tables, torch.tensor([4, 7]), torch.tensor([0, 5]))
        return torch.stack(model.branch_scores(tables, contexts))

    def test_its_memory_is_estimated(self) -> None:
        data, config = toy(), self.config()
        assert estimate_of(config, data).total > build_model(config, data).num_parameters * 4
