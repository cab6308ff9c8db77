"""`imf compare`: two checkpoints on the same triples, in words and as JSON; what cannot be compared is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import tiny_checkpoint, tiny_graph
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.commands.model.compare import SEED_WORDS
from imf_core.data.graph.graph import TEST_WORDS
from imf_core.errors import ConfigError, DataError, ImfError, VocabularyError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph and the checkpoints `a` and `b` of two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    graph = tiny_graph(folder / "graph")
    tiny_checkpoint(graph, folder / "a", seed=0)
    tiny_checkpoint(graph, folder / "b", seed=1)
    return folder


def run(*arguments: object) -> tuple[str, str]:
    """What the command prints and what it warns of; it must succeed."""
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split()), " ".join(result.stderr.split())


def facts(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json")[0])
    return found


def fails(*arguments: object) -> ImfError:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert isinstance(result.exception, ImfError), result.exception
    return result.exception


def test_a_checkpoint_does_not_differ_from_itself(place: Path) -> None:
    found = facts(place / "a", place / "a")
    assert (found["p"], found["difference"], found["interval"], found["real"]) == (1.0, 0.0, [0.0, 0.0], False)
    assert (found["better"], found["equal"], found["worse"]) == (0, 16, 0)
    shown, _ = run(place / "a", place / "a")
    assert "the difference may be chance (p = 1)" in shown and SEED_WORDS in shown


def test_figures_are_those_of_evaluate(place: Path) -> None:
    """8 triples, both directions; each model's MRR, by slice too, is the one that `imf evaluate` gives."""
    found = facts(place / "a", place / "b")
    assert (found["triples"], found["queries"], found["exact"], found["warnings"]) == (8, 16, True, [])
    assert found["mrr"][0] != found["mrr"][1]
    for side, name in enumerate(("a", "b")):
        shown = CliRunner().invoke(app, ["evaluate", str(place / name), "--json"]).stdout
        alone = json.loads(shown)
        assert found["mrr"][side] == pytest.approx(alone["mrr"], abs=1e-12)
        for slice_name, part in alone["slices"].items():
            assert found["slices"][slice_name]["queries"] == part["count"]
            assert found["slices"][slice_name]["mrr"][side] == pytest.approx(part["mrr"], abs=1e-12)
    assert found["better"] + found["equal"] + found["worse"] == 16
    for pair in (("head", "tail"), ("1-1", "1-N", "N-1", "N-N"), ("cold", "warm")):
        for key in ("queries", "better", "equal", "worse"):
            assert sum(found["slices"][name][key] for name in pair) == found[key]


def test_exchanged_checkpoints_give_the_mirror_image(place: Path) -> None:
    there, back = facts(place / "a", place / "b"), facts(place / "b", place / "a")
    assert back["difference"] == -there["difference"] != 0
    assert back["p"] == there["p"]
    assert back["interval"] == pytest.approx([-there["interval"][1], -there["interval"][0]], abs=1e-12)
    assert (back["better"], back["worse"]) == (there["worse"], there["better"])


def test_words_say_what_the_figures_say(place: Path) -> None:
    found = facts(place / "a", place / "b")
    shown, warned = run(place / "a", place / "b")
    verdict = "is real" if found["real"] else "may be chance"
    assert f"the difference {verdict} (p = {found['p']:.2g})" in shown
    assert f"A - B: {found['difference']:+.4f} MRR, 95 % interval {found['interval'][0]:+.4f}" in shown
    assert f"A ranks {found['better']} of 16 queries higher than B, {found['equal']} the same, {found['worse']} lower" in shown
    assert "│ head │ 8 │" in shown and "│ all │ 16 │" in shown
    assert "warning" not in warned


def test_too_few_triples_are_told(place: Path, tmp_path: Path) -> None:
    few = tiny_graph(tmp_path / "few")
    valid = few / "valid.tsv"
    valid.write_bytes(b"".join(valid.read_bytes().splitlines(keepends=True)[:2]))
    shown, warned = run(place / "a", place / "b", "--data", few)
    assert "so few triples differ that p cannot be below" in shown
    assert "A (" in warned and "was not trained on these triples" in warned  # the fingerprint is another one


def test_test_is_opened_with_a_warning(place: Path) -> None:
    shown, warned = run(place / "a", place / "b", "--split", "test")
    assert TEST_WORDS in warned and "test: MRR" in shown
    result = CliRunner().invoke(app, ["evaluate", "--help"], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert TEST_WORDS in result.stdout  # the same words
    assert facts(place / "a", place / "b", "--split", "test")["warnings"] == [TEST_WORDS]


def test_other_names_are_refused_by_name(place: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tiny_graph(tmp_path / "other", first=[b"x0", b"x1"]), tmp_path / "c")
    error = fails(place / "a", other)
    assert isinstance(error, VocabularyError)
    assert "have different entities: only in A: 'e0', 'e1'; only in B: 'x0', 'x1'" in error.problem
    assert str(place / "a") in error.problem and str(other) in error.problem and error.remedy


def test_names_in_another_order_and_other_relations_are_refused(place: Path, tmp_path: Path) -> None:
    swapped = tiny_checkpoint(tiny_graph(tmp_path / "swapped", first=[b"e1", b"e0"]), tmp_path / "c")
    assert "the same names in another order; id 0 is 'e0' in A and 'e1' in B" in fails(place / "a", swapped).problem
    graph = tiny_graph(tmp_path / "more")
    (graph / "relations.txt").write_text("next\n[rest]\nu\nv\nw\nx\ny\n")
    many = fails(place / "a", tiny_checkpoint(graph, tmp_path / "d")).problem
    assert "have different relations: only in B: 'u', 'v', 'w' and 2 more" in many


def test_another_graph_another_split_and_no_checkpoint_are_refused(place: Path, tmp_path: Path) -> None:
    other = tiny_graph(tmp_path / "other", first=[b"x0"])
    assert "belongs to other entities" in fails(place / "a", place / "b", "--data", other).problem
    error = fails(place / "a", place / "b", "--split", "train")
    assert isinstance(error, ConfigError) and "unknown split 'train'" in error.problem
    assert "is missing" in fails(place / "a", tmp_path).problem
    untested = tiny_graph(tmp_path / "untested")
    (untested / "test.tsv").unlink()
    error = fails(place / "a", place / "b", "--split", "test", "--data", untested)
    assert isinstance(error, DataError) and "no test split" in error.problem
