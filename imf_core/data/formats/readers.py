"""Graph files -> `RawGraph`, line by line, and -> `KnowledgeGraph`, mended: tab-separated names, OpenKE ids, N-Triples.

Names keep every byte (undecodable ones survive as surrogate escapes). A byte order mark at the start of a file, CRLF line
ends and blank lines are format, not content. A wrong line is an error with file, line, value and remedy.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imf_core.data.formats.layout import GraphFiles, SplitFile
from imf_core.data.formats.ntriples import read_ntriples
from imf_core.data.formats.openke import read_ids
from imf_core.data.formats.parts import Part, merged
from imf_core.data.formats.tsv import name_rows, read_names
from imf_core.data.formats.vocabularies import find_list, read_list
from imf_core.data.graph.graph import KnowledgeGraph, RawGraph, Vocabulary
from imf_core.data.graph.mending import SplitOnDisk, mended
from imf_core.data.graph.unseen import Policy
from imf_core.errors import DataError


def read_graph(source: Path | str | GraphFiles, *, unseen: Policy = "keep") -> KnowledgeGraph:
    """Read a graph, whichever of the known layouts it has, and mend it; the notes say what was mended.

    - Names: `train.tsv`, `valid.tsv`, `test.tsv` (`.txt` accepted), `head<TAB>relation<TAB>tail`.
    - N-Triples: `train.nt`, `valid.nt`, `test.nt`; literals are no entities.
    - OpenKE: `entity2id.txt`, `relation2id.txt`, `train2id.txt`, ... (a count, then `head tail relation` as ids).

    Ids follow a list of names (`entities.txt`, `entities.dict` or `entity2id.txt`) where there is one, else the order of
    first appearance. Repeated lines are merged. Without a validation file a tenth of the training triples is set aside.

    The test file of a graph of names is looked at for entity and relation names alone (they are candidates of the ranking);
    its triples are read by `KnowledgeGraph.open_test`.

    Args:
        source: a graph folder, or the files to read.
        unseen: validation and test triples with an entity or relation that training lacks are ranked (`keep`) or left out
            (`drop`: such entities are no candidates either).

    Raises:
        DataError: no known layout, a line that cannot be used, or nothing to validate on.
    """
    files = GraphFiles.at(source)
    raw, test = _read(files, test=False)
    train = files.splits()["train"]
    name = "valid2id.txt" if train.format == "ids" else "valid.nt" if train.format == "ntriples" else "valid.tsv"
    return mended(raw, test, unseen, name)


def read_raw(source: Path | str | GraphFiles, *, test: bool = False) -> RawGraph:
    """Every line of a graph as it stands in its files: nothing merged, nothing left out.

    Args:
        source: a graph folder, as `read_graph` reads it, or the files to read.
        test: read the triples of the test split too. Its names are in the vocabularies either way.

    Raises:
        DataError: no known layout, or a line that cannot be used.
    """
    return _read(GraphFiles.at(source), test)[0]


@dataclass(frozen=True)
class _Numbered:
    """A file whose triples are read in a fixed numbering: the test split, when it is opened. See `SplitOnDisk`."""

    file: SplitFile
    entities: Vocabulary
    relations: Vocabulary
    listed: str

    def read(self, strangers: bool) -> np.ndarray:
        if self.file.format == "ids":
            return read_ids(self.file.path, len(self.entities), len(self.relations))[0]
        return _in_numbers(_part(self.file), self.file, self.entities, self.relations, self.listed, strangers)


def _read(files: GraphFiles, test: bool) -> tuple[RawGraph, SplitOnDisk | None]:
    """The graph, and what reads its test split later."""
    splits = files.splits()
    notes = [f"{name} ignored: {splits['train'].path.name} is used" for name in files.ignored()]
    graph = _read_ids(files, splits, test) if splits["train"].format == "ids" else _read_names(files, splits, test)
    for vocabulary in (graph.entities, graph.relations):
        notes += _twins(vocabulary)
    raw = RawGraph(
        graph.entities, graph.relations, graph.train, graph.valid, graph.test, (*notes, *graph.notes), str(files)
    )
    later = _Numbered(splits["test"], raw.entities, raw.relations, _listed(files)) if "test" in splits else None
    return raw, later


def _read_ids(files: GraphFiles, splits: dict[str, SplitFile], test: bool) -> RawGraph:
    notes: list[str] = []
    vocabularies = []
    folders = [splits["train"].path.parent, *files.folders()]
    for kind in ("entity", "relation"):
        path = find_list(kind, folders, ids=True)
        vocabulary, remarks = read_list(path or folders[0] / f"{kind}2id.txt", kind)
        vocabularies.append(vocabulary)
        notes += remarks
    entities, relations = vocabularies
    triples = {}
    for split, file in splits.items():
        if split != "test" or test:
            triples[split], remarks = read_ids(file.path, len(entities), len(relations))
            notes += remarks
    return RawGraph(entities, relations, triples["train"], triples.get("valid"), triples.get("test"), tuple(notes))


def _read_names(files: GraphFiles, splits: dict[str, SplitFile], test: bool) -> RawGraph:
    notes: list[str] = []
    lists = {}
    folders = [splits["train"].path.parent, *files.folders()]
    for kind in ("entity", "relation"):
        path = find_list(kind, folders, ids=False)
        if path is not None:
            lists[kind], remarks = read_list(path, kind, terms=splits["train"].format == "ntriples")
            notes += remarks
    # Without lists the test file has to be looked at: its names are candidates, and their ids must not depend on when.
    parts = {split: _part(file) for split, file in splits.items() if split != "test" or test or len(lists) < 2}
    entities = lists["entity"] if "entity" in lists else merged("entity", (part.entities for part in parts.values()))
    relations = lists["relation"] if "relation" in lists else merged("relation", (part.relations for part in parts.values()))
    skipped = sum(part.literals for split, part in parts.items() if split != "test" or test)
    if skipped:
        notes.append(f"{skipped:,} literal objects skipped (data.text=literals uses those of train as text)")
    if not test:
        parts.pop("test", None)
    listed = _listed(files)
    triples = {
        split: _in_numbers(part, splits[split], entities, relations, listed, strangers=False) for split, part in parts.items()
    }
    return RawGraph(entities, relations, triples["train"], triples.get("valid"), triples.get("test"), tuple(notes))


def _part(file: SplitFile) -> Part:
    return read_ntriples(file.path) if file.format == "ntriples" else read_names(file.path)


def _in_numbers(
    part: Part, file: SplitFile, entities: Vocabulary, relations: Vocabulary, listed: str, strangers: bool
) -> np.ndarray:
    """(T, 3) int64; names that the vocabularies lack are an error, or (`strangers`) numbered from N and R on."""
    triples, unknown = part.renumbered(entities, relations)
    if unknown and not strangers:
        name = unknown[0]
        raise DataError.at(
            file.path, _line_of(file, name), f"{name!r} is missing in {listed}",
            remedy="add the name there, or remove the list: it is then built from the triples",
        )
    return triples


def _line_of(file: SplitFile, name: str) -> int | None:
    """The line in which a name of a file of names stands first; N-Triples are not numbered by statement."""
    if file.format == "ntriples":
        return None
    return next((number for number, *names in name_rows(file.path) if name in names), None)


def _listed(files: GraphFiles) -> str:
    """The lists of names in use, for messages."""
    folders = [files.splits()["train"].path.parent, *files.folders()]
    paths = [find_list(kind, folders, ids=False) for kind in ("entity", "relation")]
    return " or ".join(path.name for path in paths if path is not None) or "the files as they were read first"


def _twins(vocabulary: Vocabulary) -> list[str]:
    """Notes on names that look the same: composed here, decomposed there, or with spaces around. They stay as they are."""
    odd = [name for name in vocabulary.names if not name.isascii() and not unicodedata.is_normalized("NFC", name)]
    first: dict[str, str] = {}
    composition = []
    for name in odd:
        composed = unicodedata.normalize("NFC", name)
        twin = composed if composed in vocabulary.index else first.get(composed)
        if twin is not None:
            composition.append((twin, name))
        first.setdefault(composed, name)
    padding = [(bare, name) for name in vocabulary.names if (bare := name.strip()) != name and bare in vocabulary.index]
    return [
        f"{len(pairs):,} {vocabulary.kind} names differ from another only by {how}, kept apart: "
        + " and ".join(ascii(name) for name in pairs[0])
        for pairs, how in ((composition, "Unicode composition"), (padding, "spaces around them"))
        if pairs
    ]
