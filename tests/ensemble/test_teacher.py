"""A student learns from a teacher's answers: the loss by hand, the teacher's answers, and a student that takes after it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.cli import app
from imf_core.config import Config
from imf_core.data.graph.graph import KnownAnswers
from imf_core.ensemble.teacher import _unasked, teach, whole, with_branches
from imf_core.errors import CheckpointError, ConfigError
from imf_core.evaluate.pooled import PooledScores
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets, distillation_loss
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget, Shard
from imf_core.train.batches import TrainingQueries
from imf_core.train.fit import build_model, fit
from imf_core.train.loop import Saving
from tests.support.tiny_checkpoint import tiny_checkpoint, tiny_graph

SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16, "train.lr": 0.01, "train.max_epochs": 6}
EAGER = {"train__lr": 0.03, "train__max_epochs": 12, "train__eval_every": 12, "model__dropout_context": 0.0,
         "model__dropout_relation": 0.0, "model__dropout_input": 0.0}


def settings(**more: object) -> Config:
    return Config().updated({**SETTINGS, **{key.replace("__", "."): value for key, value in more.items()}})


@pytest.fixture(scope="module")
def teachers(toy: LinkData) -> list[Imf]:
    made = []
    for seed in (1, 2):
        config = settings(train__seed=seed, **EAGER)
        made.append(build_model(config, toy))
        fit(made[-1], toy, config)
    return made


@pytest.fixture(scope="module")
def taught(toy: LinkData, teachers: list[Imf]) -> SoftTargets:
    return teach(teachers, [2, 1], toy.graph, answers=10)


def test_the_loss_by_hand() -> None:
    soft = SoftTargets(torch.tensor([[4, 7]]), torch.tensor([[0.8, 0.2]]))
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])

    def divergence(logits: torch.Tensor) -> float:
        student = torch.softmax(logits, dim=1)[0].tolist()
        return float(0.8 * np.log(0.8 / student[0]) + 0.2 * np.log(0.2 / student[1]))

    assert float(distillation_loss([first], soft, torch.ones(1, 1), [None], 1.0)) == pytest.approx(divergence(first), abs=1e-6)
    decided = 0.25 * torch.log_softmax(first, 1) + 0.75 * torch.log_softmax(second, 1)
    wanted = (divergence(first) + divergence(second) + divergence(decided)) / 3
    weights = torch.tensor([[0.25, 0.75]])
    assert float(distillation_loss([first, second], soft, weights, [None, None], 1.0)) == pytest.approx(wanted, abs=1e-6)
    # The second answer lacks the second branch's modality: there the first branch decides alone.
    mask = torch.tensor([[True, False]])
    logs = torch.log_softmax(first, 1), torch.log_softmax(second, 1)
    decided = torch.stack([0.25 * logs[0][0, 0] + 0.75 * logs[1][0, 0], logs[0][0, 1]])[None]
    wanted = (divergence(first) + divergence(second) + divergence(decided)) / 3
    assert float(distillation_loss([first, second], soft, weights, [None, mask], 1.0)) == pytest.approx(wanted, abs=1e-6)


def test_the_loss_by_hand_where_branches_are_sigmoids() -> None:
    soft = SoftTargets(torch.tensor([[4, 7]]), torch.tensor([[0.8, 0.2]]))
    scores = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 3.0]])
    chances = [score.sigmoid()[0].numpy() for score in scores]
    decided = 0.25 * chances[0] + 0.75 * chances[1]
    parts = [part / part.sum() for part in (*chances, decided)]
    wanted = np.mean([0.8 * np.log(0.8 / part[0]) + 0.2 * np.log(0.2 / part[1]) for part in parts])
    found = distillation_loss(scores, soft, torch.tensor([[0.25, 0.75]]), [None, None], 1.0, "bce")
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    alone = distillation_loss(scores, soft, torch.tensor([[0.0, 1.0]]), [torch.zeros(1, 2, dtype=torch.bool), None], 1.0, "bce")
    assert torch.isfinite(alone)


def test_who_is_taught_by_hand() -> None:
    """The combination alone, or each branch by the teacher's branch of its view and the combination by the decision."""
    scores = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    weights, given = torch.tensor([[0.25, 0.75]]), (torch.tensor([[4, 7]]), torch.tensor([[0.8, 0.2]]))
    decided = 0.25 * torch.log_softmax(scores[0], 1) + 0.75 * torch.log_softmax(scores[1], 1)

    def divergence(wanted: list[float], logits: torch.Tensor) -> float:
        student = torch.softmax(logits, dim=1)[0].tolist()
        return sum(p * float(np.log(p / q)) for p, q in zip(wanted, student, strict=True))

    def loss(soft: SoftTargets) -> float:
        return float(distillation_loss(scores, soft, weights, [None, None], 1.0))

    assert loss(SoftTargets(*given, terms="combined")) == pytest.approx(divergence([0.8, 0.2], decided), abs=1e-6)
    own = SoftTargets(*given, torch.tensor([[[0.3], [0.7]]]), (1,), "branches")
    wanted = (divergence([0.3, 0.7], scores[1]) + divergence([0.8, 0.2], decided)) / 2
    assert loss(own) == pytest.approx(wanted, abs=1e-6)
    assert own.rows(torch.tensor([0])).terms == "branches"


