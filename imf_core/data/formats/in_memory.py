"""Triples that are in memory already: lists and data frames, numbered as the lines of a file are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from imf_core.data.formats.parts import Part, merged
from imf_core.data.formats.readers import GraphReading, InMemory
from imf_core.data.graph.graph import KnowledgeGraph, RawGraph
from imf_core.errors import DataError

IN_MEMORY = "(in memory)"  # stands for the folder of a graph that has none
COLUMNS = ("head", "relation", "tail")
_BREAKS = "\t\r\n"  # what neither a file of triples nor a list of names can hold
_REMEDY = "give (head, relation, tail) names, or a frame with the columns head, relation and tail"


def read_triples(train: Any, valid: Any = None, test: Any = None) -> GraphReading:
    """The lines of a graph from memory; ids follow the order of first appearance, as those of files without lists do.

    Args:
        train: a list of (head, relation, tail), or a pandas or polars frame with the columns `head`, `relation`, `tail`. Names
            are texts; whole numbers become texts.
        valid: the same; None: a tenth of train is set aside, see `read_graph`.
        test: the same; None: there is no test split.

    Raises:
        DataError: a row that is no triple of names; it says which.
    """
    given = {"train": train, "valid": valid, "test": test}
    parts = {split: _part(split, rows) for split, rows in given.items() if rows is not None}
    entities = merged("entity", (part.entities for part in parts.values()))
    relations = merged("relation", (part.relations for part in parts.values()))
    triples = {split: part.renumbered(entities, relations)[0] for split, part in parts.items()}
    raw = RawGraph(entities, relations, triples["train"], triples.get("valid"), triples.get("test"), source=IN_MEMORY)
    return GraphReading(raw, (), InMemory(triples["test"]) if "test" in triples else None, {}, "valid=")


def reading_of(graph: KnowledgeGraph, *, test: bool) -> GraphReading:
    """The lines of a graph that was made by other means; its test split is opened only where it is asked for."""
    lines = graph.open_test() if test and graph.test_reader is not None else None
    raw = RawGraph(
        graph.entities, graph.relations, graph.train, graph.valid, lines, graph.notes, graph.source or IN_MEMORY, graph.made
    )
    return GraphReading(raw, graph.notes, InMemory(lines) if lines is not None else None, {}, "valid=")


def _part(split: str, rows: Any) -> Part:
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    ids = array("q")
    for number, row in enumerate(_rows(split, rows), start=1):
        if isinstance(row, str) or not isinstance(row, Sequence | np.ndarray) or len(row) != len(COLUMNS):
            raise DataError.at(split, None, f"row {number} is no triple", value=row, remedy=_REMEDY)
        head, relation, tail = (_name(split, number, column, value) for column, value in zip(COLUMNS, row, strict=True))
        ids.append(entities.setdefault(head, len(entities)))
        ids.append(relations.setdefault(relation, len(relations)))
        ids.append(entities.setdefault(tail, len(entities)))
    return Part(tuple(entities), tuple(relations), np.array(ids, dtype=np.int64).reshape(-1, 3))


def _rows(split: str, rows: Any) -> Iterator[Any]:
    columns = getattr(rows, "columns", None)
    if columns is None:
        if isinstance(rows, str) or not isinstance(rows, Iterable):
            raise DataError.at(split, None, f"{type(rows).__name__} holds no triples", remedy=_REMEDY)
        return iter(rows)
    if missing := [column for column in COLUMNS if column not in list(columns)]:
        found = ", ".join(map(str, columns))
        raise DataError.at(split, None, f"the frame has no column {missing[0]!r}", value=found, remedy="rename its columns")
    return zip(*(rows[column].to_list() for column in COLUMNS), strict=True)


def _name(split: str, number: int, column: str, value: Any) -> str:
    name = str(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else value
    if not isinstance(name, str) or not name.strip() or any(sign in name for sign in _BREAKS):
        problem = f"row {number}: the {column} is no name"
        raise DataError.at(split, None, problem, value=value, remedy="names are texts without tabs and line ends")
    return name


def is_in_memory(data: Any) -> bool:
    """Whether these are triples rather than a path or something prepared."""
    return hasattr(data, "columns") or isinstance(data, list | tuple | np.ndarray)


def named_rows(features: Any) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and (K, f) float32 of features that are in memory.

    Args:
        features: `(names, matrix)`, or a vector by name.

    Raises:
        DataError: the vectors are no matrix of numbers.
    """
    pairs = isinstance(features, tuple) and len(features) == 2
    names, rows = features if pairs else (features.keys(), list(features.values()))
    try:
        matrix = np.asarray(rows, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"features are no matrix of numbers: {error}", remedy="give (names, matrix): one row a name") from error
    if matrix.ndim != 2:
        raise DataError(f"features are no matrix: shape {matrix.shape}", remedy="give (names, matrix): one row a name")
    return tuple(chain(names)), matrix
