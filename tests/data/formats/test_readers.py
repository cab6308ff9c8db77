"""Graph folders: both layouts, their odd bytes, their faults (with file and line), and real graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imf_core.data.formats.readers import read_graph
from imf_core.errors import DataError
from imf_core.files.lines import read_lines

VALID = "a\tr\tc\n"


def names_folder(folder: Path, train: bytes | str, valid: bytes | str = VALID, **more: bytes | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"train.tsv": train, "valid.tsv": valid, **{k.replace("__", "."): v for k, v in more.items()}}.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def openke_folder(folder: Path, **changed: str) -> Path:
    files = {
        "entity2id": "3\nNew York\t0\nUSA\t1\nParis\t2\n",
        "relation2id": "2\nin\t0\nnear\t1\n",
        "train2id": "3\n0 1 0\n2 1 1\n0 2 1\n",
        "valid2id": "1\n2 1 0\n",
        "test2id": "1\n1 2 1\n",
    }
    for name, content in {**files, **changed}.items():
        (folder / f"{name}.txt").write_bytes(content.encode())
    return folder


# --- names --------------------------------------------------------------------------------------------------------------


def test_mark_line_ends_blank_lines_and_signs_in_names(tmp_path: Path) -> None:
    train = b"\xef\xbb\xbfNew York\tin\tUSA\r\n\nA:B|C\tin\tUSA"
    graph = read_graph(names_folder(tmp_path, train, b"New York\tin\tUSA\n"))
    assert graph.entities.names == ("New York", "USA", "A:B|C")
    assert graph.relations.names == ("in",)
    assert graph.train.tolist() == [[0, 0, 1], [2, 0, 1]]
    assert graph.valid.tolist() == [[0, 0, 1]]
    assert graph.notes == (
        "all 1 validation triples stand in train too: no figure is of answers that are new to the model",
    )


def test_a_mark_in_the_middle_belongs_to_the_name(tmp_path: Path) -> None:
    graph = read_graph(names_folder(tmp_path, "a\tr\tb\n\ufeffa\tr\tc\n"))
    assert graph.entities.names == ("a", "b", "\ufeffa", "c")


def test_composed_and_decomposed_letters_stay_apart(tmp_path: Path) -> None:
    graph = read_graph(names_folder(tmp_path, "\u00e9\tr\tc\ne\u0301\tr\tc\n", "\u00e9\tr\te\u0301\n"))
    assert graph.entities.names == ("\u00e9", "c", "e\u0301")


def test_undecodable_bytes_survive_a_round_trip(tmp_path: Path) -> None:
    odd = b"caf\xe9 \xff\xfe"
    graph = read_graph(names_folder(tmp_path / "first", odd + b"\tr\tc\n", odd + b"\tr\tc\n"))
    written = graph.entities.names[0].encode("utf-8", "surrogateescape")
    assert written == odd
    again = read_graph(names_folder(tmp_path / "second", written + b"\tr\tc\n", written + b"\tr\tc\n"))
    assert again.fingerprint == graph.fingerprint


@pytest.mark.parametrize("suffix", [".tsv", ".txt"])
def test_both_suffixes(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}{suffix}").write_text("a\tr\tb\n" if split == "train" else "b\tr\ta\n")
    graph = read_graph(tmp_path)
    assert (graph.train.tolist(), graph.valid.tolist(), graph.open_test().tolist()) == ([[0, 0, 1]], [[1, 0, 0]], [[1, 0, 0]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a\tb", "2 tab-separated columns instead of 3"),
        ("a\tr\tb\t1", "4 tab-separated columns instead of 3"),
        ("a r b", "1 tab-separated columns instead of 3"),
        ("a\t\tb", "an empty name"),
        ("a\tr\t ", "an empty name"),
    ],
)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_wrong_line_names_file_and_line(tmp_path: Path, line: str, message: str, split: str) -> None:
    wrong = f"a\tr\tb\n\n{line}\nb\tr\tc\n"
    folder = names_folder(tmp_path, wrong if split == "train" else "a\tr\tb\n", wrong if split == "valid" else VALID)
    with pytest.raises(DataError) as caught:
        read_graph(folder)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.path) == (3, str(folder / f"{split}.tsv"))
    assert f"{split}.tsv, line 3" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds neither train.tsv, train.txt, train.nt nor train2id.txt"),
        ({"train.tsv": "a\tr\tb\n"}, "has no valid.tsv, and no training triple can be spared for it"),
        ({"train.tsv": "a\tr\tb\n", "valid.tsv": "\n"}, "the validation file holds no triple"),
        ({"train.tsv": "", "valid.tsv": VALID}, "has no training triple"),
        ({"train.tsv": "a\tr\tb\n", "valid.tsv": VALID, "entities.txt": "a\nb\n"}, "'c' is missing in entities.txt"),
        ({"train.tsv": "a\tr\tb\n", "valid.tsv": VALID, "entities.txt": "a\nb\na\n"}, "entity listed twice (first in line 1)"),
    ],
)
def test_unusable_folders(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_graph(tmp_path)
    assert message in str(caught.value)
    assert "What to do:" in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        read_graph(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_lines(tmp_path / "nowhere"))


def test_repeats_are_merged_and_overlap_is_noted(tmp_path: Path) -> None:
    train = "a\tr\tb\na\tr\tb\nb\tr\tc\na\tr\tb\nc\tr\tc\n"
    graph = read_graph(names_folder(tmp_path, train, "a\tr\tc\na\tr\tc\nb\tr\tc\n"))
    assert graph.train.tolist() == [[0, 0, 1], [1, 0, 2], [2, 0, 2]]  # order of first appearance; a loop is kept
    assert graph.valid.tolist() == [[0, 0, 2], [1, 0, 2]]
    assert graph.notes == (
        "2 repeated training lines merged",
        "1 repeated validation lines merged",
        "1 of 2 validation triples stand in train too: figures are of the other 1, with those of all lines beside",
    )


def test_lists_rule_the_ids(tmp_path: Path) -> None:
    folder = names_folder(tmp_path, "a\tr\tb\n", "a\ts\tb\n", entities__txt="z\nb\na\n", relations__txt="s\nr\n")
    graph = read_graph(folder)
    assert graph.entities.names == ("z", "b", "a")
    assert (graph.train.tolist(), graph.valid.tolist()) == ([[2, 1, 1]], [[2, 0, 1]])


def test_the_test_file_is_not_read_before_it_is_opened(tmp_path: Path) -> None:
    lists = {"entities__txt": "a\nb\nc\n", "relations__txt": "r\n"}
    folder = names_folder(tmp_path, "a\tr\tb\n", VALID, test__tsv="c\tr\tb\n", **lists)
    before = read_graph(folder)
    (folder / "test.tsv").write_text("b\tr\ta\nb\tr\tc\n")
    after = read_graph(folder)
    assert np.array_equal(before.train, after.train)
    assert np.array_equal(before.valid, after.valid)
    assert before.fingerprint == after.fingerprint
    assert before.notes == after.notes
    # Neither graph holds the first version: the reader looks at the file when it is called.
    assert before.open_test().tolist() == after.open_test().tolist() == [[1, 0, 0], [1, 0, 2]]


def test_names_of_the_test_file_are_candidates(tmp_path: Path) -> None:
    graph = read_graph(names_folder(tmp_path, "a\tr\tb\n", VALID, test__tsv="z\tq\ta\n"))
    assert graph.entities.names == ("a", "b", "c", "z")
    assert graph.relations.names == ("r", "q")
    assert graph.open_test().tolist() == [[3, 1, 0]]
    assert graph.seen.tolist() == [True, True, False, False]


# --- OpenKE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [" ", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_openke_by_tab_or_space(tmp_path: Path, separator: str, end: str) -> None:
    folder = openke_folder(
        tmp_path,
        entity2id=end.join(["\ufeff3", f"New York{separator}0", f"USA{separator}1", f"Paris{separator}2", ""]),
        train2id=end.join(["3", *(separator.join(row) for row in ("010", "211", "021"))]),
    )
    graph = read_graph(folder)
    assert graph.entities.names == ("New York", "USA", "Paris")
    assert graph.train.tolist() == [[0, 0, 1], [2, 1, 1], [0, 1, 2]]  # the file has head, tail, relation
    assert graph.valid.tolist() == [[2, 0, 1]]
    assert graph.open_test().tolist() == [[1, 1, 2]]


def test_openke_ids_come_in_any_order(tmp_path: Path) -> None:
    graph = read_graph(openke_folder(tmp_path, entity2id="3\nParis\t2\nNew York\t0\nUSA\t1\n"))
    assert graph.entities.names == ("New York", "USA", "Paris")


@pytest.mark.parametrize(
    ("changed", "message", "line"),
    [
        ({"train2id": "5\n0 1 0\n2 1 1\n0 2 1\n"}, "the count does not agree with 3 rows", 1),
        ({"train2id": ""}, "the file is empty", 1),
        ({"train2id": "\u00b2\n0 1 0\n"}, "neither a count nor three ids", 1),
        ({"entity2id": ""}, "the file is empty", 1),
        ({"entity2id": "three\n"}, "neither a count nor a name and its id", 1),
        ({"train2id": f"1\n0 1 {'9' * 5000}\n"}, "no three ids", 2),
        ({"train2id": "2\n0 1 0\n2 1\n"}, "no three ids", 3),
        ({"train2id": "2\n0 1 0\n2 -1 0\n"}, "no three ids", 3),
        ({"train2id": "2\n0 1 0\n2 \u00b2 0\n"}, "no three ids", 3),
        ({"train2id": "2\n0 1 0\n3 1 0\n"}, "id out of range (3 entities, 2 relations)", 3),
        ({"train2id": "2\n0 1 0\n2 1 2\n"}, "id out of range (3 entities, 2 relations)", 3),
        ({"valid2id": "1\n0 1 7\n"}, "id out of range", 2),
        ({"entity2id": "2\nNew York\t0\nUSA\t1\nParis\t2\n"}, "the count does not agree with 3 rows", 1),
        ({"entity2id": "3\nNew York\t0\nUSA\t1\nParis\t3\n"}, "id out of range 0..2", 4),
        ({"entity2id": "3\nNew York\t0\nUSA\t1\nParis\t1\n"}, "id used twice (also by 'USA')", 4),
        ({"entity2id": "3\nNew York\t0\nUSA\nParis\t2\n"}, "no `name id` pair", 3),
        ({"entity2id": "3\nUSA\t0\nUSA\t1\nParis\t2\n"}, "two ids for the name (also 0) (found 'USA')", 3),
    ],
)
def test_openke_faults_name_file_and_line(tmp_path: Path, changed: dict[str, str], message: str, line: int | None) -> None:
    folder = openke_folder(tmp_path, **changed)
    with pytest.raises(DataError) as caught:
        read_graph(folder)
    assert message in str(caught.value)
    assert str(folder / f"{next(iter(changed))}.txt") in str(caught.value)
    if line is not None:
        assert caught.value.line == line


def test_openke_test_faults_show_when_it_is_opened(tmp_path: Path) -> None:
    graph = read_graph(openke_folder(tmp_path, test2id="2\n0 1 0\n"))
    with pytest.raises(DataError, match=r"test2id.txt, line 1: the count does not agree with 1 rows"):
        graph.open_test()


def test_openke_without_valid(tmp_path: Path) -> None:
    folder = openke_folder(tmp_path)
    (folder / "valid2id.txt").unlink()
    graph = read_graph(folder)  # of the three training triples one can go without taking an entity or a relation along
    assert (graph.train.tolist(), graph.valid.tolist()) == ([[0, 0, 1], [0, 1, 2]], [[2, 1, 1]])
    assert graph.notes == ("no valid2id.txt: 1 triples set aside from train as validation (seed 0)",)
    (folder / "train2id.txt").write_text("2\n0 1 0\n2 1 1\n")
    with pytest.raises(DataError, match=r"has no valid2id\.txt, and no training triple can be spared"):
        read_graph(folder)


# --- real graphs --------------------------------------------------------------------------------------------------------


def test_mkg_y(shared_dir: Path) -> None:
    graph = read_graph(shared_dir / "data" / "MKG-Y")
    assert (graph.num_entities, graph.num_relations) == (15_000, 28)
    assert (len(graph.train), len(graph.valid), len(graph.open_test())) == (21_310, 2_665, 2_663)
    assert graph.notes == (
        "371 unseen entities in 400 validation triples: kept, ranked among 15,000 entities (data.unseen=drop leaves them out)",
    )
    assert graph.test_notes == (
        "352 unseen entities in 388 test triples: kept, ranked among 15,000 entities (data.unseen=drop leaves them out)",
    )


def test_db15k_validation_is_contaminated_and_says_so(shared_dir: Path) -> None:
    graph = read_graph(shared_dir / "data" / "DB15K")
    assert (graph.num_entities, graph.num_relations, len(graph.train)) == (12_842, 279, 79_222)
    train, valid = (set(map(tuple, part.tolist())) for part in (graph.train, graph.valid))
    assert len(graph.valid) == len(valid) == 9_904 - 2_423 == 7_481
    assert "2,423 repeated validation lines merged" in graph.notes
    overlap = len(train & valid)
    assert overlap > 6_000
    expected = f"{overlap:,} of 7,481 validation triples stand in train too: figures are of the other {7481 - overlap:,}"
    assert expected in " ".join(graph.notes)


def test_wn18rr(shared_dir: Path) -> None:
    graph = read_graph(shared_dir / "data" / "WN18RR")
    assert (graph.num_entities, graph.num_relations) == (40_943, 11)
    assert (len(graph.train), len(graph.valid), len(graph.open_test())) == (86_835, 3_034, 3_134)