def test_unknown_answers_are_those_that_no_training_triple_knows(toy: LinkData, teachers: list[Imf]) -> None:
    queries = TrainingQueries(toy.graph)
    soft = teach(teachers, [2, 1], toy.graph, answers=5, unknown=True)
    assert soft.answers.shape == (len(queries), 5) and torch.allclose(soft.probabilities.sum(dim=1), torch.ones(len(queries)))
    for row, answers in enumerate(soft.answers.tolist()):
        known = queries.index.answers[queries.index.offsets[row] : queries.index.offsets[row + 1]]
        assert not {*answers} & {*known.tolist()}
    little = teach(teachers, [2, 1], toy.graph, answers=5, unknown=True, memory=MemoryBudget(2**12))
    assert torch.equal(little.answers, soft.answers)


def test_branches_are_taught_by_those_of_their_view(toy: LinkData, teachers: list[Imf]) -> None:
    config = settings(model__modalities=["text"], model__fusion="none")
    student = build_model(config, toy)
    soft = with_branches(teach(teachers, [2, 1], toy.graph, answers=4), teachers, [2, 1], toy.graph, student)
    assert soft.taught == (0, 1) and soft.branches is not None and soft.branches.shape == (*soft.answers.shape, 2)
    queries = TrainingQueries(toy.graph)
    heads, relations = torch.from_numpy(queries.heads), torch.from_numpy(queries.relations)
    logs = []
    with torch.no_grad():
        for model in teachers:
            tables = model.tables()
            scores = model.branch_scores(tables, model.contexts(tables, heads, relations))[model.branches.index("text")]
            logs.append(torch.log_softmax(scores.gather(1, soft.answers), dim=1))
    wanted = torch.softmax((2 * logs[0] + logs[1]) / 3, dim=1)
    torch.testing.assert_close(soft.branches[:, :, 1], wanted)
    alone = build_model(settings(model__modalities=["image"], model__fusion="none"), toy)
    teacher = build_model(config, toy)
    assert with_branches(teach([teacher], [1], toy.graph, answers=4), [teacher], [1], toy.graph, alone).taught == (0,)


@pytest.mark.parametrize("terms", ["combined", "branches"])
def test_a_student_learns_with_other_terms(toy: LinkData, teachers: list[Imf], terms: str) -> None:
    losses = []
    config = settings(train__distil_terms=terms, train__distil_answers="unknown")
    student = build_model(config, toy)
    soft = with_branches(teach(teachers, [2, 1], toy.graph, answers=4, unknown=True), teachers, [2, 1], toy.graph, student)
    soft = replace(soft, terms=terms)
    fit(student, toy, config, lambda report: losses.append(report.losses["distil"]), teacher=soft)
    assert losses[-1] < losses[0]
    sampled = settings(train__num_negatives=8)
    with pytest.raises(ConfigError, match=f"distil_terms={terms} needs the loss over all entities"):
        fit(build_model(sampled, toy), toy, sampled, teacher=soft)


def test_queries_that_go_with_those_of_an_entity_are_likely_ones() -> None:
    """Relations 0 and 1: of the three heads of 0 two have 1 too, which the third (4) lacks; 6 is not known at all."""
    known = KnownAnswers.build([np.array([[0, 0, 1], [0, 1, 1], [2, 0, 3], [2, 1, 3], [4, 0, 5]])], 2)
    heads, relations, cumulated = _unasked(known, 7)
    likely = dict(zip(zip(heads.tolist(), relations.tolist(), strict=True), np.diff(cumulated, prepend=0), strict=True))
    assert likely == {(4, 1): pytest.approx(0.5), (5, 3): pytest.approx(0.5)}  # the inverses are 2 and 3
    assert not len(_unasked(KnownAnswers.build([np.array([[0, 0, 1]])], 1), 2)[0])


