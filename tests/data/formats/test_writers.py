"""Writing graphs: through any format and back nothing changes; what a format cannot hold is refused; never half a folder."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from imf_core.data.formats import writers
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.data.formats.terms import in_brackets, name_of, term_of
from imf_core.data.formats.writers import Target, check_place, copy_beside, new_folder, write_splits
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.errors import DataError

HARD = [
    "New York", "A:B|C", "é", "e\u0301", "\ufeffmark", "\ufeff", "a ", " a", '"quoted"', "back\\slash", "<a>", "_:b0", "_:",
    "_:é", "http://example.org/a.b#c", "http://example.org/a b", "http://example.org/%41", "urn:imf:a", "urn:imf:%41",
    "urn:imf:", "urn:x", "URN:IMF:a", "caf\udce9", "\udcff\udcfe", "\x00", "3", "0", "#", "# a .", "a .", "\u2028a", "a\x85",
    "a\x0b", "mailto:\udcff", "http://\ufdd0", "http://a/\U000f0000", "a\\u0041", "http://a/\\u0041",
]
BROKEN = ["a\tb", "a\nb", "a\rb", "", " ", "\u00a0", "\r", "\x1f"]
LETTERS = st.characters(exclude_categories=["Cs"]) | st.integers(0x80, 0xFF).map(lambda byte: chr(0xDC00 + byte))
FREE = st.text(LETTERS, max_size=6)


def bytewise(name: str) -> bool:
    """Names are bytes that were read: escapes that together would be valid UTF-8 are never read."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == name


NAMES = st.lists((st.sampled_from(HARD) | FREE).filter(bytewise), min_size=1, max_size=8, unique=True)


def holds(target: Target, *names: str) -> bool:
    return target is Target.NT or all(name.strip() and not set(name) & set("\t\r\n") for name in names)


@st.composite
def graphs(draw: st.DrawFn, names: st.SearchStrategy[list[str]] = NAMES) -> RawGraph:
    entities, relations = draw(names), draw(names)
    row = st.tuples(*(st.integers(0, len(part) - 1) for part in (entities, relations, entities)))
    lines = [
        np.array(found, np.int64).reshape(-1, 3) if found is not None else None
        for found in (draw(st.lists(row, max_size=6)), *(draw(st.none() | st.lists(row, max_size=4)) for _ in range(2)))
    ]
    assert lines[0] is not None
    return RawGraph(Vocabulary(tuple(entities)), Vocabulary(tuple(relations), "relation"), *lines)  # type: ignore[arg-type]


def same(first: RawGraph, second: RawGraph) -> bool:
    named = (first.entities, first.relations) == (second.entities, second.relations)
    ours, theirs = first.splits, second.splits
    return named and ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def there_and_back(graph: RawGraph, target: Target, folder: Path) -> RawGraph:
    folder.mkdir()
    write_splits(folder, target, graph.entities, graph.relations, graph.splits)
    return read_raw(folder, test=True)


# --- round trips ------------------------------------------------------------------------------------------------------


@examples(200)
@given(graph=graphs(), path=st.permutations(list(Target)))
def test_through_all_formats_and_back_nothing_changes(graph: RawGraph, path: list[Target]) -> None:
    names = (*graph.entities.names, *graph.relations.names)
    with tempfile.TemporaryDirectory() as place:
        found = graph
        for target in path:
            if holds(target, *names):
                found = there_and_back(found, target, Path(place) / target)
                assert same(found, graph)
            else:
                with pytest.raises(DataError, match=r"which tab-separated files cannot hold"):
                    write_splits(Path(place), target, graph.entities, graph.relations, graph.splits)
                assert not list(Path(place).glob("*.t*"))


@pytest.mark.parametrize("target", Target)
def test_hard_names_first_and_last_in_every_file(tmp_path: Path, target: Target) -> None:
    for turn, name in enumerate(HARD):
        entities = Vocabulary((name, *(other for other in HARD if other != name)))
        relations = Vocabulary((*(other for other in HARD if other != name), name), "relation")
        rows = np.array([[0, len(HARD) - 1, 0], [1, 0, 2], [0, len(HARD) - 1, 0]], np.int64)
        graph = RawGraph(entities, relations, rows, rows[:1], rows[:0])
        assert same(there_and_back(graph, target, tmp_path / f"{turn}"), graph)


