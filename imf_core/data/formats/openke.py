"""OpenKE ids: `head tail relation`, by space or tab, a count in the first line."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from imf_core.data.formats.vocabularies import as_id, no_count_note, split_count
from imf_core.errors import DataError
from imf_core.files.lines import BROKEN, is_large, open_text, read_lines

_DIGITS_AND_SPACES = b"0123456789 \t\r\n"
_REMEDY = "write `head tail relation` as ids, in this order"


def read_ids(path: Path, num_entities: int, num_relations: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The triples of a file, (T, 3) int64 head, relation, tail, one row a line, and notes on the file.

    Raises:
        DataError: a line that cannot be used, an id out of range, a count that is wrong.
    """
    if is_large(path):
        parsed = read_ids_fast(path)
        if parsed is not None and _in_range(parsed[0], num_entities, num_relations):
            return parsed
    return read_ids_carefully(path, num_entities, num_relations)


def read_ids_carefully(path: Path, num_entities: int, num_relations: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Line by line, in Python; see `read_ids`."""
    counted, rows = split_count(path, list(read_lines(path)))
    ids = array("q")
    for number, line in rows:
        row = [as_id(cell) for cell in line.split()]
        if len(row) != 3 or None in row:
            begins = counted is None and number == rows[0][0]
            problem = "neither a count nor three ids" if begins else "no three ids"
            raise DataError.at(path, number, problem, value=line[:80], remedy=_REMEDY)
        head, tail, relation = (found or 0 for found in row)
        if head >= num_entities or tail >= num_entities or relation >= num_relations:
            problem = f"id out of range ({num_entities} entities, {num_relations} relations)"
            remedy = _order_remedy(rows, num_entities, num_relations)
            raise DataError.at(path, number, problem, value=line[:80], remedy=remedy)
        ids.extend((head, relation, tail))
    notes = () if counted is not None else (no_count_note(path),)
    return np.array(ids, dtype=np.int64).reshape(-1, 3), notes


def read_ids_fast(path: Path) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """By Apache Arrow; None where the careful reader has to look. Ranges are not checked here.

    Raises:
        DataError: the file cannot be opened.
    """
    from pyarrow import ArrowInvalid, BufferReader, csv, int64, py_buffer

    try:
        with open_text(path) as handle:
            data = handle.read()
    except (DataError, *BROKEN):
        return None  # the careful reader says why
    if data.translate(None, _DIGITS_AND_SPACES) or data.count(b"\r") != data.count(b"\r\n"):
        return None  # Arrow would take signs and hexadecimals for ids, and a lone return for a line end
    first, _, _ = data.partition(b"\n")
    counted = first.strip().isdigit() and len(first) <= 18
    start = len(first) + 1 if counted else 0
    end = data.find(b"\n", start)
    separator = "\t" if b"\t" in data[start : end if end >= 0 else len(data)] else " "
    columns = ["head", "tail", "relation"]
    try:
        table = csv.read_csv(
            BufferReader(py_buffer(data).slice(min(start, len(data)))),
            csv.ReadOptions(column_names=columns, block_size=1 << 24),
            csv.ParseOptions(delimiter=separator, quote_char=False, double_quote=False, escape_char=False),
            csv.ConvertOptions(column_types=dict.fromkeys(columns, int64()), null_values=[]),
        )
    except ArrowInvalid:
        return None  # a line of other than three ids, or nothing but the count
    if int(first) != len(table) if counted else not len(table):
        return None  # cut short, or nothing but blank lines
    triples = np.stack([table[name].to_numpy() for name in ("head", "relation", "tail")], axis=1)
    return triples, () if counted else (no_count_note(path),)


def _in_range(triples: np.ndarray, num_entities: int, num_relations: int) -> bool:
    limits = np.array([num_entities, num_relations, num_entities])
    return not len(triples) or bool((triples.max(axis=0) < limits).all())


def _order_remedy(rows: list[tuple[int, str]], num_entities: int, num_relations: int) -> str:
    """Says so where all lines make sense as `head relation tail` and only so."""
    limits = (num_entities, num_relations, num_entities)
    cells = ([as_id(cell) for cell in line.split()] for _, line in rows)
    if all(len(row) == 3 and all(i is not None and i < n for i, n in zip(row, limits)) for row in cells):
        return "the columns are head, relation, tail; the format has head, tail, relation: swap the last two"
    return "the order is head, tail, relation; correct the id, or the list of names"