def test_a_teacher_that_is_asked_answers_as_the_pool_does(toy: LinkData, teachers: list[Imf]) -> None:
    teacher = whole(teachers, [2, 1], toy.graph, memory=MemoryBudget(2**12))
    heads, relations = teacher.unasked(40)
    facts = set(map(tuple, toy.graph.train[:, :2].tolist()))
    assert len(heads) == 40 and not facts & set(zip(heads.tolist(), relations.tolist(), strict=True))
    pooled = next(PooledScores(teachers, [2, 1], 2**24).blocks(heads, relations, 40))[0]
    assert torch.allclose(teacher.ask(heads, relations), pooled, atol=1e-5)


@pytest.mark.parametrize("more", [
    {}, *(pytest.param(other, marks=pytest.mark.slow) for other in (
        {"model__modalities": []}, {"train__loss": "bce"}, {"train__distil_terms": "combined"},
    )),
])
def test_a_student_takes_after_a_teacher_where_no_training_triple_asks(
    toy: LinkData, teachers: list[Imf], more: dict[str, object]
) -> None:
    found = {}
    for weight in (0.0, 5.0):
        config = settings(train__distil_weight=weight, train__distil_temperature=1.0, train__seed=5, **EAGER, **more)
        student, teacher = build_model(config, toy), whole(teachers, [2, 1], toy.graph)
        fit(student, toy, config, teacher=replace(teacher, terms=config.train.distil_terms))
        with torch.no_grad():
            wanted = teacher.ask(teacher.heads, teacher.relations)
            own = next(PooledScores([student], [1.0], 2**24).blocks(teacher.heads, teacher.relations, len(wanted)))[0]
        found[weight] = float(torch.nn.functional.kl_div(own, wanted, log_target=True, reduction="batchmean"))
    assert found[5.0] < 0.6 * found[0.0]


def test_a_teacher_that_is_asked_needs_all_entities(toy: LinkData, teachers: list[Imf]) -> None:
    config = settings(train__num_negatives=8, train__distil_answers="distribution")
    with pytest.raises(ConfigError, match="distil_answers=distribution needs the loss over all entities"):
        fit(build_model(config, toy), toy, config, teacher=whole(teachers, [2, 1], toy.graph))
    with pytest.raises(ConfigError, match="distil_terms=branches learns from a teacher's strongest answers"):
        settings(train__distil_terms="branches", train__distil_answers="distribution")


def test_temperature_evens_out_both_sides() -> None:
    soft = SoftTargets(torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.1]]))
    assert soft.softened(2.0)[0].tolist() == pytest.approx([0.75, 0.25])  # 3 : 1, the root of 9 : 1
    agreeing = torch.tensor([[float(np.log(9.0)), 0.0]])
    assert float(distillation_loss([agreeing], soft, torch.ones(1, 1), [None], 2.0)) == pytest.approx(0.0, abs=1e-6)
    even = torch.zeros(1, 2)
    wanted = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
    assert float(distillation_loss([even], soft, torch.ones(1, 1), [None], 2.0)) == pytest.approx(wanted, abs=1e-6)


def test_the_teachers_answers_are_those_of_the_pool(toy: LinkData, teachers: list[Imf], taught: SoftTargets) -> None:
    queries = TrainingQueries(toy.graph)
    assert taught.answers.shape == (len(queries), 10)
    with torch.no_grad():
        pooled = torch.cat([
            block[0].clone() for block in PooledScores(teachers, [2, 1], 2**20).blocks(
                torch.from_numpy(queries.heads), torch.from_numpy(queries.relations), 8
            )
        ])
    best = pooled.topk(10, dim=1)
    assert torch.allclose(taught.probabilities, torch.softmax(best.values, dim=1), atol=1e-5)
    assert torch.equal(taught.answers.sort(dim=1).values, best.indices.sort(dim=1).values)
    little = teach(teachers, [2, 1], toy.graph, answers=10, memory=MemoryBudget(2**12))
    assert torch.allclose(little.probabilities, taught.probabilities, atol=1e-5)
    assert teach(teachers, [1, 1], toy.graph, answers=99).answers.shape[1] == toy.graph.num_entities


def test_a_batch_brings_the_answers_of_its_own_queries(toy: LinkData, taught: SoftTargets) -> None:
    queries = TrainingQueries(toy.graph, taught)
    place = {pair: number for number, pair in enumerate(zip(queries.heads.tolist(), queries.relations.tolist(), strict=True))}
    for batch in queries.epoch(16, 0, 1, Shard(1, 2)):
        rows = torch.tensor([place[pair] for pair in zip(batch.heads.tolist(), batch.relations.tolist(), strict=True)])
        assert batch.soft is not None and torch.equal(batch.soft.answers, taught.answers[rows])


