"""Lists that fix the ids of names: `entities.txt`, `entities.dict`, `entity2id.txt`, and those of the relations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imf_core.data.formats.terms import name_of
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import DataError
from imf_core.files.lines import read_lines

_PLURALS = {"entity": "entities", "relation": "relations"}


def list_files(kind: str) -> tuple[str, ...]:
    """The files that may list the names of a kind, the first found is used."""
    return f"{_PLURALS[kind]}.txt", f"{_PLURALS[kind]}.dict", f"{kind}2id.txt"


def find_list(kind: str, folders: Sequence[Path], ids: bool) -> Path | None:
    """The list of a kind's names.

    Args:
        kind: `entity` or `relation`.
        folders: where to look, in this order.
        ids: the triples are ids, so that only `<kind>2id.txt` will do.
    """
    names = list_files(kind)[2:] if ids else list_files(kind)
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def read_list(path: Path, kind: str, terms: bool = False) -> tuple[Vocabulary, tuple[str, ...]]:
    """The names of a list in id order, and notes on it.

    - `entities.txt`: a name a line; its place is the id.
    - `entities.dict`: `id<TAB>name`, as RotatE's data sets have it.
    - `entity2id.txt`: `name<TAB or space>id`, as OpenKE has it; the count in the first line may be missing.

    Args:
        path: the file; its name tells which of the three it is.
        kind: `entity` or `relation`.
        terms: the list belongs to N-Triples and is written in their terms.

    Raises:
        DataError: a line that cannot be used, a name or an id given twice.
    """
    if path.name.endswith("2id.txt"):
        return _numbered_list(path, kind, name_first=True)
    if path.suffix == ".dict":
        return _numbered_list(path, kind, name_first=False)
    listed: dict[str, int] = {}
    for number, line in read_lines(path):
        name = name_of(line, kind) if terms else line
        if name in listed:
            problem = f"{kind} listed twice (first in line {listed[name]})"
            raise DataError.at(path, number, problem, value=line, remedy="keep one of the lines")
        listed[name] = number
    return Vocabulary(tuple(listed), kind), ()


def split_count(path: Path, lines: list[tuple[int, str]]) -> tuple[int | None, list[tuple[int, str]]]:
    """The count in the first line (None: there is none) and the rows.

    Raises:
        DataError: the count does not agree with the rows, or the file is empty.
    """
    if not lines:
        raise DataError.at(path, 1, "the file is empty", remedy="write the number of rows into the first line, then the rows")
    count = as_id(lines[0][1])
    if count is None:
        return None, lines
    if count != len(lines) - 1:
        raise DataError.at(
            path, lines[0][0], f"the count does not agree with {len(lines) - 1} rows", value=count,
            remedy="correct the count; the file may be cut short",
        )
    return count, lines[1:]


def as_id(text: str) -> int | None:
    """The number that a text of decimal digits means; None where it is none, or too long for an id."""
    digits = text.strip()
    return int(digits) if digits.isdecimal() and len(digits) <= 18 else None


def no_count_note(path: Path) -> str:
    """What the user should know of a file without a count."""
    return f"{path.name} has no count in its first line: that it is complete cannot be checked"


def _numbered_list(path: Path, kind: str, name_first: bool) -> tuple[Vocabulary, tuple[str, ...]]:
    counted, rows = split_count(path, list(read_lines(path)))
    form = "the name, a tab and the id" if name_first else "the id, a tab and the name"
    names: list[str | None] = [None] * len(rows)
    owners: dict[str, int] = {}
    for number, line in rows:
        if name_first:
            line = line.rstrip()  # the id comes last, so trailing blanks are not part of a name
            name, _, text = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        else:
            text, _, name = line.partition("\t")
        position = as_id(text)
        if not name.strip() or position is None:
            if counted is None and number == rows[0][0]:
                problem = f"neither a count nor {'a name and its id' if name_first else 'an id and its name'}"
            else:
                problem = "no `name id` pair" if name_first else "no `id name` pair"
            raise DataError.at(path, number, problem, value=line[:80], remedy=f"write {form}")
        if position >= len(names):
            remedy = "ids count from 0 without gaps; correct the id, or the count in the first line"
            raise DataError.at(path, number, f"id out of range 0..{len(names) - 1}", value=position, remedy=remedy)
        if names[position] is not None:
            problem = f"id used twice (also by {names[position]!r})"
            raise DataError.at(path, number, problem, value=position, remedy="give each name its own id")
        if name in owners:
            raise DataError.at(path, number, f"two ids for the name (also {owners[name]})", value=name, remedy="merge them")
        names[position], owners[name] = name, position
    complete = tuple(name for name in names if name is not None)
    return Vocabulary(complete, kind), () if counted is not None or not name_first else (no_count_note(path),)
