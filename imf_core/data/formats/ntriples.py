"""N-Triples: one statement a line. IRIs and blank nodes are entities; literals are none, but can serve as text.

Oxigraph reads the statements: dots and escapes in IRIs, language tags, tabs, `<b>.` without a space, comments. It reads
leniently, so that relative IRIs (`<a>`) are names too. A blank node is the same entity in all files of a graph.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyoxigraph

from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.parts import Part
from imf_core.data.formats.terms import in_brackets, is_iri, name_of, term_of
from imf_core.data.formats.tsv import split_fast
from imf_core.errors import DataError
from imf_core.files.lines import BROKEN, BYTE_ORDER_MARK, is_large, open_text, unreadable

LITERALS_FILE = "literals.nt"
_BATCH = 1 << 22  # bytes parsed at a time
_TERMS = 1 << 15  # terms parsed at a time
_IRI = re.compile(r"<[^<>\s]*>")
_TERM = re.compile(rf"{_IRI.pattern}|_:[A-Za-z0-9_]+")
_PLACE = re.compile(r"^Parser error at line \d+ (?:column \d+|between columns \d+ and (?:line \d+ )?(?:column )?\d+): ")
_REMEDY = "write <head> <relation> <tail> . with one statement a line"


class Statement(NamedTuple):
    """One line. The object is a name, or a literal's text."""

    subject: str
    predicate: str
    object: str
    literal: bool


def read_ntriples(path: Path, keep_literals: bool = False) -> Part:
    """The statements between entities; those with a literal are counted.

    Args:
        path: the file.
        keep_literals: keep the literals as `Part.texts`.

    Raises:
        DataError: the file cannot be opened, or a line is no statement.
    """
    return (read_ntriples_fast(path) if is_large(path) else None) or read_ntriples_carefully(path, keep_literals)


def read_ntriples_fast(path: Path) -> Part | None:
    """Arrow splits the lines, Oxigraph reads each distinct term once; None where the careful reader has to look.

    Files of plain statements are read this way: `<head> <relation> <tail> .` with single spaces, without literals or comments.
    """
    part = split_fast(path, " ", 4)
    if part is None:
        return None
    entities = _names(part.entities, "<s> <p> {} .", "object")
    relations = _names(part.relations, "<s> {} <o> .", "predicate") if entities is not None else None
    if entities is None or relations is None:
        return None
    return Part(entities, relations, part.triples)


def read_ntriples_carefully(path: Path, keep_literals: bool = False) -> Part:
    """Statement by statement; see `read_ntriples`."""
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    ids = array("q")
    literals = 0
    texts: dict[str, list[str]] = {}
    for subject, predicate, target, literal in statements(path):
        if literal:
            literals += 1
            if keep_literals and target.strip():
                texts.setdefault(subject, []).append(target)
            continue
        ids.append(entities.setdefault(subject, len(entities)))
        ids.append(relations.setdefault(predicate, len(relations)))
        ids.append(entities.setdefault(target, len(entities)))
    return Part(tuple(entities), tuple(relations), np.array(ids, dtype=np.int64).reshape(-1, 3), literals, texts)


