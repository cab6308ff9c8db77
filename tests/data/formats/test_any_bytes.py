"""Any bytes: a reader says what a file holds or names it in a DataError; the fast readers say what the careful ones do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from imf_core.data.formats import openke
from imf_core.data.formats import tsv as names
from imf_core.data.formats.layout import GraphFiles, format_of
from imf_core.data.formats.ntriples import (
    literal_lines,
    literal_texts,
    read_ntriples,
    read_ntriples_carefully,
    read_ntriples_fast,
)
from imf_core.data.formats.openke import read_ids_carefully, read_ids_fast
from imf_core.data.formats.parts import Part
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.data.formats.tsv import read_names_carefully, read_names_fast
from imf_core.data.formats.vocabularies import list_files, read_list
from imf_core.errors import DataError

MARK = b"\xef\xbb\xbf"
SIGNS = [
    b"\t", b"\t", b"\n", b"\n", b"\r\n", b"\r", b" ", b"a", b"b", b"0", b"1", b"2", b"<a>", b"<b>", b"_:c", b" .", b".",
    b'"', b'"x"', b"@en", b"#", b"\\", b"\\u00e9", b"\\uD800", b"<", b">", b"<<( ", b" )>>", b"%41", b"<urn:imf:", b"\x00",
    b"\x0b", b"\x0c", b"\x1c", b"\x1f", b"\x85", b"\xa0", b"\xff", b"\xed\xa0\x80", "é".encode(), "e\u0301".encode(),
    "\u2028".encode(), "²".encode(), "\u0663".encode(), MARK, b"-1", b"+1", b"0x1", b"1e3", b"99999999999999999999",
    b"a\tr\tb\n", b"0 1 0\n", b"<a> <p> <b> .\n", b'<a> <p> "x y"@en .\n', b"NA", b"null", b"'", b",",
]
SOUP = st.lists(st.sampled_from(SIGNS), max_size=14).map(b"".join)
ANY = st.binary(max_size=60) | SOUP | st.text(max_size=20).flatmap(
    lambda text: st.sampled_from(["utf-8", "utf-16", "utf-32-be"]).map(lambda code: text.encode(code, "ignore"))
)


FOLDER = tempfile.TemporaryDirectory()  # a drawn example has no `tmp_path` of its own; each overwrites the one before


def put(content: bytes, name: str = "train.tsv") -> Path:
    path = Path(FOLDER.name) / name
    path.write_bytes(content)
    return path


def fails(path: Path, read: Callable[[], object]) -> DataError | None:
    """The error, checked: it names the file and says what to do."""
    try:
        read()
    except DataError as error:
        found = error
    else:
        return None
    assert path.name in str(found)
    assert found.path.endswith(path.name)
    assert found.remedy
    return found


# --- no reader falls over ---------------------------------------------------------------------------------------------


@examples(300)
@given(content=ANY)
@example(content=b"\xff\xfea\x00\t\x00")
def test_every_reader_takes_any_bytes(content: bytes) -> None:
    for name, reader in (
        ("any.tsv", read_names_carefully), ("any.tsv", names.read_names), ("any.tsv", format_of), ("any.nt", read_ntriples),
        ("any2id.txt", lambda path: openke.read_ids(path, 3, 2)), ("any2id.txt", lambda path: read_ids_carefully(path, 3, 2)),
        *((file, lambda path: read_list(path, "entity", terms=path.suffix == ".txt")) for file in list_files("entity")),
    ):
        path = put(content, name)
        error = fails(path, lambda path=path, reader=reader: reader(path))
        assert error is None or error.line is None or 1 <= error.line <= content.count(b"\n") + content.count(b"\r") + 1


@examples(200)
@given(content=ANY)
def test_fast_readers_take_any_bytes(content: bytes) -> None:
    path = put(content)
    for reader, careful in (
        (read_names_fast, read_names_carefully), (read_ntriples_fast, read_ntriples_carefully),
        (read_ids_fast, lambda path: read_ids_carefully(path, 10**18, 10**18)),
    ):
        if fails(path, lambda careful=careful: careful(path)) is not None:
            assert reader(path) is None  # it has not taken what is wrong for right


@examples(200)
@given(content=ANY, suffix=st.sampled_from(["tsv", "nt"]))
def test_a_graph_of_any_bytes_is_read_or_refused(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"train.{suffix}"
        path.write_bytes(content)
        (Path(place) / f"valid.{suffix}").write_bytes(b"a\tr\tb\n" if suffix == "tsv" else b"<a> <r> <b> .\n")
        for read in (read_raw, read_graph):
            problem = None
            try:
                read(place)
            except DataError as error:
                problem = error
            if problem is not None:
                assert place in str(problem)
                assert problem.remedy


@examples(200)
@given(content=SOUP)
def test_literals_of_any_bytes_are_read_or_refused_and_their_copy_says_the_same(content: bytes) -> None:
    path = put(content, "any.nt")
    files = GraphFiles(train=path)
    if fails(path, lambda: literal_texts(files)) is None:
        copy = put("".join(f"{line}\n" for line in literal_lines(files)).encode(), "copy.nt")
        assert literal_texts(GraphFiles(train=copy)) == literal_texts(files)


# --- a wrong line is named --------------------------------------------------------------------------------------------


@examples(100)
@given(
    before=st.lists(st.sampled_from([b"", b"a\tr\tb", MARK + b"x\tr\ty", b" \t "]), max_size=6),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
@pytest.mark.parametrize("wrong", [b"a\tb", b"a\tr\tb\tc", b"a\t\tb", b"a r b"])
def test_the_line_of_names_is_right_whatever_stands_before(before: list[bytes], end: bytes, wrong: bytes) -> None:
    path = put(end.join([*before, wrong, b"a\tr\tb"]))
    for reader in (read_names_carefully, names.read_names):
        error = fails(path, lambda reader=reader: reader(path))
        assert error is not None
        assert error.line == len(before) + 1


@examples(100)
@given(
    before=st.lists(st.sampled_from([b"", b"# no", b"<a> <p> <b> .", b'<a> <p> "\\"x" .', b"_:a\t<p>\t<b>."]), max_size=6),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@pytest.mark.parametrize(
    "wrong",
    [
        b"<a> <p> .", b"a p b .", b'<a> <p> "open', b"<a> <p> <b> . <c> <p> <d> .", b"<a> <p> <b", b'"a" <p> <b> .',
        b"<a\xff> <p> <b> .", b"<a> <p> <<( <a> <p> <b> )>> .",
    ],
)
def test_the_line_of_a_statement_is_right_whatever_stands_before(before: list[bytes], end: bytes, wrong: bytes) -> None:
    path = put(end.join([*before, wrong, b"# \" .", b"<a> <p> <b> ."]), "any.nt")
    error = fails(path, lambda: read_ntriples(path))
    assert error is not None
    assert error.line == len(before) + 1


# --- fast and careful agree -------------------------------------------------------------------------------------------


def same(first: Part, second: Part) -> bool:
    named = (first.entities, first.relations) == (second.entities, second.relations)
    return named and first.triples.dtype == second.triples.dtype and np.array_equal(first.triples, second.triples)


NAME = st.sampled_from(
    [b"a", b"b", b" c ", b"NA", b'"', b"\xff", MARK, b"\x00", "é".encode(), b"\r", b" ", b"", "\u00a0".encode()]
)
ROWS = st.lists(st.tuples(NAME, NAME, NAME).map(b"\t".join) | st.sampled_from([b"", b" ", b"a\tb"]), max_size=12)
END = st.sampled_from([b"\n", b"\n", b"\r\n"])


@examples(400)
@given(rows=ROWS, end=END, mark=st.sampled_from([b"", MARK]), last=st.booleans())
@example(rows=[MARK + b"a\tr\tb"], end=b"\n", mark=MARK, last=True)
@example(rows=[b"a\tr\tb"] * 3, end=b"\r\n", mark=b"", last=True)
def test_readers_of_names_agree(rows: list[bytes], end: bytes, mark: bytes, last: bool) -> None:
    path = put(mark + end.join(rows) + end * last)
    fast = read_names_fast(path)
    if fast is not None:
        assert same(fast, read_names_carefully(path))


@examples(400)
@given(content=SOUP)
def test_readers_of_names_agree_on_any_soup(content: bytes) -> None:
    path = put(content)
    fast = read_names_fast(path)
    if fast is not None:
        assert same(fast, read_names_carefully(path))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blocks_meet_anywhere(monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    """A line end, or the two signs of one, on the border of two blocks; a name whose pieces lie in two."""
    draw = np.random.default_rng(0).integers(0, 40, (300, 3))
    path = put(end.join(b"\t".join(b"n%d" % 7**number for number in row) for row in draw.tolist()))
    expected = read_names_carefully(path)
    for block in range(150, 190):
        monkeypatch.setattr(names, "_BLOCK", block)
        fast = read_names_fast(path)
        assert fast is not None
        assert same(fast, expected)


def test_ordinary_files_are_read_the_fast_way() -> None:
    """Agreement would be worth little if the fast reader always stepped back."""
    assert read_names_fast(put(MARK + "New York\tin\tUSA\r\n\r\nA:B|C\tin\té".encode())) is not None
    assert read_ntriples_fast(put(MARK + "<a> <p> _:b .\r\n\r\n<http://é/a#b> <urn:imf:%41> <\\u00e9> .".encode())) is not None
    assert read_ids_fast(put(b"2\n0 1 0\n2 1 1\n")) is not None
    assert read_ids_fast(put(b"0\t1\t0\r\n2\t1\t1\r\n")) is not None


TERM = st.sampled_from([
    b"<a>", b"<b>", b"<p>", b"_:a", b"_:b.c", b"_:a.", b"_:\xc3\xa9", b"<\\u0061>", b"<\\u003E>", b"<\\uD800>", b"<urn:imf:a>",
    b"<urn:imf:%41>", b"<urn:imf:%20>", b"<>", b"<a", b"a>", b"<a>.#b>", b"_:a.#", b"<a><b>", b"<a>\t<b>", b"<a\"b>", b"<<a>>",
    b'"x"', b"<\xff>", b"<\x00>", "<\u00a0>".encode(), b"#", b"", b"<_:a>", b"<http://x/%41>", b"<\\u0020>",
])
DOT = st.sampled_from([b".", b".", b".", b". ", b". #", b"", b". <a> <b> <a> ."])
STATEMENT = st.tuples(TERM, TERM, TERM, DOT).map(b" ".join)
PLAIN = st.tuples(*(st.sampled_from([b"<a>", b"<b>", b"<p>", b"<\xc3\xa9>"]),) * 3).map(lambda terms: b" ".join(terms) + b" .")


@examples(400)
@given(
    rows=st.lists(PLAIN | STATEMENT | st.sampled_from([b"", b" ", b"# a b .", b". . . ."]), max_size=5), end=END,
    mark=st.sampled_from([b"", MARK]), last=st.booleans(),
)
@example(rows=[b"<a>.#b> <p> <b> ."], end=b"\n", mark=b"", last=True)
@example(rows=[b"<a> <p> _:a.# ."], end=b"\n", mark=b"", last=True)
@example(rows=[b"<a> <p> <urn:imf:a> ."], end=b"\n", mark=b"", last=True)
def test_readers_of_n_triples_agree(rows: list[bytes], end: bytes, mark: bytes, last: bool) -> None:
    path = put(mark + end.join(rows) + end * last, "any.nt")
    fast = read_ntriples_fast(path)
    if fast is not None:
        assert same(fast, read_ntriples_carefully(path))


@examples(300)
@given(term=TERM, place=st.integers(0, 2))
def test_readers_of_n_triples_agree_on_every_term(term: bytes, place: int) -> None:
    terms = [b"<x>", b"<y>", b"<z>"]
    terms[place] = term
    path = put(b" ".join(terms) + b" .\n", "any.nt")
    fast = read_ntriples_fast(path)
    if fast is not None:
        assert same(fast, read_ntriples_carefully(path))


IDS = st.sampled_from(
    [b"0", b"1", b"2", b"3", b"007", b"-1", b"+1", b"", b" ", b"x", b"0x1", b"99999999999999999999", "²".encode()]
)
ID_ROWS = st.lists(
    st.tuples(st.tuples(IDS, IDS, IDS), st.sampled_from([b" ", b"\t", b"  "])).map(lambda row: row[1].join(row[0]))
    | st.sampled_from([b"0 1 0", b"2 1 1", b"0 2 1", b"", b" ", b"0 1"]),
    max_size=8,
)


@examples(400)
@given(
    rows=ID_ROWS, end=END, last=st.booleans(), count=st.none() | st.integers(-1, 1),
    odd=st.sampled_from([b"", b"", MARK, b" "]),
)
@example(rows=[], end=b"\n", last=True, count=None, odd=b"")
def test_readers_of_ids_agree(rows: list[bytes], end: bytes, last: bool, count: int | None, odd: bytes) -> None:
    first = [] if count is None else [b"%d" % (len(rows) + count)]
    path = put(odd + end.join([*first, *rows]) + end * last, "any2id.txt")
    fast = read_ids_fast(path)
    if fast is None or (len(fast[0]) and fast[0].max() > 2):  # ranges are left to the careful reader
        return
    triples, notes = read_ids_carefully(path, 3, 3)
    assert np.array_equal(fast[0], triples)
    assert fast[0].dtype == triples.dtype
    assert fast[1] == notes