@pytest.mark.parametrize("name", BROKEN)
def test_names_that_break_lines_are_refused_except_by_n_triples(tmp_path: Path, name: str) -> None:
    rows = np.array([[0, 0, 0]], np.int64)
    for kind, entity, relation in (("entity", name, "r"), ("relation", "a", name)):
        graph = RawGraph(Vocabulary((entity,)), Vocabulary((relation,), "relation"), rows)
        for target in (Target.TSV, Target.OPENKE):
            with pytest.raises(DataError) as caught:
                write_splits(tmp_path, target, graph.entities, graph.relations, graph.splits)
            assert f"the {kind} {name!r} " in str(caught.value)
            assert "imf convert --to nt" in caught.value.remedy
        assert not list(tmp_path.glob("*.t*"))
        assert same(there_and_back(graph, Target.NT, tmp_path / kind), graph)


@pytest.mark.parametrize("target", Target)
def test_ids_survive_where_first_appearance_would_give_others(tmp_path: Path, target: Target) -> None:
    """Names in another order than the triples have them, a name in no triple, a name of the test file alone, empty splits."""
    entities, relations = Vocabulary(("unused", "b", "a", "late")), Vocabulary(("s", "r"), "relation")
    rows = np.array([[2, 1, 1], [2, 1, 1], [1, 0, 2]], np.int64)
    graph = RawGraph(entities, relations, rows, rows[:0], np.array([[3, 0, 1]], np.int64))
    assert same(there_and_back(graph, target, tmp_path / "out"), graph)


@pytest.mark.parametrize("target", Target)
def test_blocks_leave_no_seam(tmp_path: Path, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "_BLOCK", 3)
    for count in range(8):
        rows = np.arange(count * 3).reshape(-1, 3) % 2
        graph = RawGraph(Vocabulary(("a", "b")), Vocabulary(("r", "s"), "relation"), rows)
        assert same(there_and_back(graph, target, tmp_path / f"{count}"), graph)


def test_the_files_are_those_of_the_formats(tmp_path: Path) -> None:
    graph = RawGraph(Vocabulary(("New York", "USA")), Vocabulary(("in",), "relation"), np.array([[0, 0, 1]]))
    for target in Target:
        there_and_back(graph, target, tmp_path / target)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert files == {
        "tsv/train.tsv": b"New York\tin\tUSA\n", "tsv/entities.txt": b"New York\nUSA\n", "tsv/relations.txt": b"in\n",
        "openke/train2id.txt": b"1\n0 1 0\n",  # head, tail, relation
        "openke/entity2id.txt": b"2\nNew York\t0\nUSA\t1\n", "openke/relation2id.txt": b"1\nin\t0\n",
        "nt/train.nt": b"<urn:imf:New%20York> <urn:imf:in> <urn:imf:USA> .\n",
        "nt/entities.txt": b"urn:imf:New%20York\nurn:imf:USA\n", "nt/relations.txt": b"urn:imf:in\n",
    }


def test_fb15k237_is_the_same_file_by_file(tmp_path: Path, shared_dir: Path) -> None:
    source = shared_dir / "data" / "FB15K237"
    graph = read_raw(source, test=True)
    for target in (Target.NT, Target.TSV, Target.OPENKE):
        graph = there_and_back(graph, target, tmp_path / target)
    for name in ("entity2id", "relation2id", "train2id", "valid2id", "test2id"):
        given = (source / f"{name}.txt").read_bytes().replace(b"\r\n", b"\n")
        assert (tmp_path / "openke" / f"{name}.txt").read_bytes() == given
    assert read_graph(tmp_path / "tsv").fingerprint == read_graph(source).fingerprint


# --- terms ------------------------------------------------------------------------------------------------------------