def literal_texts(
    source: Path | str | GraphFiles, train: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """The literals of each subject as one text: entity name -> its literals, joined by spaces in the order of the file.

    Reads the training file of `source` and `literals.nt` in the folder, if there. Language tags and data types are dropped.
    The literals of validation and test files are left alone.

    Args:
        source: a graph folder, or the files to read.
        train: `Part.texts` of the training file, if it has been read already; it is not read again.

    Raises:
        DataError: no N-Triples file, or a line that cannot be used.
    """
    files = GraphFiles.at(source)
    paths = _with_literals(files)
    if not paths:
        raise DataError(
            f"{files} has no N-Triples file, so it has no literals",
            remedy=f"add {LITERALS_FILE}, or set data.text to another source than literals", path=str(files),
        )
    texts = {subject: list(literals) for subject, literals in (train or {}).items()}
    for path in paths:
        if train is not None and path == files.splits["train"].path:
            continue
        for subject, _, text, literal in statements(path):
            if literal and text.strip():
                texts.setdefault(subject, []).append(text)
    return {subject: " ".join(literals) for subject, literals in texts.items()}


def literal_lines(source: Path | str | GraphFiles) -> Iterator[str]:
    """The statements that `literal_texts` reads, as lines of N-Triples that say the same; none if there is no such file.

    Raises:
        DataError: a line that cannot be used.
    """
    for path in _with_literals(GraphFiles.at(source)):
        for triple in _triples(path):
            if type(triple.object) is pyoxigraph.Literal:
                subject, relation, text, _ = _statement(triple, {}, {})
                known = is_iri(triple.object.datatype.value)  # another one could not be read back: its text counts
                literal = triple.object if known else pyoxigraph.Literal(text)
                terms = (in_brackets(term_of(name, kind)) for name, kind in ((subject, "entity"), (relation, "relation")))
                yield f"{' '.join(terms)} {literal} ."


def statements(path: Path) -> Iterator[Statement]:
    """The statements of a file, in its order; comments and blank lines are passed over.

    Raises:
        DataError: the file cannot be opened, or a line is no statement; file and line are named.
    """
    names: dict[str, str] = {}
    relations: dict[str, str] = {}
    for triple in _triples(path):
        yield _statement(triple, names, relations)


def _names(terms: tuple[str, ...], statement: str, place: str) -> tuple[str, ...] | None:
    """The names of distinct terms; None where one is not plain, or where two have the same name.

    Args:
        terms: in the spelling of the file.
        statement: a statement with a gap for a term.
        place: where in the statement the gap is: `object` or `predicate`.
    """
    # A term that a parser might leave before its end could hide what follows, so only whole ones are asked about.
    if not all(map((_TERM if place == "object" else _IRI).fullmatch, terms)):
        return None
    kind = "entity" if place == "object" else "relation"
    names: dict[str, None] = {}
    for start in range(0, len(terms), _TERMS):
        lines = [statement.format(term).encode("utf-8", "surrogateescape") for term in terms[start : start + _TERMS]]
        try:
            triples = _parse(b"\n".join(lines))
        except SyntaxError:
            return None
        for triple in triples:
            names[_entity(triple.object, {}) if kind == "entity" else name_of(triple.predicate.value, kind)] = None
    return tuple(names) if len(names) == len(terms) else None


def _with_literals(files: GraphFiles) -> list[Path]:
    """The files whose literals can serve as text."""
    train = files.splits["train"]
    paths = [train.path] if train.format == "ntriples" else []
    return paths + [path for folder in files.folders() if (path := folder / LITERALS_FILE).exists()]


def _triples(path: Path) -> Iterator[Any]:
    with open_text(path) as handle:
        before = 0
        while raw := _batch(path, handle):
            data = b"".join(raw)
            if before == 0:
                data = data.removeprefix(BYTE_ORDER_MARK)
            lines = data.splitlines()  # at line feeds and carriage returns: the format knows both
            yield from _parsed(path, lines, before)
            before += len(lines)


def _batch(path: Path, handle: BinaryIO) -> list[bytes]:
    try:
        return handle.readlines(_BATCH)
    except BROKEN as error:
        raise unreadable(path, error) from error


def _parsed(path: Path, lines: list[bytes], before: int) -> list[Any]:
    """The triples of some lines; `before` lines of the file stand before them."""
    statements = [line for line in lines if line.lstrip()[:1] not in (b"", b"#")]
    try:
        triples = _parse(b"\n".join(statements))
    except SyntaxError:
        triples = None
    # A literal that runs over the end of its line swallows the next ones: then there are fewer triples than lines.
    if triples is not None and len(triples) == len(statements):
        return triples
    triples = []
    for number, line in enumerate(lines, before + 1):
        try:
            triples += _parse(line)
        except SyntaxError as error:
            if (short := _without_graph(line)) is not None:
                triples += short
                continue
            reason = _PLACE.sub("", str(error.msg))
            shown = line[:80].decode("utf-8", "surrogateescape")
            raise DataError.at(path, number, f"no statement: {reason}", value=shown, remedy=_REMEDY) from error
    return triples


def _without_graph(line: bytes) -> list[Any] | None:
    """The statement of a line of N-Quads, whose fourth term names a graph; None where it is none."""
    try:
        quads = list(pyoxigraph.parse(line, format=pyoxigraph.RdfFormat.N_QUADS, lenient=True))
    except SyntaxError:
        return None
    return None if any(type(quad.object) is pyoxigraph.Triple for quad in quads) else [quad.triple for quad in quads]


def _parse(data: bytes) -> list[Any]:
    triples = list(pyoxigraph.parse(data, format=pyoxigraph.RdfFormat.N_TRIPLES, lenient=True))
    for triple in triples:
        if type(triple.object) is pyoxigraph.Triple:
            raise SyntaxError("a statement about a statement is no triple of entities")
    return triples


def _statement(triple: Any, names: dict[str, str], relations: dict[str, str]) -> Statement:
    """Args: names, relations: what was decoded before, so that each term is decoded once."""
    predicate = triple.predicate.value
    relation = relations.get(predicate)
    if relation is None:
        relation = relations[predicate] = name_of(predicate, "relation")
    target = triple.object
    if type(target) is pyoxigraph.Literal:
        return Statement(_entity(triple.subject, names), relation, target.value, True)
    return Statement(_entity(triple.subject, names), relation, _entity(target, names), False)


def _entity(node: Any, names: dict[str, str]) -> str:
    if type(node) is pyoxigraph.BlankNode:
        term = f"_:{node.value}"
    else:
        term = node.value if not node.value.startswith("_:") else f"<{node.value}>"  # an IRI that looks like a blank node
    name = names.get(term)
    if name is None:
        name = names[term] = name_of(term, "entity")
    return name
