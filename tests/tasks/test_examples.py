"""How a model answers validation: relations, right and wrong answers with texts and pictures; test stays closed."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import tiny_checkpoint, tiny_graph

from imf_core.checkpoint.checkpoint import load_checkpoint
from imf_core.config import Config
from imf_core.ensemble.ensemble import rank_split
from imf_core.evaluate.test_once import OWN
from imf_core.prepare.link_data import LinkData, prepare
from imf_core.tasks.link import LINK
from imf_core.tasks.protocols import Examples


def refused() -> np.ndarray:
    raise AssertionError("the test split was opened")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config, LinkData]:
    """An untrained model of a graph with two pictures, one of them damaged; its test split refuses to be read."""
    graph = tiny_graph(tmp_path_factory.mktemp("examples") / "graph")
    (graph / "images").mkdir()
    Image.new("RGB", (300, 200), "red").save(graph / "images" / "e1.png")
    (graph / "images" / "e2.png").write_bytes(b"no picture")
    best = tiny_checkpoint(graph, graph.parent / "best")
    config = Config().updated({"data.path": str(graph)})
    data = prepare(config.data)
    return best, config, replace(data, graph=replace(data.graph, test_reader=refused))


def examples(study: tuple[Path, Config, LinkData]) -> Examples:
    found = LINK.examples(*study)
    assert found is not None
    return found


def test_relations_add_up_to_validation(study: tuple[Path, Config, LinkData]) -> None:
    best, _, data = study
    ranked = rank_split(load_checkpoint(best), data.graph, "valid", data.graph.valid, data.graph.known())[OWN]
    found = examples(study)
    assert (found.ranked, found.triples) == (8, 8)
    assert sum(score.count for score in found.relations) == 16
    mean = sum(score.count * score.mrr for score in found.relations) / 16
    assert mean == pytest.approx(ranked.metrics.mrr)
    hits = sum(score.count * score.hits_at_10 for score in found.relations) / 16
    assert hits == pytest.approx(ranked.metrics.hits_at(10))
    counts = [score.count for score in found.relations]
    assert counts == sorted(counts, reverse=True) and {score.name for score in found.relations} <= {"next", "[rest]"}


def test_answers_are_questions_of_validation_with_their_ranks(study: tuple[Path, Config, LinkData]) -> None:
    data = study[2]
    graph, found = data.graph, examples(study)
    names = graph.entities.names
    triples = {(names[head], graph.relations.names[relation], names[tail]) for head, relation, tail in graph.valid}
    known = {(names[head], graph.relations.names[relation], names[tail]) for head, relation, tail in graph.train}
    assert len(found.wrong) == 10 and len(found.right) <= 10
    assert all(it.rank <= 1 and not it.proposed for it in found.right)
    for it in found.wrong:
        ends = (it.given.name, it.answer.name) if it.asks_tail else (it.answer.name, it.given.name)
        assert (ends[0], it.relation, ends[1]) in triples
        assert it.rank > 1 and len(it.proposed) == 3
        for guess in it.proposed:  # what is known already is left out, as in the rank
            ends = (it.given.name, guess.name) if it.asks_tail else (guess.name, it.given.name)
            assert (ends[0], it.relation, ends[1]) not in known
        if it.rank <= 3:
            assert it.answer in it.proposed
    assert LINK.examples(*study) == found


def test_entities_come_with_text_and_picture(study: tuple[Path, Config, LinkData]) -> None:
    found = examples(study)
    shown = {entity.name: entity for it in (*found.right, *found.wrong) for entity in (it.given, it.answer, *it.proposed)}
    assert all(entity.text == (f"the text of {name}" if int(name[1:]) < 20 else "") for name, entity in shown.items())
    pictured = {name for name, entity in shown.items() if entity.picture}
    assert pictured == {"e1"} & shown.keys()
    if pictured:
        kind, _, coded = shown["e1"].picture.partition(",")
        assert kind == "data:image/png;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(coded))).size) == 64


def test_ranks_are_paired_and_those_of_a_large_graph_a_sample(
    study: tuple[Path, Config, LinkData], monkeypatch: pytest.MonkeyPatch
) -> None:
    best, config, data = study
    assert LINK.validation_ranks(best, config, data).shape == (16,)  # type: ignore[union-attr]
    monkeypatch.setattr("imf_core.tasks.examples._MOST", 5 * 2 * data.graph.num_entities)
    few = LINK.validation_ranks(best, config, data)
    assert few is not None and few.shape == (10,)
    assert np.array_equal(few, LINK.validation_ranks(best, config, data))  # type: ignore[arg-type]
    assert (examples(study).ranked, examples(study).triples) == (5, 8)


def test_a_folder_that_has_gone_leaves_the_names(study: tuple[Path, Config, LinkData], tmp_path: Path) -> None:
    best, config, data = study
    gone = LINK.examples(best, config.updated({"data.path": str(tmp_path / "gone")}), data)
    assert gone is not None
    assert [it.answer.name for it in gone.wrong] == [it.answer.name for it in examples(study).wrong]
    assert all(not it.answer.text and not it.answer.picture for it in gone.wrong)
