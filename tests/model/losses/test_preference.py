"""Preferences among hard negatives: the loss by hand, whose they are, and a student that follows them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import app
from imf_core.config import Config
from imf_core.data.audit.baseline import OneStepRules
from imf_core.data.graph.graph import KnownAnswers
from imf_core.ensemble.teacher import HARD, preferences_of, rule_preferences
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.imf import Imf
from imf_core.model.losses.preference import Preferences, preference_loss
from imf_core.prepare.link_data import LinkData
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model, fit
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph


def test_the_loss_by_hand() -> None:
    logs, levels = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.5, 0.2, 0.2]])

    def pair(margin: float) -> float:
        return math.log(1 + math.exp(-margin))

    assert float(preference_loss(logs, levels)) == pytest.approx((pair(1.0) + pair(-2.0)) / 2, abs=1e-6)
    assert float(preference_loss(logs, torch.tensor([[0.5, math.nan, 0.2]]))) == pytest.approx(pair(-2.0), abs=1e-6)
    assert float(preference_loss(logs, torch.full((1, 3), 0.3))) == 0.0
    assert float(preference_loss(logs + 7, levels)) == pytest.approx(float(preference_loss(logs, levels)), abs=1e-6)
    leaf = logs.clone().requires_grad_()
    preference_loss(leaf, levels).backward()
    assert leaf.grad is not None and leaf.grad[0, 0] < 0 < leaf.grad[0, 1]


def test_the_strongest_candidates_of_the_rules() -> None:
    """Relation 0 and 1 share two of three pairs; (5, 1) also reaches through relation 0 what 1 does not know."""
    train = np.array([[0, 0, 1], [0, 1, 1], [2, 0, 3], [2, 1, 3], [4, 0, 5], [4, 0, 6]])
    rules = OneStepRules(train, 7, 2)
    known = KnownAnswers.build([train], 2)
    entities, levels = rules.best(np.array([4, 0, 4]), np.array([1, 1, 0]), known, 2)
    assert sorted(entities[0]) == [5, 6] and np.isfinite(levels[0]).all()
    assert np.isnan(levels[1]).all()  # 1 is known
    assert np.isnan(levels[2]).all()


EAGER = {"train__max_epochs": 14, "train__eval_every": 14, "model__dropout_context": 0.0, "model__dropout_relation": 0.0,
         "model__dropout_input": 0.0}


def settings(**more: object) -> Config:
    return Config().updated({
        "model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.02, "train.max_epochs": 8,
        "train.eval_every": 8, **{name.replace("__", "."): value for name, value in more.items()},
    })


@pytest.fixture(scope="module")
def teacher(toy: LinkData) -> Imf:
    config = settings(train__seed=3)
    model = build_model(config, toy)
    fit(model, toy, config)
    return model


def test_a_teacher_prefers_among_what_no_training_triple_knows(toy: LinkData, teacher: Imf) -> None:
    preferred = preferences_of([teacher], [1.0], toy.graph)
    queries = TrainingQueries(toy.graph)
    heads, relations = torch.from_numpy(queries.heads), torch.from_numpy(queries.relations)
    entities, levels = preferred.of(heads, relations)
    assert entities.shape == (len(queries), HARD) and (levels[:, :-1] >= levels[:, 1:]).all()
    facts = {(int(head), int(relation), int(tail)) for head, relation, tail in toy.graph.train}
    for head, relation, answers in zip(heads.tolist(), relations.tolist(), entities.tolist(), strict=True):
        if relation < 4:
            assert not facts & {(head, relation, answer) for answer in answers}
    with torch.no_grad():
        pooled = next(PooledScores([teacher], [1.0], 2**24).blocks(heads[:1], relations[:1], 1))[0][0]
    first = int(heads[0]), int(relations[0])
    assert first == (0, 0)
    unknown = [entity for entity in pooled.argsort(descending=True).tolist() if (*first, entity) not in facts]
    assert entities[0].tolist() == unknown[:HARD]
    assert preferred.pairs > 20 * len(queries)


def agreement(model: Imf, preferred: Preferences, toy: LinkData) -> float:
    """Share of the preferences that a model's decision agrees with."""
    queries = TrainingQueries(toy.graph)
    pair = torch.from_numpy(queries.heads), torch.from_numpy(queries.relations)
    entities, levels = preferred.of(*pair)
    with torch.no_grad():
        own = next(PooledScores([model], [1.0], 2**24).blocks(*pair, len(queries)))[0].gather(1, entities)
    wins = levels[:, :, None] > levels[:, None, :]
    return float((own[:, :, None] > own[:, None, :])[wins].float().mean())


@pytest.mark.parametrize("more", [
    {},
    *(pytest.param(other, marks=pytest.mark.slow) for other in (
        {"train__num_negatives": 12}, {"train__loss": "bce"}, {"model__modalities": []}, {"model__missing": "neutral"},
    )),
])
def test_a_student_comes_to_prefer_what_its_teacher_does(toy: LinkData, teacher: Imf, more: dict[str, object]) -> None:
    preferred = preferences_of([teacher], [1.0], toy.graph)
    found = {}
    for weight in (0.0, 3.0):
        config = settings(train__preference_weight=weight, train__seed=5, **EAGER, **more)
        student = build_model(config, toy)
        fit(student, toy, config, preferences=preferred)
        found[weight] = agreement(student, preferred, toy)
    assert found[3.0] > found[0.0] + 0.05


def test_preferences_of_the_rules_are_of_training_queries(toy: LinkData) -> None:
    preferred = rule_preferences(toy.graph)
    assert len(preferred.keys) == len(TrainingQueries(toy.graph)) and preferred.pairs > 0
    there = ~preferred.levels.isnan()
    assert there.any() and (preferred.entities[~there] == 0).all()


def test_the_command(tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph")
    made = str(tiny_checkpoint(graph, tmp_path / "m0", seed=0))
    for teacher in (made, "rules"):
        command = ["train", str(tmp_path / "out"), "--data", str(graph), "--preferences", teacher]
        done = CliRunner().invoke(app, [*command, "--set", "train.max_epochs=1"], catch_exceptions=False)
        assert done.exit_code == 0 and "pairs of hard negatives" in done.stdout
        told = load_checkpoint(tmp_path / "out").metrics["preferences"]
        assert told == ("rules" if teacher == "rules" else str(Path(made).resolve()))
