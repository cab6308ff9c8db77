"""Graph folders -> `KnowledgeGraph`: tab-separated names, and OpenKE ids.

Names keep every byte (undecodable ones survive as surrogate escapes). A byte order mark at the start of a file, CRLF line
ends and blank lines are format, not content. A wrong line is an error with file, line, value and remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from imf_core.data.files import GraphFiles
from imf_core.data.graph import KnowledgeGraph, Vocabulary
from imf_core.data.raw import RawGraph
from imf_core.errors import DataError

_SPLITS = ("train", "valid", "test")
_SUFFIXES = (".tsv", ".txt")


def read_graph(folder: Path | str) -> KnowledgeGraph:
    """Read a graph folder, whichever of the known layouts it has.

    - Names: `train.tsv`, `valid.tsv`, `test.tsv` (`.txt` accepted), `head<TAB>relation<TAB>tail`. Ids follow
      `entities.txt` and `relations.txt` (a name a line) where these exist, else the order of first appearance.
    - OpenKE: `entity2id.txt`, `relation2id.txt`, `train2id.txt`, ... (a count, then `head tail relation` as ids).

    The test file of a names folder is looked at for entity and relation names alone (they are candidates of the ranking);
    its triples are read by `KnowledgeGraph.open_test`.

    Raises:
        DataError: no known layout, or a line that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder", remedy="give the folder that holds train.tsv or train2id.txt", path=str(folder)
        )
    if (folder / "train2id.txt").exists():
        return _read_openke(folder)
    if _split_file(folder, "train") is not None:
        return _read_names(folder)
    raise DataError(
        f"{folder} holds neither train.tsv, train.txt nor train2id.txt",
        remedy="put head<TAB>relation<TAB>tail lines into train.tsv (and valid.tsv, test.tsv)", path=str(folder),
    )


def read_raw(source: Path | str | GraphFiles, *, test: bool = False) -> RawGraph:
    """Every line of a graph as it stands in its files: nothing merged, nothing left out.

    Args:
        source: a graph folder, as `read_graph` reads it, or the files to read.
        test: read the triples of the test split too. Its names are in the vocabularies either way.

    Raises:
        DataError: no known layout, or a line that cannot be used.
    """
    folder = (source.folder or Path()) if isinstance(source, GraphFiles) else Path(source)
    if (folder / "train2id.txt").exists():
        entities = _read_id_names(folder / "entity2id.txt", "entity")
        relations = _read_id_names(folder / "relation2id.txt", "relation")
        paths = {split: folder / f"{split}2id.txt" for split in _SPLITS}
        ids = {
            split: _read_id_triples(path, len(entities), len(relations)) for split, path in paths.items()
            if path.exists() and (test or split != "test")
        }
    else:
        files = {split: path for split in _SPLITS if (path := _split_file(folder, split)) is not None}
        if "train" not in files:
            raise DataError(f"{folder} holds no train.tsv", remedy="put head<TAB>relation<TAB>tail lines there", path=str(folder))
        rows = {split: list(_name_rows(path)) for split, path in files.items()}
        lines = [line for part in rows.values() for line in part]
        entities = _vocabulary(folder / "entities.txt", "entity", (name for h, _, t in lines for name in (h, t)))
        relations = _vocabulary(folder / "relations.txt", "relation", (r for _, r, _ in lines))
        ids = {s: _to_ids(part, files[s], entities, relations) for s, part in rows.items() if test or s != "test"}
    return RawGraph(entities, relations, ids["train"], ids.get("valid"), ids.get("test"), source=str(folder))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the non-blank lines, without line end and byte order mark.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        handle = path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}", remedy="check the path and its permissions", path=str(path)
        ) from error
    with handle:
        for number, raw in enumerate(handle, 1):
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raw = raw[3:]
            line = raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            if line.strip():
                yield number, line


def _split_file(folder: Path, split: str) -> Path | None:
    return next((folder / f"{split}{suffix}" for suffix in _SUFFIXES if (folder / f"{split}{suffix}").exists()), None)


# --- names --------------------------------------------------------------------------------------------------------------


def _read_names(folder: Path) -> KnowledgeGraph:
    files = {split: _split_file(folder, split) for split in _SPLITS}
    rows = {split: list(_name_rows(path)) for split, path in files.items() if path is not None and split != "test"}
    if "valid" not in rows:
        raise DataError(
            f"{folder} has no valid.tsv: hyperparameters and epochs are chosen on it",
            remedy="add valid.tsv, for example a tenth of train.tsv", path=str(folder),
        )
    seen = rows["train"] + rows["valid"]
    extra = list(_name_rows(files["test"])) if files["test"] is not None else []
    entities = _vocabulary(folder / "entities.txt", "entity", (name for h, _, t in seen + extra for name in (h, t)))
    relations = _vocabulary(folder / "relations.txt", "relation", (r for _, r, _ in seen + extra))
    split_ids = {split: _to_ids(rows[split], files[split], entities, relations) for split in rows}
    reader = partial(_read_name_ids, files["test"], entities, relations) if files["test"] is not None else None
    return _graph(folder, entities, relations, split_ids["train"], split_ids["valid"], reader)


def _name_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != 3:
            raise DataError.at(
                path,
                number,
                f"{len(cells)} tab-separated columns instead of 3",
                value=line[:80],
                remedy="write head<TAB>relation<TAB>tail",
            )
        if not all(cell.strip() for cell in cells):
            raise DataError.at(path, number, "an empty name", value=line[:80], remedy="write head<TAB>relation<TAB>tail")
        yield cells[0], cells[1], cells[2]


