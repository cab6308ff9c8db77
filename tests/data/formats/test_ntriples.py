"""N-Triples by the book and beyond: terms, names, literals, lists beside them, wrong lines in large files."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_core.config import DataConfig
from imf_core.data.formats import ntriples
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.ntriples import literal_lines, literal_texts, read_ntriples
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.errors import DataError
from imf_core.prepare.link_data import prepare


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("<http://a.b/c.d#e.f> <p> <b> .", ("http://a.b/c.d#e.f", "b")),
        ("<a><p><b>.", ("a", "b")),
        ("  <a>\t<p>\t<b>\t.  # said", ("a", "b")),
        ("_:x.1 <p> _:y .", ("_:x.1", "_:y")),
        ("<\\u00e9\\U0001F600> <p> <é> .", ("é😀", "é")),
        ("<New%20York> <p> <urn:imf:New%20York> .", ("New%20York", "New York")),
        ("<urn:imf:new york> <p> <urn:imf:%2f> .", ("urn:imf:new york", "urn:imf:%2f")),  # not what is written here: as it is
        ("<_:x> <p> _:x .", ("<_:x>", "_:x")),
    ],
)
def test_terms_and_names(tmp_path: Path, statement: str, names: tuple[str, ...]) -> None:
    part = read_ntriples(write(tmp_path / "train.nt", statement))
    assert part.entities == names
    assert part.triples.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_mark_and_line_ends(tmp_path: Path, end: str) -> None:
    lines = ["\ufeff<a> <p> <b> .", "", "  ", "# <x> <p> <y> .", "<b> <p> <a> ."]
    part = read_ntriples(write(tmp_path / "a.nt", end.join(lines)))
    assert (part.entities, part.triples.tolist()) == (("a", "b"), [[0, 0, 1], [1, 0, 0]])


def test_a_blank_node_is_the_same_in_all_files(tmp_path: Path) -> None:
    write(tmp_path / "train.nt", "_:n <p> <a> .\n")
    write(tmp_path / "valid.nt", "<a> <p> _:n .\n")
    raw = read_raw(tmp_path)
    assert raw.entities.names == ("_:n", "a")
    assert raw.valid is not None
    assert raw.valid.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("batch", [1, 40, 1 << 22])
@pytest.mark.parametrize(
    "wrong", ['<a> <p> "runs on', "<a> <p\n> <b> .", "<a> <p> <b>", "a\tp\tb", "<a> <p> <b> . <c> <p> <d> ."]
)
def test_the_wrong_line_is_named_in_any_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, wrong: str) -> None:
    monkeypatch.setattr(ntriples, "_BATCH", batch)
    path = write(tmp_path / "a.nt", "<a> <p> <b> .\r\n# no\n\n" + wrong + '\n# "> <b> .\n<a> <p> <b> .\n')
    with pytest.raises(DataError) as caught:
        read_ntriples(path)
    assert (caught.value.path, caught.value.line) == (str(path), 4)
    assert f"{path}, line 4: no statement" in str(caught.value)


def test_lists_beside_n_triples_are_terms(tmp_path: Path) -> None:
    write(tmp_path / "train.nt", "<urn:imf:New%20York> <in> <http://x/USA> .\n")
    write(tmp_path / "entities.txt", "http://x/USA\n_:late\nurn:imf:New%20York\n")
    raw = read_raw(tmp_path)
    assert raw.entities.names == ("http://x/USA", "_:late", "New York")
    assert raw.train.tolist() == [[2, 0, 0]]
    write(tmp_path / "entities.txt", "http://x/USA\n")
    with pytest.raises(DataError, match=r"'New York' is missing in entities\.txt"):
        read_raw(tmp_path)


# --- literals ---------------------------------------------------------------------------------------------------------

SAID = '<a> <p> <b> .\n<a> <label> "Anna"@en .\n<b> <label> "  " .\n<a> <age> "7"^^<urn:int> .\n<new> <label> "no entity" .\n'


def test_literals_are_counted_where_they_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / "train.nt", SAID + "<b> <p> <a> .\n")
    write(tmp_path / "valid.nt", '<a> <p> <a> .\n<a> <label> "v" .\n')
    write(tmp_path / "test.nt", '<b> <p> <b> .\n<a> <label> "t" .\n<b> <label> "t" .\n')
    said = "literal objects skipped (data.text=literals uses those of train as text)"
    assert read_raw(tmp_path, test=True).notes == (f"7 {said}",)
    assert read_raw(tmp_path).notes == (f"5 {said}",)  # those of test are not told before it is opened
    assert read_graph(tmp_path).entities.names == ("a", "b")


def test_literals_are_texts_on_request(tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    write(folder / "train.nt", SAID)
    write(folder / "valid.nt", '<a> <p> <a> .\n<b> <label> "of validation" .\n')
    assert literal_texts(folder) == {"a": "Anna 7", "new": "no entity"}
    (text,) = prepare(DataConfig(path=str(folder), text="literals")).modalities
    assert (text.mask.tolist(), text.unknown) == ([True, False], 1)


def test_literals_come_from_a_file_of_their_own_too(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "a\tp\tb\n")
    write(tmp_path / "valid.tsv", "b\tp\ta\n")
    assert list(literal_lines(tmp_path)) == []
    with pytest.raises(DataError, match=r"has no N-Triples file, so it has no literals") as caught:
        literal_texts(tmp_path)
    assert "literals.nt" in caught.value.remedy
    write(tmp_path / "literals.nt", '<urn:imf:b> <label> "Ben" .\n<a> <knows> <b> .\n')
    assert literal_texts(tmp_path) == {"b": "Ben"}
    (text,) = prepare(DataConfig(path=str(tmp_path), text="literals")).modalities
    assert text.mask.tolist() == [False, True]
    write(tmp_path / "literals.nt", '<b> <label> "Ben\n')
    with pytest.raises(DataError, match=r"literals\.nt, line 1"):
        literal_texts(tmp_path)


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ('<a> <p> "x\\ty\\"\\r"@de-at .', '<urn:imf:a> <urn:imf:p> "x\\ty\\"\\r"@de-at .'),
        ('_:b <http://x/p> "1"^^<http://x/int> .', '_:b <http://x/p> "1"^^<http://x/int> .'),
        ('<a> <p> "1"^^<no iri> .', '<urn:imf:a> <urn:imf:p> "1" .'),
        ('<a b> <p> "" .', '<urn:imf:a%20b> <urn:imf:p> "" .'),
    ],
)
def test_literals_are_written_so_that_they_are_read_again(tmp_path: Path, statement: str, line: str) -> None:
    files = GraphFiles(train=write(tmp_path / "a.nt", statement))
    assert list(literal_lines(files)) == [line]
    copy = GraphFiles(train=write(tmp_path / "b.nt", line))
    assert literal_texts(copy) == literal_texts(files)
