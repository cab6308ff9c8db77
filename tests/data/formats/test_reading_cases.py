"""The recorded cases on reading (KG-2, KG-3, KG-5, and of KG-11 the split): their inputs, and the figures they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from imf_core.config import DataConfig
from imf_core.data.audit.audit import audit
from imf_core.data.formats.ntriples import literal_texts
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.data.graph.partition import carve
from imf_core.errors import DataError
from imf_core.prepare.link_data import prepare

MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="session")
def case(shared_dir: Path) -> Callable[[str], tuple[str, str]]:
    """(input, right behaviour) of a recorded case, by its id."""
    path = shared_dir / "cases" / "README.md"
    if not path.exists():
        pytest.skip(f"no recorded cases at {path}")
    rows = [re.split(r"(?<!\\)\|", line) for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| KG-")]
    cases = {row[1].strip(): (row[5].replace("\\|", "|"), row[6].replace("\\|", "|")) for row in rows}
    return lambda name: cases[name]


def quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]{6,})"', text)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"the case no longer says {pattern!r}: {text}"
    return int(found.group(1))


def graph_folder(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


# --- KG-2 -------------------------------------------------------------------------------------------------------------

STATEMENTS = (
    "<http://example.org/v1.2/a.b.c> <http://example.org/p.q> <http://example.org/d.e> .\n"
    "<a>\t<p>\t<b>\t.\n"
    "<a> <p> <b>.\n"
    '<a> <label> "x y"@en .\n'
    '<b> <label> "say \\"x. y\\" <c>" .\n'
    "# <a> <p> <comment> .\n"
)


def test_kg_2_n_triples(tmp_path: Path, case: Callable[[str], tuple[str, str]]) -> None:
    given, right = case("KG-2")
    assert number(r"(\d) lines", given) == STATEMENTS.count("\n")
    folder = graph_folder(tmp_path / "g", {"train.nt": STATEMENTS, "valid.nt": "<b> <p> <a> .\n"})
    raw = read_raw(folder)
    assert len(raw.train) == number(r"(\d) entity triples", right)
    assert raw.entities.names == ("http://example.org/v1.2/a.b.c", "http://example.org/d.e", "a", "b")
    assert raw.relations.names == ("http://example.org/p.q", "p")
    (counted,) = quoted(right)
    for notes in (raw.notes, read_graph(folder).notes):
        assert any(note.startswith(counted) for note in notes)
    (folder / "train.nt").write_text(STATEMENTS + "<a> <p> b .\n")
    with pytest.raises(DataError) as caught:
        read_graph(folder)
    assert (caught.value.path, caught.value.line) == (str(folder / "train.nt"), number(r"line (\d)", right))
    assert "<head> <relation> <tail> ." in caught.value.remedy


def test_kg_2_literals_as_text(tmp_path: Path) -> None:
    folder = graph_folder(tmp_path / "g", {"train.nt": STATEMENTS, "valid.nt": "<b> <p> <a> .\n"})
    assert literal_texts(folder) == {"a": "x y", "b": 'say "x. y" <c>'}
    (text,) = prepare(DataConfig(path=str(folder), text="literals")).modalities
    assert (text.name, text.mask.tolist()) == ("text", [False, False, True, True])
    assert prepare(DataConfig(path=str(folder))).modalities == ()  # only on request


# --- KG-3 -------------------------------------------------------------------------------------------------------------


def test_kg_3_marks_returns_and_blank_lines(tmp_path: Path, case: Callable[[str], tuple[str, str]]) -> None:
    _, right = case("KG-3")
    names = re.search(r"\{(.*?)\}", right)
    assert names is not None
    content = MARK + b"New York\tin\tUSA\r\n" + b"\n" + b"A:B|C\tin\tUSA"
    folder = graph_folder(tmp_path / "g", {"train.tsv": content, "valid.tsv": "New York\tin\tUSA\n"})
    raw = read_raw(folder)
    assert len(raw.train) == number(r"(\d) triples", right)
    assert list(raw.entities.names) == names.group(1).split(", ")
    assert len(raw.relations) == number(r"(\d) relation", right)
    assert raw.valid is not None
    assert raw.valid.tolist() == raw.train[:1].tolist()


@pytest.mark.parametrize("line", ["a\tb", "a\tr\tb\tc"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_kg_3_a_line_of_two_or_four_columns(tmp_path: Path, line: str, split: str) -> None:
    files: dict[str, str | bytes] = {f"{name}.tsv": "a\tr\tb\n" for name in ("train", "valid", "test")}
    folder = graph_folder(tmp_path / "g", {**files, f"{split}.tsv": MARK + f"a\tr\tb\r\n\n{line}\n".encode()})
    with pytest.raises(DataError, match=rf"{split}\.tsv, line 3: {line.count(chr(9)) + 1} tab-separated columns instead of 3"):
        read_raw(folder, test=True)


def test_kg_3_letters_composed_and_decomposed(tmp_path: Path) -> None:
    train = "Jos\u00e9\tr\tJose\u0301\nn\u0303\ts\u0327\tJose\u0301\n\u212b\ts\u0327\tA\u030a\n"
    raw = read_raw(graph_folder(tmp_path / "g", {"train.tsv": train}))
    assert raw.entities.names == ("Jos\u00e9", "Jose\u0301", "n\u0303", "\u212b", "A\u030a")
    (note,) = raw.notes  # n with a tilde and the relation have no twin
    assert note.startswith("2 entity names differ from another only by Unicode composition, kept apart: ")
    assert note.endswith("'Jos\\xe9' and 'Jose\\u0301'")  # told apart on the screen too


def test_kg_3_padding_makes_no_entity_unseen(tmp_path: Path) -> None:
    """Every byte counts, so ` USA` is another name than `USA`: that is said."""
    raw = read_raw(graph_folder(tmp_path / "g", {"train.tsv": "New York\tin\tUSA\nParis \tin\t USA\n"}))
    assert raw.entities.names == ("New York", "USA", "Paris ", " USA")
    assert raw.notes == ("1 entity names differ from another only by spaces around them, kept apart: 'USA' and ' USA'",)


# --- KG-5 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unseen(tmp_path: Path, case: Callable[[str], tuple[str, str]]) -> tuple[Path, str]:
    """The case's graph with one validation triple, and what is right."""
    given, right = case("KG-5")
    files: dict[str, str | bytes] = {"valid.tsv": "a\tr\tc\n"}
    for split, triples in re.findall(r"(train|test): ([^.]*)\.", given):
        files[f"{split}.tsv"] = "".join("\t".join(triple.split()) + "\n" for triple in triples.split(","))
    assert set(files) == {"train.tsv", "valid.tsv", "test.tsv"}
    return graph_folder(tmp_path / "g", files), right


