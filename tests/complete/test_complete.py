"""The most certain new facts: those of a brute-force search, none of them known, whatever the blocks, in bounded memory."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import fails, run
from PIL import Image
from tiny_checkpoint import COUNT, tiny_checkpoint, tiny_graph, tiny_pool
from torch.utils._python_dispatch import TorchDispatchMode

from imf_core.complete.complete import NEAR, complete
from imf_core.complete.page import completion_page
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import DataError, ImfError, VocabularyError
from imf_core.predict import Predictor

EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("complete")
    graph = tiny_graph(folder / "graph", first=[EVIL.encode(), b"\xff\xfe"])
    with (graph / "train.tsv").open("a") as train, (graph / "relations.txt").open("a") as relations:
        train.writelines(f"e{i}\tfriend\te{i + step}\n" for i in range(2, 18) for step in (2, 3, 5))
        relations.write("friend\n")
    (graph / "images").mkdir()
    for number in range(2, 12):
        Image.new("RGB", (500, 300), (20 * number, 80, 120)).save(graph / "images" / f"e{number}.png")
    (graph / "images" / "e3.png").write_bytes(b"no picture")
    return tiny_pool(graph, folder)


@pytest.fixture(scope="module", params=["ce", "bce", "pool"])
def predictor(request: pytest.FixtureRequest, place: Path) -> Predictor:
    return open_predictor(place / request.param)


def triples(place: Path, *splits: str) -> set[tuple[str, ...]]:
    lines = [
        line for split in splits
        for line in (place / "graph" / f"{split}.tsv").read_text(errors="surrogateescape").splitlines()
    ]
    return {tuple(line.split("\t")) for line in lines}


def answers_by_role(facts: set[tuple[str, ...]]) -> dict[tuple[str, str], dict[str, set[str]]]:
    """For each relation and direction the answers of every entity."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for head, relation, tail in facts:
        found.setdefault((relation, "tail"), {}).setdefault(head, set()).add(tail)
        found.setdefault((relation, "head"), {}).setdefault(tail, set()).add(head)
    return found


def brute_force(predictor: Predictor, place: Path, relation: str | None = None) -> dict[tuple[str, str, str], float]:
    """Every new triple with the share in the surer of its questions, asked one by one, if they make sense and are open."""
    train, known = triples(place, "train"), triples(place, "train", "valid")
    roles, answered, found = answers_by_role(train), answers_by_role(known), {}
    loops = {r for h, r, t in train if h == t}
    single = {role for role, of in roles.items() if sum(len(many) == 1 for many in of.values()) >= 0.95 * len(of)}
    for (asked, end), of in roles.items():
        implying = [other for other in roles.values() if 2 * len(other.keys() & of.keys()) >= len(other)]
        opposite = (asked, "head" if end == "tail" else "tail")
        for name in predictor.checkpoint.entities.names if relation in (None, asked) else ():
            sensible = any(name in other for other in implying)
            if not sensible or ((asked, end) in single and name in answered[asked, end]):
                continue
            for one in (predictor.tails if end == "tail" else predictor.heads)(name, asked, COUNT, "mark"):
                triple = (name, asked, one.entity) if end == "tail" else (one.entity, asked, name)
                taken = opposite in single and one.entity in answered[opposite]
                if triple not in known and not taken and (triple[0] != triple[2] or asked in loops):
                    found[triple] = max(one.score, found.get(triple, 0.0))
    return found


@pytest.mark.parametrize("relation", [None, "[rest]"])
def test_it_finds_what_brute_force_finds(predictor: Predictor, place: Path, relation: str | None) -> None:
    wanted = brute_force(predictor, place, relation)
    for top in (1, 30, 10_000):
        facts = complete(predictor, top, relation).facts
        shares = {(fact.head, fact.relation, fact.tail): fact.share for fact in facts}
        assert len(facts) == len(shares) == min(top, len(wanted))
        best = sorted(wanted.values(), reverse=True)[: len(facts)]
        assert [fact.share for fact in facts] == pytest.approx(best, abs=1e-5)
        assert all(wanted[triple] == pytest.approx(share, abs=1e-5) for triple, share in shares.items())
        assert not shares.keys() & triples(place, "train", "valid")
    assert shares.keys() == wanted.keys() and shares.keys() & triples(place, "test")  # what is held back is new


