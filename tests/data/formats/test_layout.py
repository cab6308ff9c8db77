"""Which files are read: folders, explicit files, formats told from content, and the lists that rule the ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_core.config import DataConfig
from imf_core.data.formats.layout import GraphFiles, format_of
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.errors import DataError


def put(folder: Path, **files: str) -> Path:
    """`train_tsv="a r b, b r c"` becomes `train.tsv` with tabs; other suffixes are written as they are given."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        stem, _, suffix = name.rpartition("_")
        lines = "".join("\t".join(line.split()) + "\n" for line in text.split(",")) if suffix == "tsv" else text
        (folder / f"{stem}.{suffix}").write_bytes(lines.encode())
    return folder


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", "a\tr\tb\n", "names"),
        ("a.txt", "1\n0 1 0\n", "ids"),
        ("a.txt", "\ufeff2\r\n0\t1\t0\r\n", "ids"),
        ("a.txt", "1\t2\t3\n4\t5\t6\n", "names"),  # tab-separated triples are names, whatever they look like
        ("a.txt", "<a>\t<r>\t<b> .\n", "names"),
        ("a.txt", "<a> <r> <b> .\n", "ntriples"),
        ("a.txt", "_:a <r> <b>.\n", "ntriples"),
        ("a.nt", "a\tr\tb\n", "ntriples"),
        ("train2id.txt", "a\tr\tb\n", "ids"),
        ("a.tsv", "", "names"),
        ("a.tsv", "a r b\n", "names"),
    ],
)
def test_the_format_is_told_from_name_and_first_lines(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert format_of(tmp_path / name) == expected


def test_explicit_files_without_a_folder(tmp_path: Path) -> None:
    one, two = put(tmp_path / "one", facts_tsv="a r b, b r c"), put(tmp_path / "two", held_tsv="a r c", final_tsv="c s z")
    files = GraphFiles(train=one / "facts.tsv", valid=two / "held.tsv", test=two / "final.tsv")
    graph = read_graph(files)
    assert graph.entities.names == ("a", "b", "c", "z")
    assert (graph.train.tolist(), graph.valid.tolist()) == ([[0, 0, 1], [1, 0, 2]], [[0, 0, 2]])
    assert graph.open_test().tolist() == [[2, 1, 3]]
    assert graph.source == str(one / "facts.tsv")


def test_explicit_files_stand_in_for_those_of_the_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "g", train_tsv="a r b", valid_tsv="b r a", test_tsv="a r a")
    other = put(tmp_path / "other", mine_txt="b\tr\tb\n")
    for split in ("train", "valid", "test"):
        raw = read_raw(GraphFiles(folder, **{split: other / "mine.txt"}), test=True)
        found = {name: [raw.entities.names[i] for i in rows[0, [0, 2]]] for name, rows in raw.splits.items()}
        assert found == {"train": ["a", "b"], "valid": ["b", "a"], "test": ["a", "a"], split: ["b", "b"]}


def test_settings_name_files(tmp_path: Path) -> None:
    folder = put(tmp_path / "g", train_tsv="a r b", valid_tsv="b r a", more_tsv="a r a")
    config = DataConfig(path=str(folder), valid=str(folder / "more.tsv"))
    assert read_graph(GraphFiles.of(config, folder)).valid.tolist() == [[0, 0, 0]]