def test_kg_5_kept_and_counted(unseen: tuple[Path, str]) -> None:
    folder, right = unseen
    (counted,) = quoted(right)
    graph = read_graph(folder, unseen="keep")
    assert graph.num_entities == number(r"among (\d) entities", right)
    assert graph.test_notes == ()
    assert len(graph.open_test()) == 3
    assert graph.test_notes == (f"{counted}: kept, ranked among 5 entities (data.unseen=drop leaves them out)",)
    assert audit(read_raw(folder, test=True)).splits["test"].unseen == counted


def test_kg_5_dropped_to_nothing_is_an_error(unseen: tuple[Path, str]) -> None:
    folder, right = unseen
    (counted,) = quoted(right)
    graph = read_graph(folder, unseen="drop")
    assert graph.entities.names == ("a", "b", "c")
    with pytest.raises(DataError, match=re.escape(counted)) as caught:
        graph.open_test()
    assert "3 of 3 left out (data.unseen=drop); nothing is left of test" in str(caught.value)
    assert "data.unseen=keep" in caught.value.remedy


# --- KG-11: the split ---------------------------------------------------------------------------------------------------


def test_kg_11_a_single_triple_stays_in_train(tmp_path: Path, case: Callable[[str], tuple[str, str]]) -> None:
    _, right = case("KG-11")
    assert "The single triple stays in train" in right
    ring = "".join(f"e{i}\tr\te{(i + 1 + step) % 20}\n" for i in range(20) for step in range(3))
    graph = read_graph(graph_folder(tmp_path / "g", {"train.tsv": ring + "e0\tonce\te5\n"}))
    assert graph.relations.names == ("r", "once")
    assert (len(graph.train), len(graph.valid)) == (55, 6)
    assert (graph.train[:, 1] == 1).sum() == 1
    kept, aside = carve(graph.train, 1000, graph.num_entities, graph.num_relations)  # more than can be spared: it ends
    assert (kept[:, 1] == 1).sum() == 1
    assert len(kept) + len(aside) == 55
