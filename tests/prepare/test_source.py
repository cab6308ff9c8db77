"""A graph whose files are each read once, for the audit and for training alike, and what both get of it."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from imf_core.config import DataConfig
from imf_core.data.audit.audit import audit
from imf_core.data.features import feature_files
from imf_core.data.features.modality import Modality
from imf_core.data.formats import layout
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.errors import ConfigError, DataError
from imf_core.prepare.link_data import GraphSource, graph_of, load_prepared, prepare, save_prepared

RING = [(f"e{i}", f"r{i % 2}", f"e{(i + step) % 8}") for i in range(8) for step in (1, 2)]
SPLITS = {
    "train": RING[:12],
    "valid": [*RING[12:14], ("new", "r0", "e1")],
    "test": [*RING[14:], ("e1", "r1", "e1"), ("odd", "r0", "e2")],
}
NAMES = ("new", *(f"e{i}" for i in range(8)), "odd")


def names(folder: Path) -> dict[str, str]:
    return {f"{split}.tsv": "".join("\t".join(row) + "\n" for row in rows) for split, rows in SPLITS.items()} | {
        "descriptions.tsv": "".join(f"{name}\tthe node {name}\n" for name in NAMES)
    }


def listed_names(folder: Path) -> dict[str, str]:
    return {**names(folder), "entities.txt": "\n".join(NAMES), "relations.txt": "r1\nr0\n"}


def ids(folder: Path) -> dict[str, str]:
    files = {
        f"{split}2id.txt": f"{len(rows)}\n"
        + "".join(f"{NAMES.index(head)} {NAMES.index(tail)} {relation[1]}\n" for head, relation, tail in rows)
        for split, rows in SPLITS.items()
    }
    files["test2id.txt"] = files["test2id.txt"].partition("\n")[2]  # without a count, of which a note tells
    files["entity2id.txt"] = f"{len(NAMES)}\n" + "".join(f"{name}\t{row}\n" for row, name in enumerate(NAMES))
    files["descriptions.tsv"] = names(folder)["descriptions.tsv"]
    return {**files, "relation2id.txt": "2\nr0\t0\nr1\t1\n"}


def ntriples(folder: Path) -> dict[str, str]:
    files = {
        f"{split}.nt": "".join(f"<{head}> <{relation}> <{tail}> .\n" for head, relation, tail in rows)
        for split, rows in SPLITS.items()
    }
    for split in files:
        files[split] += '<e0> <label> "nought" .\n'
    return {**files, "literals.nt": '<e1> <label> "one" .\n<e0> <label> "again" .\n'}


LAYOUTS = pytest.mark.parametrize("written", [names, listed_names, ids, ntriples])


@pytest.fixture
def graph_folder(tmp_path: Path) -> Callable[[Callable[[Path], dict[str, str]]], DataConfig]:
    def write(written: Callable[[Path], dict[str, str]], **settings: object) -> DataConfig:
        folder = tmp_path / "graph"
        (folder / "modalities").mkdir(parents=True)
        for name, content in written(folder).items():
            (folder / name).write_text(content)
        Modality("sound", np.ones((9, 2), np.float32), np.ones(9, bool)).save(
            folder / "modalities" / "sound.safetensors", NAMES[1:]
        )
        np.save(folder / "modalities" / "smell.npy", np.ones((1, 2), np.float32))
        (folder / "modalities" / "smell.names.txt").write_text("e3\n")
        text = "literals" if written is ntriples else "auto"
        return DataConfig.model_validate({"path": str(folder), "text": text, **settings})

    return write  # type: ignore[return-value]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, by name; a peek at two lines to recognise a format is counted apart."""
    counts: Counter[str] = Counter()
    peeking: list[Path] = []
    open_file, format_of, safe_open = io.open, layout.format_of, feature_files.safe_open

    def counted(file: object, *args: object, **more: object) -> object:
        path = Path(str(file))
        counts[f"peek {path.name}" if path in peeking else path.name] += 1
        return open_file(file, *args, **more)  # type: ignore[call-overload]

    def peek(path: Path) -> str:
        peeking.append(path)
        try:
            return format_of(path)
        finally:
            peeking.remove(path)

    def counted_safetensors(path: Path, **more: object) -> object:
        counts[path.name] += 1
        return safe_open(path, **more)

    monkeypatch.setattr(feature_files, "safe_open", counted_safetensors)
    monkeypatch.setattr("builtins.open", counted)
    monkeypatch.setattr("io.open", counted)  # what `Path.open` and `Path.read_bytes` call
    monkeypatch.setattr(layout, "format_of", peek)
    return counts


@LAYOUTS
def test_each_file_is_opened_once(graph_folder, opened: Counter[str], written) -> None:
    """By audit, training and the final test together. Names alone do not tell what a .tsv file holds: its first two lines do,
    looked at once a file and apart from its content, as the format decides which reader opens it.
    """
    config = graph_folder(written)
    opened.clear()
    source = GraphSource.open(config, test=True)
    audit(source.raw, coverage=source.coverage(), baseline_splits=())
    data = source.prepare()
    assert len(data.graph.open_test()) == 4
    expected = dict.fromkeys([*written(Path(config.path)), "sound.safetensors", "smell.npy", "smell.names.txt"], 1)
    if written is not ids and written is not ntriples:
        expected |= dict.fromkeys(("peek train.tsv", "peek valid.tsv", "peek test.tsv"), 1)
    in_folder = {name: count for name, count in opened.items() if name.removeprefix("peek ") in expected}
    assert in_folder == expected
    assert {modality.name for modality in data.modalities} == {"text", "sound", "smell"}