@examples(500)
@given(name=FREE.filter(bytewise) | st.sampled_from(HARD + BROKEN), kind=st.sampled_from(["entity", "relation"]))
@example(name="_:b0", kind="relation")
def test_every_name_has_a_term_of_its_own(name: str, kind: str) -> None:
    term = term_of(name, kind)
    assert name_of(term, kind) == name
    assert not set(in_brackets(term)) & set(" \t\r\n\"{}|^`")


PIECES = ["a", "%41", "%2F", "%2f", "%", "%C3", "%A9", "~", "%7E", ":", "é", "_", "%3A", "b"]


@examples(500)
@given(parts=st.lists(st.sampled_from(PIECES), max_size=5))
@pytest.mark.parametrize("kind", ["entity", "relation"])
def test_a_term_is_decoded_only_where_writing_gives_it(parts: list[str], kind: str) -> None:
    term = "urn:imf:" + "".join(parts)
    name = name_of(term, kind)
    assert name == term or term_of(name, kind) == term


def test_every_byte_is_encoded_in_one_way() -> None:
    for byte in range(256):
        name = bytes([byte]).decode("utf-8", "surrogateescape")
        forms = {f"urn:imf:%{byte:02X}", f"urn:imf:%{byte:02x}", f"urn:imf:{name}"}
        assert {form for form in forms if name_of(form, "entity") == name} == {term_of(name, "entity")}


def test_no_two_names_share_a_term() -> None:
    for kind in ("entity", "relation"):
        for first, second in itertools.combinations(HARD + BROKEN, 2):
            assert term_of(first, kind) != term_of(second, kind)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "train.tsv").write_text("a\tr\tb\n")
            assert not (tmp_path / "out").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "train.tsv").write_text("a\tr\tb\n")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_folder_is_replaced_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.nt").write_text("")
    with pytest.raises(DataError, match=r"out cannot be written: No space"), new_folder(out, replace=True):
        raise OSError(28, "No space left on device")
    with pytest.raises(DataError, match=r"out cannot be written: Directory not empty"), new_folder(out):
        pass
    assert (out / "train.nt").exists()
    with new_folder(out, replace=True) as folder:
        (folder / "train.tsv").write_text("")
    assert [path.name for path in out.iterdir()] == ["train.tsv"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.nt").write_text("")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == out and not (self / "train.nt").exists():
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(DataError, match=r"Input/output error"), new_folder(out, replace=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "train.nt").exists()


def test_only_a_graph_is_ever_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "train.tsv").write_text("")
    check_place(out, None, replace=True)
    with pytest.raises(DataError, match=r"there already"):
        check_place(out, None)
    (out / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"is not replaced: it holds thesis.tex, which is no part of a graph"):
        check_place(out, None, replace=True)
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "file").write_text("")
    for place in ("link", "file"):
        with pytest.raises(DataError, match=r"there already"):
            check_place(tmp_path / place, None, replace=True)


def test_what_is_read_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "images").mkdir(parents=True)
    (out / "train.tsv").write_text("")
    with pytest.raises(DataError, match=r"train.tsv, which is read, lies in it"):
        check_place(out, None, replace=True, sources=[out / "train.tsv"])
    with pytest.raises(DataError, match=r"images, which is read, lies in it"):
        check_place(out, out / "images", replace=True)
    with pytest.raises(DataError, match=r"lies in the graph's own folder"):
        check_place(out, out, replace=True)


def test_what_lies_beside_is_copied_by_content(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    (source / "images").mkdir(parents=True)
    out.mkdir()
    (source / "images" / "a.png").write_bytes(b"picture")
    (source / "literals.nt").write_text('<a> <p> "x" .\n')
    (source / "notes.md").write_text("mine")
    (source / "images").chmod(0o555)
    assert copy_beside(source, out) == ["images", "literals.nt"]
    assert copy_beside(None, out) == []
    (out / "images" / "b.png").write_bytes(b"the copy can be written to")
    (source / "images").chmod(0o755)
    assert sorted(path.name for path in out.iterdir()) == ["images", "literals.nt"]