def apart(student: Imf, toy: LinkData, taught: SoftTargets) -> float:
    """Mean divergence of the student's probabilities of the teacher's answers, in its decision, from the teacher's."""
    queries = TrainingQueries(toy.graph)
    with torch.no_grad():
        blocks = PooledScores([student], [1.0], 2**20).blocks(
            torch.from_numpy(queries.heads), torch.from_numpy(queries.relations), 1000
        )
        own = next(blocks)[0].gather(1, taught.answers)
    return float(distillation_loss([own], taught, torch.ones(len(own), 1), [None], 1.0))


@pytest.mark.parametrize("more", [{}, {"train__loss": "bce"}, {"train__num_negatives": 12}, {"model__scoring": "transe"}])
def test_a_student_takes_after_its_teacher(toy: LinkData, taught: SoftTargets, more: dict[str, object]) -> None:
    found = {}
    for weight in (0.0, 5.0):
        config = settings(
            train__distil_weight=weight, train__distil_temperature=1.0, train__seed=5, model__modalities=[], **EAGER, **more
        )
        student = build_model(config, toy)
        fit(student, toy, config, teacher=taught)
        found[weight] = apart(student, toy, taught)
    assert found[5.0] < 0.8 * found[0.0]


def test_without_weight_or_teacher_nothing_changes(toy: LinkData, taught: SoftTargets) -> None:
    states = []
    for teacher, weight in ((None, 1.0), (taught, 0.0), (taught, 1.0)):
        config = settings(train__distil_weight=weight, train__max_epochs=2)
        model = build_model(config, toy)
        fit(model, toy, config, teacher=teacher)
        states.append(model.structure.detach().clone())
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_sampled_and_whole_losses_teach_the_same(toy: LinkData, taught: SoftTargets) -> None:
    batch = next(iter(TrainingQueries(toy.graph, taught).epoch(24, 0, 1)))
    model = build_model(settings(), toy).eval()
    parts = [
        model(batch.heads, batch.relations, batch.positives, settings(**more).train, batch.soft)["distil"]
        for more in ({}, {"train__num_negatives": 12})
    ]
    assert float(parts[0].detach()) > 0 and torch.allclose(parts[0], parts[1], atol=1e-6)


@pytest.mark.parametrize("asked", [False, True])
def test_an_interrupted_student_goes_on_to_the_bit(
    toy: LinkData, teachers: list[Imf], taught: SoftTargets, tmp_path: Path, asked: bool
) -> None:
    config, teacher = settings(train__max_epochs=4), whole(teachers, [2, 1], toy.graph) if asked else taught
    unbroken, broken = build_model(config, toy), build_model(config, toy)
    fit(unbroken, toy, config, teacher=teacher)

    class StopError(Exception):
        pass

    def stop(report: object) -> None:
        if getattr(report, "epoch", 0) == 2:
            raise StopError

    with pytest.raises(StopError):
        fit(broken, toy, config, stop, saving=Saving(tmp_path / "state", 0.0), teacher=teacher)
    again = build_model(config, toy)
    fit(again, toy, config, saving=Saving(tmp_path / "state", 0.0), teacher=teacher)
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_command(tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph")
    made = [str(tiny_checkpoint(graph, tmp_path / f"m{seed}", seed=seed, model__fusion_rank=3)) for seed in range(2)]
    run = CliRunner().invoke
    assert run(app, ["ensemble", str(tmp_path / "pool"), *made]).exit_code == 0
    short = ["--set", "train.max_epochs=1"]
    for teacher in (tmp_path / "pool", tmp_path / "m0"):
        done = run(app, ["train", str(tmp_path / "student"), "--distil", str(teacher), *short], catch_exceptions=False)
        assert done.exit_code == 0 and "taught by" in done.stdout
        assert load_checkpoint(tmp_path / "student").config.model.fusion_rank == 3  # the teacher's settings
    more = ["--set", "train.distil_terms=branches", "--set", "train.distil_answers=unknown"]
    done = run(app, ["train", str(tmp_path / "own"), "--distil", str(tmp_path / "pool"), *short, *more], catch_exceptions=False)
    assert done.exit_code == 0 and load_checkpoint(tmp_path / "own").config.train.distil_terms == "branches"
    more = ["--set", "train.distil_answers=distribution"]
    done = run(app, ["train", str(tmp_path / "asks"), "--distil", made[0], *short, *more], catch_exceptions=False)
    assert done.exit_code == 0 and "all entities, also for" in " ".join(done.stdout.split())
    told = json.loads((tmp_path / "student" / "config.json").read_text())["metrics"]
    assert told["teacher"] == str((tmp_path / "m0").resolve())
    other = tiny_graph(tmp_path / "other", first=[b"odd"])
    for more in ([], ["--dry-run"]):
        failed = run(app, ["train", str(tmp_path / "x"), "--distil", made[0], "--data", str(other), *short, *more])
        assert isinstance(failed.exception, CheckpointError) and "belongs to other entities" in failed.exception.problem