def _vocabulary(path: Path, kind: str, names: Iterator[str]) -> Vocabulary:
    if not path.exists():
        return Vocabulary(tuple(dict.fromkeys(names)), kind)
    listed: dict[str, int] = {}
    for number, line in read_lines(path):
        if line in listed:
            raise DataError.at(
                path, number, f"{kind} listed twice (first in line {listed[line]})", value=line, remedy="keep one of the lines"
            )
        listed[line] = number
    return Vocabulary(tuple(listed), kind)


def _to_ids(rows: list[tuple[str, str, str]], path: Path | None, entities: Vocabulary, relations: Vocabulary) -> np.ndarray:
    index, kinds = entities.index, relations.index
    try:
        ids = [(index[h], kinds[r], index[t]) for h, r, t in rows]
    except KeyError as error:
        raise DataError(
            f"{path}: {error.args[0]!r} is missing in entities.txt or relations.txt",
            remedy="add the name there, or remove the list: it is then built from the triples",
            path=str(path),
            value=error.args[0],
        ) from error
    return np.asarray(ids, dtype=np.int64).reshape(-1, 3)


def _read_name_ids(path: Path, entities: Vocabulary, relations: Vocabulary) -> np.ndarray:
    return _to_ids(list(_name_rows(path)), path, entities, relations)


# --- OpenKE -------------------------------------------------------------------------------------------------------------


def _read_openke(folder: Path) -> KnowledgeGraph:
    entities = _read_id_names(folder / "entity2id.txt", "entity")
    relations = _read_id_names(folder / "relation2id.txt", "relation")
    read = partial(_read_id_triples, num_entities=len(entities), num_relations=len(relations))
    if not (folder / "valid2id.txt").exists():
        raise DataError(
            f"{folder} has no valid2id.txt: hyperparameters and epochs are chosen on it", remedy="add it", path=str(folder)
        )
    test = folder / "test2id.txt"
    return _graph(
        folder,
        entities,
        relations,
        read(folder / "train2id.txt"),
        read(folder / "valid2id.txt"),
        partial(read, test) if test.exists() else None,
    )


def _read_id_names(path: Path, kind: str) -> Vocabulary:
    count, rows = _counted_lines(path)
    names: list[str | None] = [None] * count
    for number, line in rows:
        name, _, text = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        if not name or not text.strip().isdecimal():
            raise DataError.at(path, number, "no `name id` pair", value=line[:80], remedy="write the name, a tab and the id")
        position = int(text)
        if position >= count:
            raise DataError.at(
                path, number, f"id out of range 0..{count - 1}", value=position, remedy="correct the count in line 1 or the id"
            )
        if names[position] is not None:
            raise DataError.at(
                path, number, f"id used twice (also by {names[position]!r})", value=position, remedy="give each name its own id"
            )
        names[position] = name
    complete = [name for name in names if name is not None]
    if len(set(complete)) != len(complete):
        repeated = next(name for name in complete if complete.count(name) > 1)
        raise DataError(f"{path}: two ids for the name {repeated!r}", remedy="merge them", path=str(path), value=repeated)
    return Vocabulary(tuple(complete), kind)


def _counted_lines(path: Path) -> tuple[int, list[tuple[int, str]]]:
    lines = list(read_lines(path))
    if not lines or not lines[0][1].strip().isdecimal():
        raise DataError.at(
            path,
            1,
            "no count in the first line",
            value=lines[0][1][:40] if lines else "",
            remedy="write the number of rows first",
        )
    count = int(lines[0][1])
    if count != len(lines) - 1:
        raise DataError.at(
            path,
            1,
            f"the count does not agree with {len(lines) - 1} rows",
            value=count,
            remedy="correct the count; the file may be cut short",
        )
    return count, lines[1:]


def _read_id_triples(path: Path, num_entities: int, num_relations: int) -> np.ndarray:
    count, rows = _counted_lines(path)
    triples = np.empty((count, 3), dtype=np.int64)
    for position, (number, line) in enumerate(rows):
        cells = line.split()
        if len(cells) != 3 or not all(cell.isdecimal() for cell in cells):
            raise DataError.at(path, number, "no three ids", value=line[:80], remedy="write `head tail relation` as ids")
        head, tail, relation = int(cells[0]), int(cells[1]), int(cells[2])
        if max(head, tail) >= num_entities or relation >= num_relations:
            raise DataError.at(
                path, number, f"id out of range ({num_entities} entities, {num_relations} relations)", value=line,
                remedy="the order is head, tail, relation",
            )
        triples[position] = head, relation, tail
    return triples


def _graph(
    folder: Path, entities: Vocabulary, relations: Vocabulary, train: np.ndarray, valid: np.ndarray, reader: object
) -> KnowledgeGraph:
    notes = []
    distinct = _distinct(train)
    if len(distinct) < len(train):
        notes.append(f"{len(train) - len(distinct):,} repeated training lines merged")
    clean = _distinct(valid)
    if len(clean) < len(valid):
        notes.append(f"{len(valid) - len(clean):,} repeated validation lines merged")
    overlap = len(clean) and int(np.isin(_codes(clean, entities, relations), _codes(distinct, entities, relations)).sum())
    if overlap:
        notes.append(f"{overlap:,} of {len(clean):,} validation triples are training triples: the validation score is too good")
    return KnowledgeGraph(entities, relations, distinct, clean, reader, tuple(notes), str(folder))  # type: ignore[arg-type]


def _distinct(triples: np.ndarray) -> np.ndarray:
    """Without repeats, in order of first appearance."""
    if not len(triples):
        return triples
    _, first = np.unique(triples, axis=0, return_index=True)
    return triples[np.sort(first)]


def _codes(triples: np.ndarray, entities: Vocabulary, relations: Vocabulary) -> np.ndarray:
    return (triples[:, 0] * len(relations) + triples[:, 1]) * len(entities) + triples[:, 2]