def test_scores_and_reasons_are_those_of_the_predictor(predictor: Predictor, place: Path) -> None:
    train = triples(place, "train")
    for fact in complete(predictor, 25).facts:
        (scored,) = predictor.score([(fact.head, fact.relation, fact.tail)])
        assert fact.score == pytest.approx(scored.score, abs=1e-4) and not scored.known
        assert fact.score == pytest.approx(math.log(fact.share / (1 - fact.share)), abs=1e-4)
        if fact.asked == "tail":
            answers = {one.entity: one for one in predictor.tails(fact.head, fact.relation, COUNT)}[fact.tail]
        else:
            answers = {one.entity: one for one in predictor.heads(fact.tail, fact.relation, COUNT)}[fact.head]
        assert fact.branch_shares == pytest.approx(answers.branch_scores, abs=1e-5)
        assert fact.weights == pytest.approx(answers.weights, abs=1e-5)
        same_head = {triple for triple in train if triple[:2] == (fact.head, fact.relation)}
        same_tail = {triple for triple in train if triple[1:] == (fact.relation, fact.tail)}
        for shown, possible in ((fact.same_head, same_head), (fact.same_tail, same_tail)):
            assert set(shown) <= possible and len(shown) == len(set(shown)) == min(NEAR, len(possible))
        others = [triple[2] for triple in fact.same_head]
        assert others == sorted(others, key=lambda name: -closeness(predictor, name, fact.tail))


def closeness(predictor: Predictor, one: str, other: str) -> float:
    index, table = predictor.checkpoint.entities.index, predictor.checkpoint.model.structure.detach()
    return float(torch.cosine_similarity(table[index[one]], table[index[other]], dim=0))


def test_blocks_change_nothing(predictor: Predictor) -> None:
    wanted = complete(predictor, 40)
    for block in (1, 5, 64):
        found = complete(predictor, 40, block=block)
        assert [(f.head, f.relation, f.tail, f.asked) for f in found.facts] == [
            (f.head, f.relation, f.tail, f.asked) for f in wanted.facts
        ]
        assert found.questions == wanted.questions


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_no_table_of_all_pairs_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predictor's budget bounds every tensor, however many questions there are."""
    count = 640
    graph = tmp_path / "wide"
    graph.mkdir()
    lines = [f"e{i}\tnear\te{(i + step) % count}\n" for i in range(count) for step in (1, 7)]
    (graph / "train.tsv").write_text("".join(lines[:1240]))
    (graph / "valid.tsv").write_text("".join(lines[1240:]))
    folder = tiny_checkpoint(graph, tmp_path / "best", metrics={})
    with Largest() as whole:
        wanted = complete(open_predictor(folder), 50, block=2000)
    monkeypatch.setattr("imf_core.predict.BUDGET", 32 * 8 * count)  # 32 questions of a block
    with Largest() as blocked:
        found = complete(open_predictor(folder), 50)
    assert [(f.head, f.tail, f.asked) for f in found.facts] == [(f.head, f.tail, f.asked) for f in wanted.facts]
    assert found.facts[0].probability is not None
    assert whole.numbers >= 600 * count  # the spy sees such a table
    assert blocked.numbers <= 2 * 32 * count < count * count / 8


def test_a_relation_with_a_loop_may_propose_loops(tmp_path: Path) -> None:
    """The same to single questions in both directions, unless everything is to be marked."""
    for name, loop in (("plain", ""), ("looped", "a\tr\ta\n")):
        graph = tmp_path / name
        graph.mkdir()
        (graph / "train.tsv").write_text("".join(f"{h}\tr\t{t}\n" for h, t in ("ab", "ac", "bc", "bd", "cd", "ca")) + loop)
        (graph / "valid.tsv").write_text("a\tr\td\n")
        predictor = open_predictor(tiny_checkpoint(graph, tmp_path / f"{name}-best", metrics={}))
        facts = complete(predictor, 1000).facts
        loops = {(fact.head, fact.relation) for fact in facts if fact.head == fact.tail}
        assert loops == ({("b", "r"), ("c", "r"), ("d", "r")} if loop else set())
        for ask in (predictor.tails, predictor.heads):
            itself = {given for given in "abcd" if given in [answer.entity for answer in ask(given, "r")]}
            assert itself == (set("bcd") if loop else set())
            assert all(given in [answer.entity for answer in ask(given, "r", known="mark")] for given in "abcd")


def test_wrong_wishes_are_refused(predictor: Predictor) -> None:
    with pytest.raises(ImfError, match="top must be at least 1, found 0"):
        complete(predictor, 0)
    with pytest.raises(VocabularyError, match="did you mean 'next'"):
        complete(predictor, 3, "nxt")


# --- the page and the command -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_escaped_and_loads_nothing(place: Path) -> None:
    predictor = open_predictor(place / "ce")
    completion = complete(predictor, 10_000)
    assert any(EVIL in (fact.head, fact.tail) for fact in completion.facts)
    text = completion_page(predictor, completion, "probability: <b>none</b>")
    page = Page(text)
    assert page.tags["article"] == len(completion.facts)
    assert page.tags["script"] == page.tags["b"] == 0 and html.escape("<script>alert(1)") in text
    assert EVIL in page.words and "the text of " + EVIL in page.words and r"\udcff\udcfe" in page.words
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    sources = {value for _, name, value in page.attributes if name in ("src", "href", "srcset")}
    assert len(sources) == 9 and all(value.startswith("data:image/jpeg;base64,") for value in sources)  # one is no picture
    assert "url(" not in text and "@import" not in text
    for source in sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert max(picture.size) <= 96


