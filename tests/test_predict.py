"""Answers by name: sorted, explained, complete, and helpful where a name is unknown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config
from imf_core.errors import CheckpointError, ImfError, VocabularyError
from imf_core.evaluate.ranking import ModelScores
from imf_core.predict import Predictor, Question
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 8}


def trained(toy: LinkData, folder: Path, **more: object) -> Predictor:
    config = Config().updated({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})
    model = build_model(config, toy)
    fit(model, toy, config)
    save_checkpoint(folder, model, config, toy.graph.entities, toy.graph.relations)
    return Predictor.load(folder)


@pytest.fixture(scope="module", params=["ce", "bce"])
def predictor(request: pytest.FixtureRequest, toy: LinkData, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return trained(toy, tmp_path_factory.mktemp("checkpoint") / "best", train__loss=request.param, model__decision="relation")


def test_answers_are_names_sorted_by_score(predictor: Predictor, toy: LinkData) -> None:
    answers = predictor.tails("entity 4", "next", k=7)
    assert len(answers) == len({answer.entity for answer in answers}) == 7
    assert {answer.entity for answer in answers} <= set(toy.graph.entities.names)
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


def test_weights_and_probabilities_add_up(predictor: Predictor) -> None:
    branches = ("structure", "image", "text", "fused")
    answers = predictor.heads("entity 4", "rest", k=30)
    for answer in answers:
        assert tuple(answer.weights) == tuple(answer.branch_scores) == branches
        assert sum(answer.weights.values()) == pytest.approx(1.0, abs=1e-5)
        assert all(0 <= value <= 1 for value in (answer.score, *answer.branch_scores.values()))
    if predictor.checkpoint.config.train.loss == "ce":
        assert sum(answer.score for answer in answers) == pytest.approx(1.0, abs=1e-4)
        assert sum(answer.score for answer in answers[:5]) <= 1.0
        for branch in branches:
            assert sum(answer.branch_scores[branch] for answer in answers) == pytest.approx(1.0, abs=1e-4)


def test_a_head_without_image_gives_it_no_weight(predictor: Predictor, toy: LinkData) -> None:
    assert not toy.modalities[0].mask[3] and toy.modalities[0].mask[4]
    assert predictor.tails("entity 3", "next", k=1)[0].weights["image"] == 0.0
    assert predictor.tails("entity 4", "next", k=1)[0].weights["image"] > 0.0


def test_more_than_all_are_all(predictor: Predictor, toy: LinkData) -> None:
    answers = predictor.tails("entity 0", "half", k=1000)
    assert sorted(answer.entity for answer in answers) == sorted(toy.graph.entities.names)
    assert [answer.entity for answer in predictor.tails("entity 0", "half", k=4)] == [answer.entity for answer in answers[:4]]


@pytest.mark.parametrize("inverse", [False, True])
def test_the_order_is_that_of_the_ranking(predictor: Predictor, toy: LinkData, inverse: bool) -> None:
    model = predictor.checkpoint.model
    asked = torch.tensor([1 + (toy.graph.num_relations if inverse else 0)])
    with torch.no_grad():
        (scores,) = ModelScores(model, 2**20).blocks(torch.tensor([6]), asked, 1)
        row = scores[0, 0]
    answers = (predictor.heads if inverse else predictor.tails)("entity 6", "jump", k=30)
    places = [toy.graph.entities.index[answer.entity] for answer in answers]
    assert torch.allclose(row[places], row.sort(descending=True).values, atol=1e-5)


def test_heads_and_tails_differ(predictor: Predictor) -> None:
    tails = [answer.score for answer in predictor.tails("entity 6", "next", k=30)]
    heads = [answer.score for answer in predictor.heads("entity 6", "next", k=30)]
    assert tails != heads


@pytest.mark.parametrize(
    ("head", "relation", "message"),
    [
        ("entty 4", "next", r"'entty 4' is no entity of this graph \(30 known\); did you mean 'entity \d+'\?"),
        ("entity 4", "nxt", r"'nxt' is no relation of this graph \(4 known\); did you mean 'next'\?"),
        ("entity 4", "~", r"'~' is no relation of this graph \(4 known\)$"),
    ],
)
def test_an_unknown_name_proposes_the_nearest(predictor: Predictor, head: str, relation: str, message: str) -> None:
    for ask in (predictor.tails, predictor.heads):
        with pytest.raises(VocabularyError) as caught:
            ask(head, relation)
        assert re.search(message, caught.value.problem)


@pytest.mark.parametrize("k", [0, -1])
def test_no_answers_asked(predictor: Predictor, k: int) -> None:
    with pytest.raises(ImfError, match="k must be at least 1"):
        predictor.tails("entity 4", "next", k=k)


def test_it_has_learned_something(toy: LinkData, tmp_path: Path) -> None:
    off = {f"model__dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}
    answers = trained(toy, tmp_path / "best", model__modalities=[], train__max_epochs=30, train__patience=30, **off)
    triples = toy.graph.train[:40].tolist()
    names, relations = toy.graph.entities.names, toy.graph.relations.names
    hits = [names[t] in [a.entity for a in answers.tails(names[h], relations[r], k=3)] for h, r, t in triples]
    assert sum(hits) > 30


def test_structure_alone_has_one_branch(toy: LinkData, tmp_path: Path) -> None:
    answer = trained(toy, tmp_path / "best", model__modalities=[], train__max_epochs=1).tails("entity 4", "next", k=1)[0]
    assert answer.weights == {"structure": 1.0}
    assert answer.branch_scores["structure"] == pytest.approx(answer.score, abs=1e-6)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        Predictor.load(tmp_path)


def test_many_questions_are_answered_as_one_by_one(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(f"entity {number}", relation, None) for number in (1, 8, 3) for relation in ("next", "half")]
    questions += [Question(None, "jump", f"entity {number}") for number in (5, 3)]
    single = [
        predictor.heads(asked.tail, asked.relation, 4) if asked.tail else predictor.tails(str(asked.head), asked.relation, 4)
        for asked in questions
    ]
    monkeypatch.setattr("imf_core.predict.MOST", 3)  # three blocks, both directions in one
    together = list(predictor.answers(questions, 4))
    assert [[a.entity for a in found] for found in together] == [[a.entity for a in found] for found in single]
    for many, one in zip(together, single, strict=True):
        for a, b in zip(many, one, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-6)
            assert a.weights == pytest.approx(b.weights, abs=1e-6)
            assert a.branch_scores == pytest.approx(b.branch_scores, abs=1e-6)
    assert list(predictor.answers([])) == []


@pytest.mark.parametrize("ends", [(None, None), ("entity 1", "entity 2")])
def test_a_question_leaves_one_end_open(predictor: Predictor, ends: tuple[str | None, str | None]) -> None:
    with pytest.raises(ImfError, match="not exactly one end open"):
        predictor.answers([Question(ends[0], "next", ends[1])])


def test_embeddings_are_the_vectors_that_are_scored(predictor: Predictor, toy: LinkData) -> None:
    model = predictor.checkpoint.model
    for branch in model.branches:
        found = predictor.embeddings(branch)
        assert found.shape == (toy.graph.num_entities, 16) and found.dtype == "float32"
        assert (found == model.tables().entities[branch].detach().numpy()).all()
    with pytest.raises(ImfError, match="no branch 'audio'"):
        predictor.embeddings("audio")
