"""`imf convert` as it is typed: any format into any other, explicit files, what lies beside, places that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.data.formats.ntriples import literal_texts
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.data.graph.graph import RawGraph
from imf_core.errors import ConfigError, DataError, ImfError

NT = """\
<http://example.org/Berlin> <in> <http://example.org/Germany> .
<http://example.org/Berlin> <label> "Berlin \\"city\\"\\n"@de .
<http://example.org/Berlin> <size> "3"^^<http://www.w3.org/2001/XMLSchema#integer> .
_:b0 <in> <New%20York> .
"""


def convert(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: object) -> ImfError:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert isinstance(result.exception, ImfError), (result.exception, result.output)
    return result.exception


def same(first: RawGraph, second: RawGraph) -> bool:
    named = (first.entities, first.relations) == (second.entities, second.relations)
    ours, theirs = first.splits, second.splits
    return named and ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Lines that repeat and overlap, a name of the test file alone, odd bytes, and what lies beside."""
    folder = tmp_path / "mygraph"
    (folder / "images").mkdir(parents=True)
    (folder / "modalities").mkdir()
    (folder / "train.tsv").write_bytes(
        b"\xef\xbb\xbfNew York\tin\tUSA\r\n\r\nA:B|C\tin\tUSA\nNew York\tin\tUSA\ncaf\xe9\tin\tUSA"
    )
    (folder / "valid.tsv").write_text("New York\tin\tUSA\n")
    (folder / "test.tsv").write_text("e\u0301\tnear\té\n")
    (folder / "descriptions.tsv").write_text("USA\ta country\n")
    (folder / "images" / "USA.png").write_bytes(b"picture")
    (folder / "modalities" / "x.npy").write_bytes(b"features")
    (folder / "notes.md").write_text("mine")
    return folder


@pytest.mark.parametrize("first", ["tsv", "openke", "nt"])
@pytest.mark.parametrize("second", ["tsv", "openke", "nt"])
def test_from_any_format_into_any_other(graph: Path, tmp_path: Path, first: str, second: str) -> None:
    convert(graph, tmp_path / "one", "--to", first)
    convert(tmp_path / "one", tmp_path / "two", "--to", second)
    given = read_raw(graph, test=True)
    assert same(read_raw(tmp_path / "one", test=True), given)
    assert same(read_raw(tmp_path / "two", test=True), given)
    assert len(given.train) == 4  # the repeated line stands twice
    assert read_graph(tmp_path / "two").fingerprint == read_graph(graph).fingerprint


def test_it_says_what_was_done_and_what_was_left(graph: Path, tmp_path: Path) -> None:
    said = convert(graph, tmp_path / "out", "--to", "openke")
    for line in (
        f"{graph}: 6 entities, 2 relations, 4 train, 1 valid, 1 test triples",
        "1 entity names differ from another only by Unicode composition",
        "copied: descriptions.tsv, images, modalities",
        "not copied: notes.md",
        f"written as openke: {tmp_path / 'out'}",
    ):
        assert line in said
    assert "literals" not in said
    assert (tmp_path / "out" / "images" / "USA.png").read_bytes() == b"picture"
    assert (tmp_path / "out" / "modalities" / "x.npy").read_bytes() == b"features"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mygraph", "out"]


@pytest.mark.parametrize("target", ["tsv", "openke", "nt"])
def test_literals_stay_usable_as_text(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.nt").write_text(NT)
    (folder / "test.nt").write_text('_:b0 <in> <b> .\n_:b0 <label> "of the test file" .\n')
    (folder / "literals.nt").write_text('# more\n<New%20York> <label> "big" .\n')
    texts = literal_texts(folder)
    assert texts == {"http://example.org/Berlin": 'Berlin "city"\n 3', "New%20York": "big"}
    said = convert(folder, tmp_path / "out", "--to", target)
    assert "3 literal objects skipped" in said
    assert "3 literals of train kept in literals.nt; those of test are left out" in said
    assert "copied: nothing else" in said
    assert "not copied" not in said
    assert literal_texts(tmp_path / "out") == texts
    assert same(read_raw(tmp_path / "out", test=True), read_raw(folder, test=True))
    kept = (tmp_path / "out" / "literals.nt").read_text()
    assert '"Berlin \\"city\\"\\n"@de .' in kept  # language and type stay
    assert '"3"^^<http://www.w3.org/2001/XMLSchema#integer> .' in kept
    convert(tmp_path / "out", tmp_path / "again", "--to", "nt")
    assert literal_texts(tmp_path / "again") == texts


def test_explicit_files_alone_and_in_place_of_the_folders(graph: Path, tmp_path: Path) -> None:
    other = tmp_path / "held.tsv"
    other.write_text("USA\tin\tA:B|C\n")
    said = convert(tmp_path / "alone", "--to", "nt", "--train", graph / "train.tsv", "--test", other)
    assert "4 train, 1 test triples" in said
    assert "copied: nothing else" in said
    alone = read_raw(tmp_path / "alone", test=True)
    assert alone.valid is None
    assert alone.test is not None
    assert alone.test.tolist() == [[1, 0, 2]]
    said = convert(graph, tmp_path / "both", "--to", "tsv", "--valid", other)
    assert (tmp_path / "both" / "valid.tsv").read_bytes() == other.read_bytes()
    assert "not copied: notes.md, valid.tsv" in said


def test_the_bundled_data_set_by_name(tmp_path: Path) -> None:
    convert("unicode", tmp_path / "out", "--to", "nt")
    assert read_raw(tmp_path / "out").train.shape[1] == 3


def test_a_place_that_is_taken_is_left_alone_without_force(graph: Path, tmp_path: Path) -> None:
    convert(graph, tmp_path / "out", "--to", "tsv")
    assert "is there already" in str(fails(graph, tmp_path / "out", "--to", "nt"))
    assert not (tmp_path / "out" / "train.nt").exists()
    convert(graph, tmp_path / "out", "--to", "nt", "--force")
    assert (tmp_path / "out" / "train.nt").exists()
    assert not (tmp_path / "out" / "train.tsv").exists()


@pytest.mark.parametrize("place", [".", "mygraph", "mygraph/out"])
def test_force_never_destroys_the_source(graph: Path, tmp_path: Path, place: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    fails(graph, tmp_path / place, "--to", "nt", "--force")
    fails(tmp_path / "mygraph", "--to", "nt", "--force", "--train", graph / "train.tsv")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (folder / "train.nt").write_text("<urn:imf:a%09b> <r> <c> .\n")
    for target in ("tsv", "openke"):
        error = fails(folder, tmp_path / "out", "--to", target)
        assert isinstance(error, DataError)
        assert "the entity 'a\\tb' holds a tab" in str(error)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_a_wrong_line_of_the_test_file_is_told_and_nothing_is_written(graph: Path, tmp_path: Path) -> None:
    (graph / "test.tsv").write_text("a\tin\tb\na\tb\n")
    error = fails(graph, tmp_path / "out", "--to", "nt")
    assert (error.path, error.line) == (str(graph / "test.tsv"), 2)
    assert not (tmp_path / "out").exists()


def test_places_are_asked_for() -> None:
    for places in (["out"], ["a", "b", "c"]):
        error = fails(*places, "--to", "tsv")
        assert isinstance(error, ConfigError)
        assert "SOURCE and OUT" in error.remedy
    assert CliRunner().invoke(app, ["convert", "a", "b"]).exit_code == 2  # --to is missing
    assert CliRunner().invoke(app, ["convert", "a", "b", "--to", "csv"]).exit_code == 2
