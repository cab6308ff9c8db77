"""Tab-separated names: `head<TAB>relation<TAB>tail`.

Two readers that agree on every file. The careful one goes line by line and names the wrong line. The fast one lets Apache
Arrow split and number the names, and steps back wherever a file holds something on which the two could differ: the careful
reader then has the say.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imf_core.data.formats.parts import Part
from imf_core.errors import DataError
from imf_core.files.lines import BROKEN, is_large, open_text, read_lines

_BLOCK = 1 << 24  # bytes that Arrow splits at a time
_REMEDY = "write head<TAB>relation<TAB>tail"


def read_names(path: Path) -> Part:
    """Read a file of names by the fastest reader that can be trusted with it.

    Raises:
        DataError: the file cannot be opened, or a line has not three names.
    """
    return (read_names_fast(path) if is_large(path) else None) or read_names_carefully(path)


def name_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(line number, head, relation, tail) of each line.

    Raises:
        DataError: a line has not three names.
    """
    for number, line in read_lines(path):
        cells = line.split("\t")
        if len(cells) != 3:
            problem = f"{len(cells)} tab-separated columns instead of 3"
            raise DataError.at(path, number, problem, value=line[:80], remedy=_REMEDY)
        if not all(cell.strip() for cell in cells):
            raise DataError.at(path, number, "an empty name", value=line[:80], remedy=_REMEDY)
        yield number, cells[0], cells[1], cells[2]


def read_names_carefully(path: Path) -> Part:
    """Line by line, in Python.

    Raises:
        DataError: the file cannot be opened, or a line has not three names.
    """
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    ids = array("q")
    for _, head, relation, tail in name_rows(path):
        ids.append(entities.setdefault(head, len(entities)))
        ids.append(relations.setdefault(relation, len(relations)))
        ids.append(entities.setdefault(tail, len(entities)))
    return Part(tuple(entities), tuple(relations), np.array(ids, dtype=np.int64).reshape(-1, 3))


def read_names_fast(path: Path) -> Part | None:
    """By Apache Arrow, on several cores; None where the careful reader has to look."""
    part = split_fast(path, "\t", 3)
    if part is None or not all(name.strip() for names in (part.entities, part.relations) for name in names):
        return None  # an empty name, or a blank line that holds tabs
    return part


def split_fast(path: Path, separator: str, width: int) -> Part | None:
    """Let Arrow split the lines of a file and number the names in the first three columns.

    Args:
        path: the file.
        separator: the one sign between two columns.
        width: columns of each line; those after the third hold a dot, as statements of N-Triples do.

    Returns:
        Head, relation and tail of each line that is not blank, their text unchecked; None where a line has other columns, or
        where it is open what a line is.
    """
    from pyarrow import ArrowInvalid, binary, csv, dictionary, int32

    columns = ["head", "relation", "tail", *(f"dot {place}" for place in range(width - 3))]
    try:
        handle = open_text(path)
    except DataError:
        return None  # the careful reader says why
    with handle:
        try:
            if _has_lone_returns(handle):
                return None  # Arrow would end a line at each
            handle.seek(0)
            table = csv.read_csv(
                handle,
                csv.ReadOptions(column_names=columns, block_size=_BLOCK),
                csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False, escape_char=False),
                csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, dictionary(int32(), binary())), strings_can_be_null=False
                ),
            )
        except (ArrowInvalid, *BROKEN):
            return None  # a line of another number of columns, or longer than a block; or a damaged container
    table = table.unify_dictionaries()
    if any(_codes(table[name])[1] not in ([], [b"."]) for name in columns[3:]):
        return None
    heads, head_names = _codes(table["head"])
    tails, tail_names = _codes(table["tail"])
    relation_codes, relation_names = _codes(table["relation"])
    del table
    entities, (heads, tails) = _numbered(head_names + tail_names, [heads, tails + np.int32(len(head_names))])
    relations, (relation_codes,) = _numbered(relation_names, [relation_codes])
    triples = np.empty((len(heads), 3), dtype=np.int64)
    for column, ids in enumerate((heads, relation_codes, tails)):
        triples[:, column] = ids
    return Part(entities, relations, triples)


def _has_lone_returns(handle: BinaryIO) -> bool:
    """Whether there is a carriage return without a line feed behind it."""
    ends_in_return = False
    while block := handle.read(_BLOCK):
        if ends_in_return and block[:1] != b"\n":
            return True
        ends_in_return = block[-1:] == b"\r"
        if block.count(b"\r") - ends_in_return != block.count(b"\r\n"):
            return True
    return ends_in_return


def _codes(column: object) -> tuple[np.ndarray, list[bytes]]:
    """Of a column of dictionary type whose chunks share one dictionary: (T,) int32 codes, and the dictionary."""
    chunks = column.chunks  # type: ignore[attr-defined]
    if not chunks:
        return np.empty(0, dtype=np.int32), []
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]), chunks[0].dictionary.to_pylist()


def _numbered(names: list[bytes], columns: list[np.ndarray]) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Number names anew, in the order of first appearance row by row.

    Args:
        names: may hold repeats, one for each column in which a name occurs.
        columns: K arrays (T,) of positions in `names`.

    Returns:
        The distinct names in their new order, and the columns in the new numbers.
    """
    distinct: dict[bytes, int] = {}
    unique = np.fromiter((distinct.setdefault(name, len(distinct)) for name in names), dtype=np.int32, count=len(names))
    columns = [unique[column] for column in columns]
    first = np.full(len(distinct), np.iinfo(np.int64).max)
    for place, column in enumerate(columns):
        seen = np.full(len(distinct), np.iinfo(np.int64).max)
        # Of several values for one position the last is kept, so that backwards it is the first appearance.
        seen[column[::-1]] = np.arange(len(column) - 1, -1, -1, dtype=np.int64) * len(columns) + place
        first = np.minimum(first, seen)
    order = np.argsort(first)
    number = np.empty(len(order), dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    listed = list(distinct)
    return tuple(listed[old].decode("utf-8", "surrogateescape") for old in order.tolist()), [number[c] for c in columns]
