"""The winner's inside on its study's page: slices of both splits, and the weights of its branches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_study import checkpoint, drawn, small_study, sound

from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.prepare.link_data import LinkData
from imf_core.tasks.link import LINK
from tune.report.result import StudyResult
from tune.report.winner import MOST_RELATIONS


@pytest.fixture(scope="module")
def best(toy: LinkData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("winner") / "best", toy, decision="relation")


@pytest.fixture
def result(tmp_path: Path, best: Path) -> StudyResult:
    return small_study(tmp_path, best)


def test_slices_of_the_winner(result: StudyResult) -> None:
    table = drawn(result).tables["slices-validation"]
    assert table[0] == ["by", "slice", "ranks", "MRR", "Hits@1", "Hits@3", "Hits@10", "mean rank"]
    assert table[1] == ["", "all", "4", "0.4688", "0.2500", "0.5000", "1.0000", "3.8"]
    assert [row[:4] for row in table[2:]] == [
        ["direction", "tail prediction", "2", "0.7500"], ["direction", "head prediction", "2", "0.1875"],
        ["category", "1-1", "2", "0.7500"], ["category", "N-N", "2", "0.1875"],
        ["entities", "warm: both in train", "4", "0.4688"], ["entities", "cold: at least one not in train", "0", "–"],
    ]
    assert drawn(result).tables["slices-test"][2][3] == "0.1875"


def test_the_published_winner_has_slices_of_test_too(result: StudyResult, toy: LinkData, tmp_path: Path) -> None:
    graph = replace(toy.graph, test_reader=lambda: toy.graph.valid)
    folder = checkpoint(tmp_path / "seed", toy)
    tested = LINK.test({0: folder}, Config(), replace(toy, graph=graph), tmp_path / "ranks.safetensors")
    (details,) = tested.details
    assert tested.baseline is not None
    LINK.publish(folder, tmp_path / "best", details)
    page = drawn(replace(result, checkpoint=tmp_path / "best"))
    table = page.tables["slices-test"]
    assert table[1][1:4] == ["all", str(2 * len(toy.graph.valid)), f"{details['mrr']:.4f}"]
    assert {row[1]: row[3] for row in table}["tail prediction"] == f"{details['slices']['tail']['mrr']:.4f}"


def test_decision_weights_by_relation(result: StudyResult, toy: LinkData) -> None:
    page = drawn(result, relation_counts=LINK.training_counts(toy))
    branches = ["structure", "image", "text", "fused"]
    both = torch.softmax(torch.arange(8.0)[:, None] * torch.arange(4.0) / 10, dim=1).numpy().reshape(2, 4, 4)
    counts = np.bincount(toy.graph.train[:, 1], minlength=4)
    mean = (both.mean(axis=0) * counts[:, None]).sum(axis=0) / counts.sum()
    assert page.tables["weights"][1:] == [[branch, f"{weight:.3f}"] for branch, weight in zip(branches, mean)]
    table = page.tables["weights-by-relation"]
    assert table[0] == ["relation", "training triples", "weights", *branches]
    order = sorted(range(4), key=lambda place: (-counts[place], place))
    assert [row[:2] for row in table[1:]] == [[toy.graph.relations.names[place], str(counts[place])] for place in order]
    first = [f"{tail:.2f} / {head:.2f}" for tail, head in both[:, order[0]].T]
    assert table[1][3:] == first
    assert "Mean over the training triples" in page.text
    assert "Mean over the relations" in drawn(result).text


def test_rare_relations_are_summed_up(result: StudyResult, toy: LinkData, tmp_path: Path) -> None:
    many = MOST_RELATIONS + 12
    triples = np.array([(i % 30, relation, (i + relation) % 30) for relation in range(many) for i in range(relation + 1)])
    relations = Vocabulary(tuple(f"r{i}" for i in range(many)), "relation")
    graph = KnowledgeGraph(toy.graph.entities, relations, triples, triples[:5])
    many_relations = replace(toy, graph=graph)
    folder = checkpoint(tmp_path / "many", many_relations, decision="relation")
    page = drawn(replace(result, checkpoint=folder), relation_counts=LINK.training_counts(many_relations))
    table = page.tables["weights-by-relation"][1:]
    assert [row[0] for row in table] == [*(f"r{i}" for i in range(many - 1, 11, -1)), "12 other relations"]
    assert table[-1][1] == str(sum(range(1, 13)))
    assert sound(page)


@pytest.mark.parametrize("mode", ["uniform", "fixed", "learned"])
def test_one_set_of_weights_has_no_table_by_relation(result: StudyResult, toy: LinkData, tmp_path: Path, mode: str) -> None:
    page = drawn(replace(result, checkpoint=checkpoint(tmp_path / mode, toy, decision=mode)))
    assert len(page.tables["weights"]) == 5
    assert "weights-by-relation" not in page.tables
    assert "Mean over" not in page.text


def test_a_single_branch_and_an_unreadable_checkpoint(result: StudyResult, toy: LinkData, tmp_path: Path) -> None:
    alone = drawn(replace(result, checkpoint=checkpoint(tmp_path / "alone", toy, modalities=[])))
    assert "There is one branch (structure)" in alone.text
    lost = drawn(replace(result, checkpoint=tmp_path / "nowhere"))
    assert sound(lost)
    assert "the winner's checkpoint cannot be read" in lost.text
    assert "slices-validation" not in lost.tables