def test_openke_files_of_other_names_with_the_lists_of_the_folder(tmp_path: Path) -> None:
    folder = put(tmp_path / "g", entity2id_txt="2\na\t0\nb\t1\n", relation2id_txt="1\nr\t0\n", mine_txt="1\n0 1 0\n")
    raw = read_raw(GraphFiles(train=folder / "mine.txt", valid=folder / "mine.txt"))
    assert (raw.entities.names, raw.train.tolist()) == (("a", "b"), [[0, 0, 1]])
    (folder / "entity2id.txt").unlink()
    with pytest.raises(DataError, match=r"entity2id\.txt cannot be read"):
        read_raw(GraphFiles(train=folder / "mine.txt"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_explicit_file_that_is_not_there(tmp_path: Path, split: str) -> None:
    folder = put(tmp_path / "g", train_tsv="a r b", valid_tsv="b r a")
    with pytest.raises(DataError, match=r"gone\.tsv cannot be read"):
        read_graph(GraphFiles(folder, **{split: tmp_path / "gone.tsv"}))


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").mkdir()
    with pytest.raises(DataError, match=r"train\.tsv: this is a folder, not a file"):
        read_graph(tmp_path)
    with pytest.raises(DataError, match=r"no training file was given"):
        read_graph(GraphFiles())


def test_ids_and_names_do_not_go_together(tmp_path: Path) -> None:
    folder = put(tmp_path / "g", train_tsv="a r b", valid2id_txt="1\n0 1 0\n")
    with pytest.raises(DataError, match=r"one holds ids, the other names"):
        read_graph(GraphFiles(folder, valid=folder / "valid2id.txt"))
    assert "valid" not in GraphFiles(folder).splits  # the folder's own file of the other kind is no split of it


def test_names_and_n_triples_do(tmp_path: Path) -> None:
    put(tmp_path, train_tsv="a r b", valid_nt="<urn:imf:b> <r> <a> .\n")
    assert read_graph(tmp_path).valid.tolist() == [[1, 0, 0]]


def test_of_several_training_files_one_is_read_and_the_others_are_told(tmp_path: Path) -> None:
    put(tmp_path, train_tsv="a r b", train_txt="x\tr\ty\n", train_nt="<x> <r> <z> .\n")
    put(tmp_path, valid_txt="b\tr\ta\n", valid_tsv="a r a")
    raw = read_raw(tmp_path)
    assert (raw.entities.names, raw.notes) == (("a", "b"), tuple(
        f"train.{suffix} ignored: train.tsv is used" for suffix in ("txt", "nt")
    ))
    assert raw.valid is not None
    assert raw.valid.tolist() == [[0, 0, 0]]  # of the same suffix


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lists",
    [
        {"entities_txt": "\ufeffb\r\n\r\na\r\n"},
        {"entities_dict": "1\ta\n0\tb\n"},
        {"entity2id_txt": "2\nb\t0\na\t1\n"},
        {"entity2id_txt": "b 0\na 1"},
        {"entities_txt": "b\na\n", "entities_dict": "0\ta\n1\tb\n", "entity2id_txt": "nonsense"},
    ],
)
def test_lists_in_every_form_rule_the_ids(tmp_path: Path, lists: dict[str, str]) -> None:
    raw = read_raw(put(tmp_path, train_tsv="a r b", **lists))
    assert (raw.entities.names, raw.train.tolist()) == (("b", "a"), [[1, 0, 0]])
    assert [note for note in raw.notes if "no count" in note] == (
        ["entity2id.txt has no count in its first line: that it is complete cannot be checked"]
        if lists.get("entity2id_txt", "").startswith("b 0") else []
    )


def test_names_in_lists_keep_their_spaces(tmp_path: Path) -> None:
    raw = read_raw(put(tmp_path, train_txt="a \tr\t b\n", entities_txt=" b\na \n"))
    assert raw.entities.names == (" b", "a ")
    (tmp_path / "entities.txt").unlink()
    raw = read_raw(put(tmp_path, entity2id_txt="2\n b\t0\na \t1\n"))
    assert raw.entities.names == (" b", "a ")


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"entities_txt": "a\n"}, "train.tsv, line 2: 'b' is missing in entities.txt"),
        ({"entities_txt": ""}, "train.tsv, line 1: 'a' is missing in entities.txt"),
        ({"relations_txt": "s\n"}, "train.tsv, line 1: 'r' is missing in relations.txt"),
        ({"entities_dict": "0 a\n"}, "entities.dict, line 1: neither a count nor an id and its name"),
        ({"entities_dict": "0\ta\n1 b\n"}, "entities.dict, line 2: no `id name` pair"),
        ({"entity2id_txt": "3\na\t0\n"}, "entity2id.txt, line 1: the count does not agree with 1 rows"),
    ],
)
def test_faults_of_lists_are_named(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    put(tmp_path, train_tsv="a r a, a r b", **lists)
    with pytest.raises(DataError) as caught:
        read_raw(tmp_path)
    assert message in str(caught.value)
    assert caught.value.remedy
