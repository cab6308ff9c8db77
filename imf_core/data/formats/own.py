"""Files of triples that a reader of one's own reads."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from imf_core.data.formats.parts import Part
from imf_core.errors import DataError
from imf_core.parts.registry import named


def read_own(reader: str, path: Path) -> Part:
    """The triples of a file.

    Args:
        reader: name of the part: a function of the path that yields head, relation, tail of each line, as text.
        path: the file.

    Raises:
        DataError: it cannot be opened, or the reader yields something else.
    """
    entities: dict[str, int] = {}
    relations: dict[str, int] = {}
    ids = array("q")
    try:
        for number, row in enumerate(named("reader", reader).target(path), start=1):
            if not (isinstance(row, tuple | list) and len(row) == 3 and all(isinstance(name, str) and name for name in row)):
                raise DataError.at(
                    path, None, f"the reader {reader} yields no head, relation, tail as triple {number}", value=row,
                    remedy="yield three names, none of them empty",
                )
            head, relation, tail = row
            ids.append(entities.setdefault(head, len(entities)))
            ids.append(relations.setdefault(relation, len(relations)))
            ids.append(entities.setdefault(tail, len(entities)))
    except (OSError, ValueError) as error:
        raise DataError.at(path, None, f"the reader {reader} cannot read it: {error}", remedy="mend the file") from error
    return Part(tuple(entities), tuple(relations), np.array(ids, dtype=np.int64).reshape(-1, 3))