def test_the_page_says_why(place: Path) -> None:
    predictor = open_predictor(place / "ce")
    completion = complete(predictor, 10_000)
    page = Page(completion_page(predictor, completion, "no probability: few"))
    words = " ".join(page.words.split())
    for fact in completion.facts:
        assert f"score {fact.score:.2f}" in words and f"share {fact.share:.3f}, asked for the {fact.asked}" in words
        assert all(f"{branch} {share:.3f}" in words for branch, share in fact.branch_shares.items())
        near = [" · ".join(triple) for triple in (*fact.same_head, *fact.same_tail)]
        assert all(line.encode("utf-8", "backslashreplace").decode() in words for line in near)
        best = max(fact.weights, key=lambda name: fact.weights[name] * fact.branch_shares[name])
        assert fact.branch == best
    assert sum(value == "says" for _, name, value in page.attributes if name == "class") == len(completion.facts)
    assert any(fact.same_head for fact in completion.facts) and any(fact.same_tail for fact in completion.facts)
    assert "no probability: few" in words and f"from {completion.questions} questions" in words


def test_the_page_calls_nothing_certain_that_is_not(place: Path) -> None:
    predictor = open_predictor(place / "ce")
    completion = complete(predictor, 3)
    facts = [replace(fact, probability=chance) for fact, chance in zip(completion.facts, (0.9999, 1.0, 0.25), strict=True)]
    words = Page(completion_page(predictor, replace(completion, facts=tuple(facts)), "")).words
    assert [word for word in ("99.9 %", "100.0 %", "25.0 %") if words.count(word) != 1] == []


def test_without_its_folder_the_page_has_names_alone(place: Path, tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph")
    predictor = open_predictor(tiny_checkpoint(graph, tmp_path / "best"))
    graph.rename(tmp_path / "moved")
    completion = complete(predictor, 5)
    page = Page(completion_page(predictor, completion, ""))
    assert page.tags["img"] == 0 and "the text of" not in page.words and page.tags["article"] == 5
    again = open_predictor(tmp_path / "best", str(tmp_path / "moved"))
    assert "the text of" in Page(completion_page(again, complete(again, 5), "")).words


def test_the_command_writes_table_and_page(predictor: Predictor, place: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "new" / "facts.tsv", tmp_path / "new" / "facts.html"
    folder = str(predictor.checkpoint.path)
    said = run("complete", folder, "--top", "7", "--out", str(out), "--page", str(page))
    facts = complete(predictor, 7).facts
    assert "7 new facts, from" in said and "8 validation facts are too few" in said
    rows = [line.split("\t") for line in out.read_text(errors="surrogateescape").splitlines()]
    branches = list(facts[0].branch_shares)
    assert rows[0] == ["head", "relation", "tail", "score", "probability", "asked", "share", "branch", *branches]
    assert [tuple(row[:3]) for row in rows[1:]] == [(fact.head, fact.relation, fact.tail) for fact in facts]
    assert {row[4] for row in rows[1:]} == {""} and [row[7] for row in rows[1:]] == [fact.branch for fact in facts]
    assert Page(page.read_text()).tags["article"] == 7
    assert re.search(r"[│ ]next[ │]", run("complete", folder, "--top", "3", "--relation", "next"))
    assert isinstance(fails("complete", folder, "--out", str(tmp_path / "facts.csv")), DataError)
    assert "name it facts.html" in fails("complete", folder, "--page", str(tmp_path / "facts.htm")).remedy


def test_probabilities_order_as_the_facts(tmp_path: Path) -> None:
    graph = tiny_graph(tmp_path / "graph")
    train, valid = ((graph / f"{split}.tsv").read_text().splitlines(keepends=True) for split in ("train", "valid"))
    more = [f"e{i}\tfar\te{(i + 5) % COUNT}\n" for i in range(COUNT)]
    (graph / "train.tsv").write_text("".join(train[:25] + more[:12]))
    (graph / "valid.tsv").write_text("".join(train[25:] + more[12:] + valid))
    (graph / "relations.txt").unlink()
    predictor = open_predictor(tiny_checkpoint(graph, tmp_path / "best"))
    facts = complete(predictor, 50).facts
    chances = [fact.probability for fact in facts]
    assert chances == sorted(chances, reverse=True) and None not in chances
    assert chances == pytest.approx(predictor.calibration.probability([fact.score for fact in facts]).tolist())
