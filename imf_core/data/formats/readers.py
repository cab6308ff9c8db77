"""Graph files -> `RawGraph`, line by line, and -> `KnowledgeGraph`, mended: tab-separated names, OpenKE ids, N-Triples.

Names keep every byte (undecodable ones survive as surrogate escapes). A byte order mark at the start of a file, CRLF line
ends and blank lines are format, not content. A wrong line is an error with file, line, value and remedy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imf_core.data.formats.headers import first_row, headers, is_header, odd_first_row, without_first
from imf_core.data.formats.layout import GraphFiles, SplitFile
from imf_core.data.formats.ntriples import read_ntriples
from imf_core.data.formats.openke import read_ids
from imf_core.data.formats.own import read_own
from imf_core.data.formats.parts import Part, merged
from imf_core.data.formats.tsv import name_rows, read_names
from imf_core.data.formats.vocabularies import find_list, read_list
from imf_core.data.graph.graph import KnowledgeGraph, RawGraph, Vocabulary
from imf_core.data.graph.mending import LazySplit, mended, with_test
from imf_core.data.graph.unseen import Policy
from imf_core.errors import ConfigError, DataError

_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8


def read_graph(source: Path | str | GraphFiles, *, unseen: Policy = "keep") -> KnowledgeGraph:
    """Read a graph, whichever of the known layouts it has, and mend it; the notes say what was mended.

    - Names: `train.tsv`, `valid.tsv`, `test.tsv` (`.txt` accepted), `head<TAB>relation<TAB>tail`.
    - N-Triples: `train.nt`, `valid.nt`, `test.nt`; literals are no entities.
    - OpenKE: `entity2id.txt`, `relation2id.txt`, `train2id.txt`, ... (a count, then `head tail relation` as ids).
    - RecBole: `train.kg`, ..., or a file `NAME.kg` given by its path.
    - What a reader of one's own reads: `train.NAME`, ..., by the name of the reader.

    Ids follow a list of names (`entities.txt`, `entities.dict` or `entity2id.txt`) if there is one, else the order of first
    appearance. Repeated lines are merged. Without a validation file a tenth of the training triples is set aside.

    The test file of a graph of names is read for entity and relation names alone (they are candidates of the ranking);
    `KnowledgeGraph.open_test` reads its triples.

    Args:
        source: a graph folder, or the files to read.
        unseen: validation and test triples with an entity or relation that training lacks are ranked (`keep`) or left out
            (`drop`: such entities are no candidates either).

    Raises:
        DataError: no known layout, a line that cannot be used, or nothing to validate on.
    """
    return read_files(GraphFiles.at(source)).mended(unseen)


def read_raw(source: Path | str | GraphFiles, *, test: bool = False) -> RawGraph:
    """Every line of a graph, in file order: nothing merged, nothing left out.

    Args:
        source: a graph folder in a layout that `read_graph` knows, or the files to read.
        test: read the triples of the test split too. Its names are in the vocabularies either way.

    Raises:
        DataError: no known layout, or a line that cannot be used.
    """
    return read_files(GraphFiles.at(source), test=test).raw


@dataclass(frozen=True)
class GraphReading:
    """The lines of a graph, and what it takes to make a graph to train on from them without reading a file again.

    Args:
        raw: the lines that were asked for.
        notes: the notes of `raw` without those on the test split, which a graph to train on knows nothing of.
        test: the test split: in memory if its lines were asked for, else still in its file; None if there is none.
        texts: `Part.texts` of the training file.
        validation_name: what a validation file would be called, for messages.
    """

    raw: RawGraph
    notes: tuple[str, ...]
    test: LazySplit | None
    texts: Mapping[str, Sequence[str]]
    validation_name: str

    def mended(self, unseen: Policy = "keep") -> KnowledgeGraph:
        """The graph to train on; arguments and errors as those of `read_graph`."""
        return mended(replace(self.raw, notes=self.notes), self.test, unseen, self.validation_name)

    def with_test(self, share: float, *, keep: bool) -> GraphReading:
        """The reading with a test split set aside from train; arguments and errors as those of `mending.with_test`.

        Args:
            share: of the triples.
            keep: as if the lines of test had been asked for: they are in `raw` too.

        Raises:
            ConfigError: the graph has a test split.
        """
        if self.test is not None:
            raise ConfigError(
                f"{self.raw.source} has a test split: none is set aside",
                remedy="leave out data.test_size (--test-size), or split anew: imf split DIR OUT", key="data.test_size",
                value=share,
            )
        split = with_test(self.raw, share)
        note, test = split.notes[-1], split.test
        assert test is not None
        return replace(
            self, raw=split if keep else replace(split, test=None), notes=(*self.notes, note), test=InMemory(test),
        )


def read_files(files: GraphFiles, *, test: bool = False, keep_literals: bool = False) -> GraphReading:
    """Read each file of a graph once.

    Args:
        files: what to read.
        test: read the triples of the test split too, and keep them in memory.
        keep_literals: keep the literals of an N-Triples training file.

    Raises:
        DataError: no known layout, or a line that cannot be used.
    """
    splits = files.splits
    train = splits["train"]
    parts = _read_ids(files, test) if train.format == "ids" else _read_names(files, test, keep_literals)
    general = [f"{name} ignored: {train.path.name} is used" for name in files.ignored()]
    for vocabulary in (parts.entities, parts.relations):
        general += _twins(vocabulary)
    triples = parts.triples
    encoding = _undecodable(parts.entities, splits) + _undecodable(parts.relations, splits)
    raw = RawGraph(
        parts.entities, parts.relations, triples["train"], triples.get("valid"), triples.get("test"),
        (*general, *parts.notes), str(files), problems=(*parts.problems, *encoding),
    )
    general += raw.problems
    later: LazySplit | None = None
    if "test" in splits:
        in_file = _InFile(splits["test"], raw.entities, raw.relations, _listed(files), parts.header)
        later = in_file if raw.test is None else InMemory(raw.test)
    name = {"ids": "valid2id.txt", "ntriples": "valid.nt", "names": "valid.tsv"}.get(train.format, f"valid.{train.format}")
    return GraphReading(raw, (*general, *parts.notes_without_test), later, parts.texts, name)


@dataclass(frozen=True)
class InMemory:
    """A test split whose lines have been read; see `LazySplit`. All of its names are known: reading made sure of that."""

    triples: np.ndarray

    def read(self, allow_unknown: bool) -> np.ndarray:
        return self.triples


@dataclass(frozen=True)
class _InFile:
    """A test split that is read, in a fixed numbering, when it is opened; see `LazySplit`."""

    file: SplitFile
    entities: Vocabulary
    relations: Vocabulary
    listed: str
    header: tuple[str, str, str] | None = None  # of the training file

    def read(self, allow_unknown: bool) -> np.ndarray:
        if self.file.format == "ids":
            return read_ids(self.file.path, len(self.entities), len(self.relations))[0]
        part = _part(self.file)
        row = first_row(part)
        if row is not None and (is_header(row) or row == self.header) and not _known(row, self.entities, self.relations):
            part = without_first(part)
        return _in_numbers(part, self.file, self.entities, self.relations, self.listed, allow_unknown)


@dataclass(frozen=True)
class _Parts:
    """Vocabularies, triples of each split that was read, notes with and without those on test, texts of train, problems, header
    of train.
    """

    entities: Vocabulary
    relations: Vocabulary
    triples: Mapping[str, np.ndarray]
    notes: Sequence[str]
    notes_without_test: Sequence[str]
    texts: Mapping[str, Sequence[str]]
    problems: Sequence[str] = ()
    header: tuple[str, str, str] | None = None


def _read_ids(files: GraphFiles, test: bool) -> _Parts:
    notes: list[str] = []
    vocabularies = []
    folders = _list_folders(files)
    for kind in ("entity", "relation"):
        path = find_list(kind, folders, ids=True)
        vocabulary, remarks = read_list(path or folders[0] / f"{kind}2id.txt", kind)
        vocabularies.append(vocabulary)
        notes += remarks
    entities, relations = vocabularies
    triples = {}
    notes_without_test = notes
    for split, file in files.splits.items():
        if split != "test" or test:
            triples[split], remarks = read_ids(file.path, len(entities), len(relations))
            notes = [*notes, *remarks]
            notes_without_test = notes_without_test if split == "test" else notes
    return _Parts(entities, relations, triples, notes, notes_without_test, {})


def _read_names(files: GraphFiles, test: bool, keep_literals: bool) -> _Parts:
    notes: list[str] = []
    lists = {}
    splits, folders = files.splits, _list_folders(files)
    for kind in ("entity", "relation"):
        path = find_list(kind, folders, ids=False)
        if path is not None:
            lists[kind], remarks = read_list(path, kind, terms=splits["train"].format == "ntriples")
            notes += remarks
    # Without lists the test file has to be looked at: its names are candidates, and their ids must not depend on when.
    parts = {
        split: _part(file, keep_literals and split == "train")
        for split, file in splits.items() if split != "test" or test or len(lists) < 2
    }
    rows = {split: row for split, row in headers(parts).items() if not _known(row, *lists.values())}
    parts = {split: without_first(part) if split in rows else part for split, part in parts.items()}
    named = [splits[split].path.name for split in rows if split != "test" or test]
    problems = [f"the first line of {', '.join(named)} looks like a header: it is left out"] if named else []
    odd = odd_first_row(parts)
    if odd is not None and (odd != "test" or test):
        notes.append(f"the first line of {splits[odd].path.name} has three names that occur nowhere else: is it a header?")
    entities = lists["entity"] if "entity" in lists else merged("entity", (part.entities for part in parts.values()))
    relations = lists["relation"] if "relation" in lists else merged("relation", (part.relations for part in parts.values()))
    literals = {split: part.literals for split, part in parts.items()}
    if not test:
        parts.pop("test", None)
    listed = _listed(files)
    triples = {split: _in_numbers(part, splits[split], entities, relations, listed) for split, part in parts.items()}
    without_test = sum(count for split, count in literals.items() if split != "test")
    with_test = without_test + (literals.get("test", 0) if test else 0)
    return _Parts(
        entities, relations, triples, [*notes, *_skipped(with_test)], [*notes, *_skipped(without_test)], parts["train"].texts,
        problems, rows.get("train"),
    )


def _known(row: tuple[str, str, str], *lists: Vocabulary) -> bool:
    """Whether a list has one of the names."""
    return any(name in vocabulary.index for vocabulary in lists for name in row)


def _skipped(literals: int) -> list[str]:
    """The note on literals, if any were left out."""
    note = f"{literals:,} literal objects skipped (data.text=literals uses those of train as text)"
    return [note] if literals else []


def _part(file: SplitFile, keep_literals: bool = False) -> Part:
    if file.format == "ntriples":
        return read_ntriples(file.path, keep_literals)
    return read_names(file.path) if file.format == "names" else read_own(file.format, file.path)


def _in_numbers(
    part: Part, file: SplitFile, entities: Vocabulary, relations: Vocabulary, listed: str, allow_unknown: bool = False
) -> np.ndarray:
    """(T, 3) int64; a name that the vocabularies lack is an error, or (`allow_unknown`) numbered from N or R on."""
    triples, unknown = part.renumbered(entities, relations)
    if unknown and not allow_unknown:
        name = unknown[0]
        raise DataError.at(
            file.path, _line_of(file, name), f"{name!r} is missing in {listed}",
            remedy="add the name there, or remove the list: it is then built from the triples",
        )
    return triples


def _list_folders(files: GraphFiles) -> list[Path]:
    """Where lists of names may lie, the likeliest first."""
    return [files.splits["train"].path.parent, *files.folders()]


def _line_of(file: SplitFile, name: str) -> int | None:
    """The first line with a name, of a file of names; N-Triples are not numbered by statement."""
    if file.format != "names":
        return None
    return next((number for number, *names in name_rows(file.path) if name in names), None)


def _listed(files: GraphFiles) -> str:
    """The lists of names in use, for messages."""
    paths = [find_list(kind, _list_folders(files), ids=False) for kind in ("entity", "relation")]
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


def _undecodable(vocabulary: Vocabulary, splits: Mapping[str, SplitFile]) -> list[str]:
    """What there is to say of names that are not UTF-8, above all if the same name is there in UTF-8 too."""
    odd = [name for name in vocabulary.names if not name.isascii() and _ESCAPED.search(name)]
    if not odd:
        return []
    lines = ((file, _line_of(file, odd[0])) for file in splits.values() if file.format == "names")
    first = next(((file, line) for file, line in lines if line is not None), None)
    place = f"; the first, {odd[0]!a}, in {first[0].path.name}, line {first[1]}" if first is not None else ""
    kinds = "entities" if vocabulary.kind == "entity" else "relations"
    twins = [(name, twin) for name in odd if (twin := _in_cp1252(name)) in vocabulary.index]
    told = f"{len(odd):,} names of {kinds} are not UTF-8{place}"
    if twins:
        told += f"; {len(twins):,} of them are there in UTF-8 too ({twins[0][1]}), as another one of the {kinds}"
    return [f"{told}: save the files as UTF-8"]


def _in_cp1252(name: str) -> str:
    """A name whose bytes are not UTF-8, read in the encoding of Windows."""
    return name.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
