"""RecBole's atomic files: read as they are, and refused with file, line, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.data.formats.readers import read_graph
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.errors import ConfigError, DataError
from imf_core.recommend.data.atomic_files import read_atomic, read_kg, read_link
from imf_core.testing import ReaderContract


class TestKg(ReaderContract):
    name = "kg"

    def write(self, path: Path, triples) -> None:  # type: ignore[no-untyped-def]
        lines = ["head_id:token\trelation_id:token\ttail_id:token", *("\t".join(row) for row in triples)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def films(folder: Path) -> Path:
    """A folder as RecBole ships it."""
    folder.mkdir(exist_ok=True)
    pairs = [f"{user}\t{item}\t{1 + (user + item) % 5}" for user in range(1, 11) for item in range(1, 13) if (user + item) % 3]
    write(folder / "ml.inter", "user_id:token\titem_id:token\trating:float", *pairs)
    write(folder / "ml.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *(
        f"{item}\tFilm {item}\t{1990 + item}\tDrama Comedy" for item in range(1, 12)
    ))
    write(folder / "ml.kg", "head_id:token\trelation_id:token\ttail_id:token", *(
        f"m.{item}\tfilm.genre\tm.{'comedy' if item % 2 else 'drama'}" for item in range(1, 10)
    ), *(f"m.{item}\tfilm.next\tm.{item + 1}" for item in range(1, 9)))
    write(folder / "ml.link", "item_id:token\tentity_id:token", *(f"{item}\tm.{item}" for item in range(1, 11)))
    return folder


def test_columns_are_read_with_their_types(tmp_path: Path) -> None:
    table = read_atomic(write(tmp_path / "x.item", "item_id:token\tyear:float", "7\t1990", "", "8\t"))
    assert (table.types, table.lines) == ({"item_id": "token", "year": "float"}, (2, 4))
    assert table.columns == {"item_id": ("7", "8"), "year": ("1990", "")}
    with pytest.raises(DataError, match="no column entity_id"):
        table.column("entity_id")


@pytest.mark.parametrize(("rows", "line", "words"), [
    (("item_id\tyear:float",), 1, "no type of RecBole's"),
    (("item_id:token\tyear:double",), 1, "no type of RecBole's"),
    (("item_id:token\titem_id:token",), 1, "stands there twice"),
    (("item_id:token\tyear:float", "7"), 2, "1 columns instead of 2"),
])
def test_a_wrong_line_is_named(tmp_path: Path, rows: tuple[str, ...], line: int, words: str) -> None:
    file = write(tmp_path / "x.item", *rows)
    with pytest.raises(DataError, match=words) as refused:
        read_atomic(file)
    assert (refused.value.path, refused.value.line) == (str(file), line) and refused.value.remedy


def test_triples_and_links(tmp_path: Path) -> None:
    kg = write(tmp_path / "x.kg", "head_id:token\trelation_id:token\ttail_id:token", "a\tr\tb", "b\tr\t")
    assert next(read_kg(kg)) == ("a", "r", "b")
    with pytest.raises(DataError, match="an empty name"):
        list(read_kg(kg))
    with pytest.raises(DataError, match="no column relation_id"):
        list(read_kg(write(tmp_path / "y.kg", "head_id:token\ttail_id:token", "a\tb")))
    link = write(tmp_path / "x.link", "item_id:token\tentity_id:token", "1\tm.1", "1\tm.1", "2\tm.2")
    assert read_link(link) == {"1": "m.1", "2": "m.2"}
    with pytest.raises(DataError, match="linked to two entities"):
        read_link(write(tmp_path / "y.link", "item_id:token\tentity_id:token", "1\tm.1", "1\tm.2"))


def test_the_audit_reads_all_files_as_they_are(tmp_path: Path) -> None:
    folder = films(tmp_path / "ml")
    run = CliRunner().invoke
    for command in (["audit"], ["recommender", "audit"]):
        told = " ".join(run(app, [*command, str(folder)], catch_exceptions=False).stdout.split())
        assert "10 users, 12 items" in told
        assert "ml.item: describes 11 of 12 items: movie_title (token_seq), release_year (token), class (token_seq)" in told
        assert "ml.kg: 17 triples, 11 entities, 2 relations" in told
        assert "ml.link: 10 of 12 items are entities of the graph; 1 of these have no triple there" in told
    failed = run(app, ["audit", str(folder), "--repair", str(tmp_path / "x")])
    assert isinstance(failed.exception, ConfigError) and "no graph to repair" in failed.exception.problem
    write(folder / "ml.link", "item_id:token\tentity_id:token", "1")
    failed = run(app, ["audit", str(folder)])
    assert isinstance(failed.exception, DataError) and failed.exception.line == 2


def test_a_kg_is_a_graph_to_audit_and_train_on(tmp_path: Path) -> None:
    folder = films(tmp_path / "ml")
    told = CliRunner().invoke(app, ["audit", "--train", str(folder / "ml.kg")], catch_exceptions=False).stdout
    assert "11 entities, 2 relations" in told
    for split in ("train", "valid"):
        (folder / f"{split}.kg").write_bytes((folder / "ml.kg").read_bytes())
    graph = read_graph(folder)
    assert isinstance(graph, KnowledgeGraph) and (graph.num_entities, graph.num_relations, len(graph.train)) == (11, 2, 17)
