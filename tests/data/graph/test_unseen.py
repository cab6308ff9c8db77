"""What training lacks, and what a graph lacks: one policy for unseen names in every split, a validation split set aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from imf_core.data.formats.readers import read_graph
from imf_core.data.graph.graph import RawGraph, Vocabulary
from imf_core.data.graph.mending import mended
from imf_core.errors import DataError


def put(folder: Path, **splits: str) -> Path:
    for split, text in splits.items():
        (folder / f"{split}.tsv").write_text("".join("\t".join(line.split()) + "\n" for line in text.split(",")))
    return folder


GRAPH = {
    "train": "a r b, b r c, b s a",
    "valid": "a s c, z r a, a q b, b s c",
    "test": "c r a, y r z, c q a, c s y, c s b",
}


def named(graph: object, rows: np.ndarray) -> list[str]:
    entities, relations = graph.entities.names, graph.relations.names  # type: ignore[attr-defined]
    return [f"{entities[h]} {relations[r]} {entities[t]}" for h, r, t in rows.tolist()]


def test_keep_ranks_them_among_all(tmp_path: Path) -> None:
    graph = read_graph(put(tmp_path, **GRAPH), unseen="keep")
    assert graph.entities.names == ("a", "b", "c", "z", "y")
    assert graph.relations.names == ("r", "s", "q")
    assert (len(graph.valid), len(graph.open_test())) == (4, 5)
    ranked = "kept, ranked among 5 entities (data.unseen=drop leaves them out)"
    assert graph.notes == (f"1 unseen entity in 1 validation triple; 1 unseen relation in 1: {ranked}",)
    assert graph.test_notes == (f"2 unseen entities in 2 test triples; 1 unseen relation in 1: {ranked}",)


def test_drop_leaves_them_out_of_splits_and_candidates(tmp_path: Path) -> None:
    graph = read_graph(put(tmp_path, **GRAPH), unseen="drop")
    assert (graph.entities.names, graph.relations.names) == (("a", "b", "c"), ("r", "s"))
    assert named(graph, graph.train) == ["a r b", "b r c", "b s a"]
    assert named(graph, graph.valid) == ["a s c", "b s c"]
    assert named(graph, graph.open_test()) == ["c r a", "c s b"]
    assert graph.notes == (
        "1 unseen entity in 1 validation triple; 1 unseen relation in 1: 2 of 4 left out (data.unseen=drop)",
    )
    assert graph.test_notes == (
        "2 unseen entities in 2 test triples; 1 unseen relation in 1: 3 of 5 left out (data.unseen=drop)",
    )
    assert graph.seen.all()


def test_drop_closes_the_gaps_that_a_list_leaves(tmp_path: Path) -> None:
    (tmp_path / "entities.txt").write_text("never\nc\nz\nb\na\n")
    (tmp_path / "relations.txt").write_text("q\ns\nr\n")
    graph = read_graph(put(tmp_path, **GRAPH), unseen="drop")
    assert (graph.entities.names, graph.relations.names) == (("c", "b", "a"), ("s", "r"))
    assert named(graph, graph.train) == ["a r b", "b r c", "b s a"]
    assert named(graph, graph.open_test()) == ["c r a", "c s b"]  # y is in no list: unseen, not unknown
    with pytest.raises(DataError, match=r"test\.tsv, line 2: 'y' is missing in entities\.txt or relations\.txt"):
        read_graph(tmp_path, unseen="keep").open_test()


def test_a_validation_split_that_is_dropped_whole_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 unseen entity in 1 validation triple: 1 of 1 left out .* nothing is left of valid"):
        read_graph(put(tmp_path, train="a r b, b r c", valid="z r a"), unseen="drop")


# --- no validation file -----------------------------------------------------------------------------------------------


def ring(size: int) -> str:
    return ", ".join(f"e{i} r{i % 3} e{(i + step) % size}" for i in range(size) for step in (1, 2, 3))


@pytest.mark.parametrize("suffix", ["tsv", "txt"])
def test_a_tenth_of_train_is_set_aside(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, train=ring(30))
    (tmp_path / "train.tsv").rename(tmp_path / f"train.{suffix}")
    first, again = read_graph(tmp_path), read_graph(tmp_path)
    assert (len(first.train), len(first.valid)) == (81, 9)
    assert first.notes == ("no valid.tsv: 9 triples set aside from train as validation (seed 0)",)
    assert first.fingerprint == again.fingerprint
    assert first.seen.all()
    assert set(first.train[:, 1].tolist()) == {0, 1, 2}
    assert not set(map(tuple, first.train.tolist())) & set(map(tuple, first.valid.tolist()))


def test_repeats_are_merged_before_so_that_no_triple_is_in_both(tmp_path: Path) -> None:
    graph = read_graph(put(tmp_path, train=f"{ring(30)}, {ring(30)}"))
    assert (len(graph.train), len(graph.valid)) == (81, 9)
    assert graph.notes[0] == "90 repeated training lines merged"


def test_the_test_file_does_not_change_what_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "entities.txt").write_text("".join(f"e{i}\n" for i in range(30)))
    (tmp_path / "relations.txt").write_text("r0\nr1\nr2\n")
    prints = [read_graph(put(tmp_path, train=ring(30), test=test)).fingerprint for test in ("e0 r0 e9", "e1 r1 e1, e0 r2 e2")]
    assert len(set(prints)) == 1


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=20)


@examples(150)
@given(train=ROWS, valid=st.none() | ROWS, policy=st.sampled_from(["keep", "drop"]))
def test_a_mended_graph_keeps_its_promises(train: list, valid: list | None, policy: str) -> None:
    entities, relations = Vocabulary(tuple("abcdef")), Vocabulary(tuple("rst"), "relation")
    rows = np.array(train, np.int64)
    raw = RawGraph(entities, relations, rows, np.array(valid, np.int64) if valid is not None else None, source="drawn")
    try:
        graph = mended(raw, None, policy)  # type: ignore[arg-type]
    except DataError as error:
        problem = str(error)
    else:
        problem = ""
        own, held = set(named(graph, graph.train)), set(named(graph, graph.valid))
        given = {f"{'abcdef'[h]} {'rst'[r]} {'abcdef'[t]}" for h, r, t in train}
        assert len(own) == len(graph.train)
        assert held
        assert own | held == given if valid is None else own == given
        assert policy == "keep" or graph.seen.all()
        assert {name for line in given for name in line.split()} == {name for line in own for name in line.split()}
    if problem:
        assert "nothing is left of valid" in problem if valid is not None else "no training triple can be spared" in problem
