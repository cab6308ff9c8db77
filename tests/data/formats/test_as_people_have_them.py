"""Graph files as people have them: other encodings, containers, header lines, columns and exports (public bug reports)."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imf_core.data.audit.audit import audit
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.errors import DataError
from imf_core.files.lines import read_lines

ENTITIES = [f"thing {number}" for number in range(29)] + ["Zürich"]
RELATIONS = [f"relation {number}" for number in range(5)]


def rows() -> dict[str, list[tuple[str, str, str]]]:
    """30 entities, 5 relations, 66, 8 and 8 triples; every name in train."""
    rng = np.random.default_rng(3)
    pairs = [(head, (head + step) % 30) for step in (1, 7, 11) for head in range(30)][:82]
    triples = [(ENTITIES[head], RELATIONS[int(rng.integers(5))], ENTITIES[tail]) for head, tail in pairs]
    return {"train": triples[:66], "valid": triples[66:74], "test": triples[74:]}


def text(triples: list[tuple[str, str, str]], order: tuple[int, int, int] = (0, 1, 2)) -> str:
    return "".join("\t".join(row[place] for place in order) + "\n" for row in triples)


def write(folder: Path, encode: Callable[[str], bytes] = str.encode, name: str = "{}.tsv") -> Path:
    folder.mkdir()
    for split, triples in rows().items():
        (folder / name.format(split)).write_bytes(encode(text(triples)))
    return folder


def problems(folder: Path) -> list[str]:
    return list(audit(read_raw(folder, test=True), baseline_splits=()).problems)


@pytest.fixture
def right(tmp_path: Path) -> Path:
    return write(tmp_path / "right")


def same(folder: Path, right: Path) -> bool:
    found, expected = (read_raw(place, test=True) for place in (folder, right))
    return found.entities == expected.entities and all(
        np.array_equal(found.splits[name], expected.splits[name]) for name in ("train", "valid", "test")
    )


# --- G1: UTF-16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_g1_other_unicode(tmp_path: Path, right: Path, encoding: str, last: str) -> None:
    def encode(lines: str) -> bytes:
        return (lines.replace("\n", "\r\n").removesuffix("\r\n") + last).encode(encoding)

    assert same(write(tmp_path / "g", encode), right)


def test_g1_lists_and_n_triples(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes("a\nb\n".encode("utf-16"))
    assert [line for _, line in read_lines(tmp_path / "list")] == ["a", "b"]
    folder = tmp_path / "nt"
    folder.mkdir()
    (folder / "train.nt").write_bytes("<a> <p> <b> .\r\n<b> <p> <c> .\r\n".encode("utf-16"))
    (folder / "valid.nt").write_bytes(b"<a> <p> <c> .\n")
    assert read_graph(folder).entities.names == ("a", "b", "c")


# --- G2: not UTF-8 --------------------------------------------------------------------------------------------------------


def test_g2_a_twin_in_the_encoding_of_windows(tmp_path: Path, right: Path) -> None:
    folder = write(tmp_path / "g")
    (folder / "train.tsv").write_bytes(text(rows()["train"]).encode("cp1252"))
    line = next(number for number, row in enumerate(rows()["train"], 1) if "Zürich" in row)
    (told,) = [problem for problem in problems(folder) if "UTF-8" in problem]
    assert "1 names of entities are not UTF-8" in told and f"in train.tsv, line {line}" in told
    assert "1 of them are there in UTF-8 too (Zürich)" in told
    assert not [problem for problem in problems(right) if "UTF-8" in problem]


# --- G3: header lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", ["head\trelation\ttail", "Subject\tPredicate\tObject", "h\tr\tt", ":START_ID\t:TYPE\t:END_ID"]
)
@pytest.mark.parametrize("splits", [("train", "valid", "test"), ("train",), ("test",)])
def test_g3_a_header_is_neither_trained_on_nor_ranked(
    tmp_path: Path, right: Path, header: str, splits: tuple[str, ...]
) -> None:
    folder = write(tmp_path / "g")
    for split in splits:
        file = folder / f"{split}.tsv"
        file.write_text(f"{header}\n{file.read_text()}")
    assert same(folder, right)
    (told,) = [problem for problem in problems(folder) if "header" in problem]
    assert all(f"{split}.tsv" in told for split in splits)
    graph = read_graph(folder)
    assert len(graph.entities) == 30 and len(graph.open_test()) == 8


def test_g3_words_of_no_list_above_all_splits(tmp_path: Path, right: Path) -> None:
    folder = write(tmp_path / "g")
    for file in folder.iterdir():
        file.write_text(f"von\tBeziehung\tnach\n{file.read_text()}")
    assert same(folder, right) and any("header" in problem for problem in problems(folder))
    (folder / "entities.txt").write_text("".join(f"{name}\n" for name in ENTITIES))
    (folder / "relations.txt").write_text("".join(f"{name}\n" for name in RELATIONS))
    assert len(read_graph(folder).open_test()) == 8


def test_g3_above_train_alone_it_is_asked_about_and_a_fact_stays(tmp_path: Path) -> None:
    folder = write(tmp_path / "g")
    file = folder / "train.tsv"
    file.write_text(f"von\tBeziehung\tnach\n{file.read_text()}")
    raw = read_raw(folder, test=True)
    assert len(raw.train) == 67 and any("is it a header?" in note for note in raw.notes)
    used = f"head\trelation\ttail\n{text(rows()['train'])}head\trelation 1\tthing 1\n"
    file.write_text(used)  # a word that occurs again names a thing
    assert len(read_raw(folder).train) == 68


# --- G4: columns in another order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "told"), [((0, 2, 1), "head, tail, relation"), ((1, 0, 2), "relation, head, tail")])
def test_g4_swapped_columns(tmp_path: Path, right: Path, order: tuple[int, int, int], told: str) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    for split, triples in rows().items():
        (folder / f"{split}.tsv").write_text(text(triples, order))
    assert any(f"the columns look like {told}" in problem for problem in problems(folder))
    assert not any("columns" in problem for problem in problems(right))


# --- G6: containers -------------------------------------------------------------------------------------------------------


def zipped(lines: str) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("split.tsv", lines)
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[str], bytes]] = {
    ".gz": lambda lines: gzip.compress(lines.encode()), ".bz2": lambda lines: bz2.compress(lines.encode()),
    ".xz": lambda lines: lzma.compress(lines.encode()), ".zip": zipped,
}


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_g6_packed_files_are_read_by_what_they_hold(tmp_path: Path, right: Path, suffix: str) -> None:
    assert same(write(tmp_path / "found", CONTAINERS[suffix], "{}.tsv" + suffix), right)
    assert same(write(tmp_path / "misnamed", CONTAINERS[suffix]), right)


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_g6_a_damaged_container_is_named(tmp_path: Path, suffix: str) -> None:
    folder = write(tmp_path / "g", CONTAINERS[suffix], "{}.tsv" + suffix)
    file = folder / f"train.tsv{suffix}"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"train\.tsv\{suffix} cannot be"):
        read_raw(folder)


def test_g6_an_archive_of_several_and_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "train.tsv", "w") as archive:
        archive.writestr("a.tsv", "")
        archive.writestr("b.tsv", "")
    with pytest.raises(DataError, match=r"(?s)an archive of 2 files \(a.tsv, b.tsv\).*unpack it"):
        read_raw(tmp_path)
    (tmp_path / "train.tsv").rename(tmp_path / "train.parquet")
    (tmp_path / "train.csv").touch()
    with pytest.raises(DataError, match=r"train\.csv, train\.parquet is of a format that is not read"):
        read_raw(tmp_path)


# --- G7: N-Quads ----------------------------------------------------------------------------------------------------------


def test_g7_the_graph_of_a_quad_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "train.nt").write_text("<a> <p> <b> <g> .\n<b> <p> <c> .\n<c> <p> <a> <g2> .\n")
    (tmp_path / "valid.nt").write_text("<a> <p> <c> <g> .\n")
    graph = read_graph(tmp_path)
    assert (len(graph.train), len(graph.valid), graph.entities.names) == (3, 1, ("a", "b", "c"))
    (tmp_path / "valid.nt").write_text("<a> <p> <c> <g> <h> .\n")
    with pytest.raises(DataError, match="no statement"):
        read_graph(tmp_path)


# --- what would never end -------------------------------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["train.tsv", "descriptions.tsv"])
def test_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"this is a pipe, not a file"):
        list(read_lines(tmp_path / name))


# --- two further inputs of each kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-32-be"])
def test_g1_marked_and_with_the_large_end_first(tmp_path: Path, right: Path, encoding: str) -> None:
    assert same(write(tmp_path / "g", lambda lines: ("\ufeff" + lines).encode(encoding)), right)


@pytest.mark.parametrize("encoding", ["iso-8859-15", "cp1250"])
def test_g2_a_twin_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path / "g")
    (folder / "train.tsv").write_bytes((folder / "train.tsv").read_bytes().decode().encode(encoding))
    assert any("UTF-8" in problem for problem in problems(folder))


@pytest.mark.parametrize("header", ["source\trelation\ttarget", "from\tlabel\tto"])
def test_g3_headers_of_other_exports(tmp_path: Path, right: Path, header: str) -> None:
    folder = write(tmp_path / "g", lambda lines: f"{header}\n{lines}".encode())
    assert same(folder, right) or any("looks like a header" in problem for problem in problems(folder))


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_g4_other_orders(tmp_path: Path, order: tuple[int, int, int]) -> None:
    folder = tmp_path / "g"
    folder.mkdir()
    for split, triples in rows().items():
        (folder / f"{split}.tsv").write_text(text(triples, order))
    assert any("columns" in problem for problem in problems(folder))


def in_a_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("export/", b"")
        archive.writestr("export/graph.txt", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "pack", [lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]), in_a_zip], ids=["two members", "in a folder"]
)
def test_g6_other_containers(tmp_path: Path, right: Path, pack: Callable[[bytes], bytes]) -> None:
    assert same(write(tmp_path / "g", lambda lines: pack(lines.encode())), right)


@pytest.mark.parametrize("graph", ["_:b0", "<urn:x:g#1>"])
def test_g7_other_graphs(tmp_path: Path, graph: str) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.nt").write_text(f"# quads\r\n<a> <r> <b> {graph} .\r\n<b> <r> <a>\t{graph}\t.\r\n")
    assert read_raw(tmp_path).entities.names == ("a", "b")
