"""Known facts among answers: left out, marked or alone, the same from Python, HTTP, MLflow, files and ensembles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from command_line import fails, run
from starlette.testclient import TestClient
from tiny_checkpoint import tiny_checkpoint, tiny_graph, tiny_pool

from imf_core.answers import Answer, Question, left_out_line
from imf_core.checkpoint.checkpoint import FACTS_FILE
from imf_core.commands.serve.request import Limits
from imf_core.commands.serve.service import build_app
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import CheckpointError, ConfigError
from imf_core.predict import Predictor
from tune.tracking.model import ImfPyfunc, signature


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("known")
    graph = tiny_graph(folder / "graph")
    return tiny_pool(graph, folder)


@pytest.fixture(scope="module", params=["ce", "bce", "pool"])
def predictor(request: pytest.FixtureRequest, place: Path) -> Predictor:
    return open_predictor(place / request.param)


def facts(folder: Path, *splits: str) -> set[tuple[str, ...]]:
    return {tuple(line.split("\t")) for split in splits for line in (folder / f"{split}.tsv").read_text().splitlines()}


def questions(predictor: Predictor) -> Iterator[Question]:
    for entity in predictor.checkpoint.entities.names:
        for relation in predictor.checkpoint.relations.names:
            yield Question(entity, relation, None)
            yield Question(None, relation, entity)


def filled(question: Question, answer: Answer) -> tuple[str, str, str]:
    return question.head or answer.entity, question.relation, question.tail or answer.entity


def answered(predictor: Predictor, known: str) -> list[tuple[Question, list[Answer]]]:
    asked = list(questions(predictor))
    return list(zip(asked, predictor.answers(asked, 1000, known), strict=True))


def test_the_three_choices_divide_the_entities(predictor: Predictor, place: Path) -> None:
    wanted, held_back = facts(place / "graph", "train", "valid"), facts(place / "graph", "test")
    found = {known: answered(predictor, known) for known in ("drop", "mark", "only")}
    for known, expected in (("drop", set()), ("only", wanted)):
        assert {filled(asked, one) for asked, many in found[known] for one in many} & wanted == expected
    assert {filled(asked, one) for asked, many in found["only"] for one in many} == wanted
    assert {filled(asked, one) for asked, many in found["mark"] for one in many if one.known} == wanted
    assert held_back & {filled(asked, one) for asked, many in found["drop"] for one in many} == held_back - wanted != set()
    for (asked, new), (_, marked), (_, old) in zip(found["drop"], found["mark"], found["only"], strict=True):
        itself = asked.head or asked.tail  # training has self-loops of [rest] alone
        fresh = [one for one in marked if not one.known and (one.entity != itself or asked.relation == "[rest]")]
        assert fresh == new and [one for one in marked if one.known] == old
        assert len(marked) == len(predictor.checkpoint.entities)
        assert predictor.num_known([asked]) == [len(old)]
        scores = [one.score for one in marked]
        assert scores == sorted(scores, reverse=True)


def test_drop_is_the_default_and_still_gives_k(predictor: Predictor, place: Path) -> None:
    head, relation, tail = sorted(facts(place / "graph", "train"))[0]
    answers = predictor.tails(head, relation, 5)
    assert len(answers) == 5 and tail not in [answer.entity for answer in answers]
    assert answers == predictor.tails(head, relation, 5, "drop")
    with pytest.raises(ConfigError, match=r"known is 'drp'; did you mean 'drop'\?"):
        predictor.tails(head, relation, 5, "drp")


@pytest.mark.parametrize("known", ["drop", "mark", "only"])
def test_http_mlflow_and_files_agree_with_python(place: Path, tmp_path: Path, known: str) -> None:
    predictor = Predictor.load(place / "ce")
    asked = [Question("e3", "next", None), Question(None, "[rest]", "e2"), Question("e5", "[rest]", None)]
    wanted = [[(one.entity, one.known) for one in many] for many in predictor.answers(asked, 30, known)]
    counts = predictor.num_known(asked) if known == "drop" else [0, 0, 0]
    with TestClient(build_app(predictor, Limits(), ["*"])) as client:
        body = {"questions": [vars(question) for question in asked], "k": 30, "known": known}
        results = client.post("/predict", json=body).json()["results"]
    assert [[(one["entity"], one["known"]) for one in result["answers"]] for result in results] == wanted
    assert [result["left_out"] for result in results] == counts

    model = ImfPyfunc()
    model.load_context(SimpleNamespace(artifacts={"checkpoint": str(place / "ce")}))
    rows = pd.DataFrame([vars(question) for question in asked])
    full = [
        [*filled(question, one), one.known]
        for question, many in zip(asked, predictor.answers(asked, 30, known), strict=True) for one in many
    ]
    for given, params in ((rows, {"k": 30, "known": known}), (rows.assign(known=known), {"k": 30})):
        table = model.predict(None, given, params)
        assert table[["head", "relation", "tail", "known"]].values.tolist() == full

    (tmp_path / "q.tsv").write_text("e3\tnext\t?\n?\t[rest]\te2\ne5\t[rest]\t?\n")
    for name in ("a.tsv", "a.jsonl"):
        out = str(tmp_path / name)
        said = run("predict", str(place / "ce"), "--file", str(tmp_path / "q.tsv"), "--out", out, "-k", "30", "--known", known)
        assert (left_out_line(sum(counts)) in said) and ("left out" in said) == (known == "drop")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [[(one["entity"], one["known"]) for one in line["answers"]] for line in lines] == wanted
    cells = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()]
    assert [row[4] for row in cells[1:]] == [entity for many in wanted for entity, _ in many]
    if known == "mark":
        assert cells[0][-1] == "known"
        assert [row[-1] for row in cells[1:]] == ["yes" if flag else "no" for many in wanted for _, flag in many]
    else:
        assert "known" not in cells[0]


def test_the_signature_of_a_registered_model() -> None:
    from imf_core.tasks.registry import task_named

    for task in ("link", "recommend"):
        described = signature(task_named(task))
        assert {param.name: param.default for param in described.params} == {"k": 10, "known": "drop"}
        assert "known" in described.outputs.input_names()


def test_the_terminal_says_what_is_left_out(place: Path) -> None:
    ask = ("predict", str(place / "ce"), "--tail", "e2", "-r", "[rest]")
    count = len([fact for fact in facts(place / "graph", "train", "valid") if fact[1:] == ("[rest]", "e2")])
    assert count > 1
    assert f"{count} known facts left out; --known mark shows them" in run(*ask)
    marked = run(*ask, "--known", "mark", "-k", "24")
    assert "left out" not in marked and marked.count("│ yes") == count
    assert json.loads(run(*ask, "--json"))  # the line does not disturb what is parsed
    assert run(*ask, "--known", "only", "-k", "24").count("│ e") == count
    nothing = ("predict", str(place / "ce"), "--head", "e2", "-r", "next", "--known", "only")
    known = [fact for fact in facts(place / "graph", "train", "valid") if fact[:2] == ("e2", "next")]
    assert ("no answer" in run(*nothing)) == (not known)


def test_a_checkpoint_without_facts_takes_them_from_its_graph_or_says_so(place: Path, tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph")
    old = tiny_checkpoint(graph, tmp_path / "old")
    with_facts = Predictor.load(old).tails("e3", "next", 24)
    (old / FACTS_FILE).unlink()
    assert Predictor.load(old).tails("e3", "next", 24) == with_facts
    graph.rename(tmp_path / "moved")
    error = fails("predict", str(old), "--head", "e3", "-r", "next")
    assert isinstance(error, CheckpointError)
    assert "was saved without its facts" in error.problem and str(graph) in error.problem and "--data DIR" in error.remedy
    assert Predictor.load(old, str(tmp_path / "moved")).tails("e3", "next", 24) == with_facts
    ask = ("predict", str(old), "--head", "e3", "-r", "next", "--data")
    answers = json.loads(run(*ask, str(tmp_path / "moved"), "-k", "24", "--json"))
    assert [answer["entity"] for answer in answers] == [answer.entity for answer in with_facts]
    other = tiny_graph(tmp_path / "other", first=[b"another"])
    assert "belongs to other entities" in fails(*ask, str(other)).problem
