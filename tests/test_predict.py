"""Answers by name: sorted, explained, complete, and helpful where a name is unknown."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails, run

from imf_core.answers import Question
from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config
from imf_core.data.graph.domains import Domains
from imf_core.ensemble.ensemble import open_model, open_predictor, rank_split, save_ensemble
from imf_core.errors import CheckpointError, ImfError, VocabularyError
from imf_core.evaluate.ranking import ModelScores
from imf_core.evaluate.test_once import OWN
from imf_core.predict import Predictor
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model, fit

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 8}


def trained(toy: LinkData, folder: Path, **more: object) -> Predictor:
    config = Config().updated({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})
    model = build_model(config, toy)
    fit(model, toy, config)
    save_checkpoint(folder, model, config, toy.graph)
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
    answers = predictor.heads("entity 4", "rest", k=30, known="mark")
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
    answers = predictor.tails("entity 0", "half", k=1000, known="mark")
    assert sorted(answer.entity for answer in answers) == sorted(toy.graph.entities.names)
    few = predictor.tails("entity 0", "half", k=4, known="mark")
    assert [answer.entity for answer in few] == [answer.entity for answer in answers[:4]]


@pytest.mark.parametrize("inverse", [False, True])
def test_the_order_is_that_of_the_ranking(predictor: Predictor, toy: LinkData, inverse: bool) -> None:
    model = predictor.checkpoint.model
    asked = torch.tensor([1 + (toy.graph.num_relations if inverse else 0)])
    with torch.no_grad():
        (scores,) = ModelScores(model, 2**20).blocks(torch.tensor([6]), asked, 1)
        row = scores[0, 0]
    answers = (predictor.heads if inverse else predictor.tails)("entity 6", "jump", k=30, known="mark")
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
    hits = [names[t] in [a.entity for a in answers.tails(names[h], relations[r], 3, "mark")] for h, r, t in triples]
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


# --- scores of triples --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["ce", "bce", "pool"])
def judge(request: pytest.FixtureRequest, toy: LinkData, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("judge")
    settings = {"train__loss": "ce" if request.param == "pool" else request.param, "train__max_epochs": 20}
    first = trained(toy, folder / "one", **settings)
    if request.param != "pool":
        return first
    trained(toy, folder / "two", **settings, train__seed=1)
    save_ensemble(folder / "pool", [folder / "one", folder / "two"], [1, 1], {})
    return open_predictor(folder / "pool")


def named(toy: LinkData, triples: np.ndarray) -> list[tuple[str, str, str]]:
    names, relations = toy.graph.entities.names, toy.graph.relations.names
    return [(names[h], relations[r], names[t]) for h, r, t in triples.tolist()]


def some_triples(toy: LinkData) -> np.ndarray:
    other = np.random.default_rng(0).integers(0, [30, 4, 30], (40, 3))
    return np.concatenate([toy.graph.valid, toy.graph.train[:30], other])


def test_ranks_are_those_of_an_evaluation(judge: Predictor, toy: LinkData) -> None:
    triples = some_triples(toy)
    scored = judge.score(named(toy, triples))
    ranked = rank_split(open_model(judge.checkpoint.path), toy.graph, "test", triples, toy.graph.known())[OWN]
    assert [one.tail_rank for one in scored] == ranked.tail_ranks.tolist()
    assert [one.head_rank for one in scored] == ranked.head_ranks.tolist()
    facts = {tuple(row) for row in np.concatenate([toy.graph.train, toy.graph.valid]).tolist()}
    assert [one.known for one in scored] == [tuple(row) in facts for row in triples.tolist()]
    assert [(one.head, one.relation, one.tail) for one in scored] == named(toy, triples)
    assert judge.score([]) == []


def test_the_score_is_that_of_the_surer_question(judge: Predictor, toy: LinkData) -> None:
    """By the shares that the answers to both questions say; a question that makes no sense does not count."""
    triples, domains = some_triples(toy), Domains.of(toy.graph)
    scored = judge.score(named(toy, triples))
    for (head, relation, tail), row, one in zip(named(toy, triples), triples.tolist(), scored, strict=True):
        shares = {
            "tail": {a.entity: a.score for a in judge.tails(head, relation, 30, "mark")}[tail],
            "head": {a.entity: a.score for a in judge.heads(tail, relation, 30, "mark")}[head],
        }
        asked = np.array([row[0], row[2]]), np.array([row[1], row[1] + toy.graph.num_relations])
        counts = dict(zip(shares, domains.make_sense(*asked), strict=True))
        used = [shares[end] for end in shares if counts[end]] or list(shares.values())
        assert one.score == pytest.approx(max(math.log(share / (1 - share)) for share in used), abs=2e-3)


def test_the_probability_is_fitted_and_rises_with_the_score(judge: Predictor, toy: LinkData) -> None:
    scored = judge.score(named(toy, some_triples(toy)))
    chances = [one.probability for one in sorted(scored, key=lambda one: one.score)]
    assert all(chance is not None for chance in chances)
    calibration = judge.calibration
    assert chances == sorted(chances) and (chances[0] < chances[-1]) == (calibration.slope > 0)
    assert calibration.facts == len(toy.graph.valid) == 20
    assert 0 < calibration.brier < 0.5 and 0 <= calibration.error < 1


def test_the_command_scores_a_file(
    judge: Predictor, toy: LinkData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triples = named(toy, toy.graph.valid[:3])
    (tmp_path / "t.tsv").write_text("".join("\t".join(triple) + "\n" for triple in triples))
    ask = ("predict", str(judge.checkpoint.path), "--score", str(tmp_path / "t.tsv"))
    wanted = judge.score(triples)
    said = run(*ask, "--out", str(tmp_path / "out.tsv"))
    assert judge.calibration.describe() in said
    rows = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert rows[0] == ["head", "relation", "tail", "score", "tail_rank", "head_rank", "probability", "known"]
    assert [tuple(row[:3]) for row in rows[1:]] == triples
    assert [float(row[6]) for row in rows[1:]] == pytest.approx([one.probability for one in wanted], abs=1e-4)
    assert [float(row[4]) for row in rows[1:]] == [one.tail_rank for one in wanted]
    assert {row[7] for row in rows[1:]} == {"yes"}
    assert json.loads(run(*ask, "--json")) == [vars(one) for one in wanted]
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(*ask)
    assert "tail_rank" in shown and all(f"{one.score:.4f}" in shown for one in wanted)


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("entity 1\tnext\tentity 2\nentity 1\tnxt\tentity 3\n", "line 2: 'nxt' is no relation", "use a relation name"),
        ("entity 1\tnext\tentty 2\n", "line 1: 'entty 2' is no entity of this graph (30 known); did you mean 'ent", "exactly"),
        ("entity 1\tnext\n", "line 1: 2 columns instead of 3", "head<TAB>relation<TAB>tail"),
        ("", "holds no line", "head<TAB>relation<TAB>tail"),
    ],
)
def test_a_wrong_triple_is_named(judge: Predictor, tmp_path: Path, text: str, problem: str, remedy: str) -> None:
    file, out = tmp_path / "t.tsv", tmp_path / "out.tsv"
    file.write_text(text)
    error = fails("predict", str(judge.checkpoint.path), "--score", str(file), "--out", str(out))
    assert str(file) in error.problem and problem in error.problem and remedy in error.remedy
    assert not out.exists()
    file.write_text("entity 1\tnext\tentity 2\n")
    wrong = fails("predict", str(judge.checkpoint.path), "--score", str(file), "--out", str(tmp_path / "out.csv"))
    assert "scored triples are .tsv" in wrong.problem
    assert "nothing else to ask" in fails("predict", str(judge.checkpoint.path), "--score", str(file), "-r", "next").problem


def test_without_enough_validation_there_is_no_probability(toy: LinkData, tmp_path: Path) -> None:
    few = replace(toy, graph=replace(toy.graph, valid=toy.graph.valid[:19]))
    predictor = trained(few, tmp_path / "few", model__modalities=[], train__max_epochs=1)
    triple = named(toy, toy.graph.valid[:1])
    assert predictor.score(triple)[0].probability is None
    (tmp_path / "t.tsv").write_text("\t".join(triple[0]) + "\n")
    said = run("predict", str(tmp_path / "few"), "--score", str(tmp_path / "t.tsv"), "--out", str(tmp_path / "o.tsv"))
    assert "19 validation facts are too few" in said and "at least 20" in said
    assert (tmp_path / "o.tsv").read_text().splitlines()[1].split("\t")[6] == ""