@pytest.mark.parametrize("unseen", ["keep", "drop"])
@LAYOUTS
def test_audit_and_training_get_what_readers_of_their_own_give(graph_folder, written, unseen: str) -> None:
    config = graph_folder(written, unseen=unseen)
    source = GraphSource.open(config, test=True)
    raw, graph = read_raw(config.path, test=True), read_graph(config.path, unseen=unseen)
    assert (source.raw.entities, source.raw.relations, source.raw.notes) == (raw.entities, raw.relations, raw.notes)
    assert all(np.array_equal(source.raw.splits[split], rows) for split, rows in raw.splits.items())
    for mine in (source.graph(), source.prepare().graph, graph_of(config)):
        assert (mine.entities, mine.relations, mine.notes) == (graph.entities, graph.relations, graph.notes)
        assert mine.fingerprint == graph.fingerprint
        assert mine.test_notes == ()
        assert np.array_equal(mine.open_test(), graph.open_test())
        assert mine.test_notes == graph.test_notes
        assert ("left out" if unseen == "drop" else "kept") in mine.test_notes[0]
        mine.test_reader.notes = ()
    assert np.array_equal(source.prepare().modalities[0].matrix, prepare(config).modalities[0].matrix)


@LAYOUTS
def test_the_shared_form_holds_no_test_triple(graph_folder, written, tmp_path: Path) -> None:
    data = GraphSource.open(graph_folder(written), test=True).prepare()
    save_prepared(data, tmp_path / "prepared")
    again = load_prepared(tmp_path / "prepared")
    assert again.graph.test_reader is None
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["arrays.safetensors", "vocabulary.json"]
    rows = {tuple(row) for split in (again.graph.train, again.graph.valid) for row in split.tolist()}
    assert not rows & {tuple(row) for row in data.graph.open_test().tolist()}


def test_without_test_its_file_is_not_read_before_it_is_opened(graph_folder, opened: Counter[str]) -> None:
    source = GraphSource.open(graph_folder(listed_names), test=False)
    opened.clear()
    assert source.raw.test is None
    source.prepare()
    assert opened["test.tsv"] == 0
    assert len(source.graph().open_test()) == 4
    assert opened["test.tsv"] == 1


@pytest.fixture
def faulty(graph_folder) -> tuple[DataConfig, Path]:
    config = graph_folder(names)
    return config, Path(config.path)


def test_a_wrong_line_is_named_by_whoever_needs_it(faulty) -> None:
    config, folder = faulty
    (folder / "descriptions.tsv").write_text("e0\tone\ne1\n")
    source = GraphSource.open(config, test=True)
    problem = f"{folder / 'descriptions.tsv'}, line 2: no tab between entity and text (found 'e1')"
    assert next(entry for entry in source.coverage() if entry.name == "text").problem == problem
    with pytest.raises(DataError) as caught:
        source.prepare()
    assert (caught.value.problem, caught.value.line, caught.value.value) == (problem, 2, "e1")
    assert caught.value.remedy == "write entity<TAB>text"
    (folder / "test.tsv").write_text("e0\tr0\te1\ne0 r0\n")
    with pytest.raises(DataError, match=r"test\.tsv, line 2: 1 tab-separated columns instead of 3 \(found 'e0 r0'\)"):
        GraphSource.open(config, test=True)


def test_a_damaged_feature_file_is_a_problem_of_the_audit_and_an_error_of_training(faulty) -> None:
    config, folder = faulty
    (folder / "modalities" / "sound.safetensors").write_bytes(b"no such thing")
    source = GraphSource.open(config, test=True)
    entry = next(entry for entry in source.coverage() if entry.name == "sound")
    with pytest.raises(DataError) as caught:
        source.prepare()
    assert caught.value.problem == entry.problem
    assert "sound.safetensors" in entry.problem


# --- a test split that no file holds ------------------------------------------------------------------------------------


def alone(folder: Path) -> dict[str, str]:
    return {"train.tsv": "".join("\t".join(row) + "\n" for row in RING)}


def test_a_test_split_is_set_aside_alike_whoever_reads_and_no_trial_sees_it(
    graph_folder: Callable[..., DataConfig], tmp_path: Path
) -> None:
    config = graph_folder(alone, test_size="20%")
    audited, trained = (GraphSource.open(config, test=test) for test in (True, False))
    assert audited.raw.test is not None and trained.raw.test is None
    graph = trained.graph()
    assert graph.fingerprint == audited.graph().fingerprint
    test = graph.open_test()
    assert np.array_equal(test, audited.graph().open_test()) and np.array_equal(test, audited.raw.test)
    assert len(test) == 3 and len(graph.train) + len(graph.valid) + len(test) == len(RING)
    assert f"no test file: {len(test)} triples set aside from train as test (data.test_size=0.2, seed 0)" in graph.notes
    save_prepared(prepare(config), tmp_path / "prepared")
    shared = load_prepared(tmp_path / "prepared")
    assert not shared.has_test
    assert shared.graph.made["test"] == {"by": "bundle", "share": 0.2, "wanted": 3, "written": 3, "seed": 0}
    rows = {tuple(row) for row in np.concatenate([shared.graph.train, shared.graph.valid]).tolist()}
    assert not rows & {tuple(row) for row in test.tolist()}
    shutil.copytree(config.path, tmp_path / "copy")
    assert [prepare(config.elsewhere(str(path))).has_test for path in (config.path, tmp_path / "copy")] == [True, False]


def test_no_second_test_split_is_set_aside(graph_folder: Callable[..., DataConfig]) -> None:
    with pytest.raises(ConfigError, match="has a test split") as caught:
        graph_of(graph_folder(names, test_size=0.1))
    assert "--test-size" in caught.value.remedy
