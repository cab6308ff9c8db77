"""RecBole's atomic files: tab-separated columns under a header of names and types, as in `item_id:token`.

`.kg` holds triples, `.link` says which entity of the graph an item is, `.item` describes the items; `.inter`, the interactions,
is read with all other files of pairs (`pair_files.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imf_core.errors import DataError
from imf_core.files.lines import read_lines

TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class Atomic:
    """An atomic file.

    Args:
        path: of the file.
        types: one of `TYPES` by column, in the order of the file.
        lines: line number of each row.
        columns: the cells of each column, row by row; an empty one says nothing.
    """

    path: Path
    types: Mapping[str, str]
    lines: tuple[int, ...]
    columns: Mapping[str, tuple[str, ...]]

    def column(self, *known: str) -> tuple[str, ...]:
        """The first of these columns that there is.

        Raises:
            DataError: there is none.
        """
        for name in known:
            if name in self.columns:
                return self.columns[name]
        raise DataError.at(
            self.path, 1, f"no column {known[0]}", value=", ".join(self.columns), remedy=f"name it {known[0]}:token"
        )


def read_atomic(path: Path) -> Atomic:
    """Read an atomic file whole.

    Raises:
        DataError: it cannot be opened, its header has no types, or a line has another number of cells.
    """
    types: dict[str, str] = {}
    cells: list[list[str]] = []
    lines: list[int] = []
    for number, line in read_lines(path):
        row = line.split("\t")
        if not types:
            types = _types(path, number, row)
            cells = [[] for _ in types]
            continue
        if len(row) != len(types):
            raise DataError.at(
                path, number, f"{len(row)} columns instead of {len(types)}", value=line[:80],
                remedy="write a cell for each column of the header, an empty one where nothing is known",
            )
        lines.append(number)
        for column, cell in zip(cells, row, strict=True):
            column.append(cell.strip())
    columns = {name: tuple(column) for name, column in zip(types, cells, strict=True)}
    return Atomic(path, types, tuple(lines), columns)


def read_kg(path: Path) -> Iterator[tuple[str, str, str]]:
    """RecBole's .kg: head_id, relation_id and tail_id of each triple.

    Raises:
        DataError: no atomic file, or a name is empty.
    """
    table = read_atomic(path)
    if not table.types:
        return
    triples = zip(table.column("head_id"), table.column("relation_id"), table.column("tail_id"), strict=True)
    for number, triple in zip(table.lines, triples, strict=True):
        if not all(triple):
            raise DataError.at(path, number, "an empty name", value="\t".join(triple), remedy="write head, relation and tail")
        yield triple


def read_link(path: Path) -> dict[str, str]:
    """RecBole's .link: the entity of the graph by item.

    Raises:
        DataError: no atomic file, or an item is linked twice.
    """
    table = read_atomic(path)
    found: dict[str, str] = {}
    for number, item, entity in zip(table.lines, table.column("item_id"), table.column("entity_id"), strict=True):
        if found.setdefault(item, entity) != entity:
            raise DataError.at(path, number, "the item is linked to two entities", value=item, remedy="keep one of the lines")
    return found


def _types(path: Path, number: int, cells: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for cell in cells:
        name, separator, kind = cell.strip().lower().partition(":")
        if not separator or kind not in TYPES:
            raise DataError.at(
                path, number, "a column of an atomic file has no type of RecBole's", value=cell,
                remedy=f"write name:type in the first line, type one of {', '.join(TYPES)}",
            )
        if name in found:
            raise DataError.at(path, number, "the column stands there twice", value=name, remedy="give it another name")
        found[name] = kind
    return found


def is_atomic_folder(folder: Path) -> bool:
    """Whether a folder holds interactions as RecBole writes them, and no graph of its own."""
    return folder.is_dir() and any(folder.glob("*.inter")) and not any(folder.glob("train*"))


def atomic_notes(place: Path, items: Sequence[str]) -> list[str]:
    """One line for each `.item`, `.kg` and `.link` beside the interactions.

    Args:
        place: folder, or file, of the interactions.
        items: names of the items of the interactions.

    Raises:
        DataError: a file cannot be used; names file, line, value and remedy.
    """
    folder, names, notes = place if place.is_dir() else place.parent, set(items), []
    entities: set[str] = set()
    for path in sorted(folder.glob("*.item")):
        table = read_atomic(path)
        described = len(names & set(table.column("item_id", "item")))
        columns = ", ".join(f"{name} ({kind})" for name, kind in list(table.types.items())[1:])
        notes.append(f"{path.name}: describes {described:,} of {len(names):,} items: {columns or 'nothing'}")
    for path in sorted(folder.glob("*.kg")):
        triples = list(read_kg(path))
        found = {name for head, _, tail in triples for name in (head, tail)}
        relations = {relation for _, relation, _ in triples}
        entities |= found
        notes.append(
            f"{path.name}: {len(triples):,} triples, {len(found):,} entities, {len(relations):,} relations; a graph to train "
            f"on: --set data.train={path.name}"
        )
    for path in sorted(folder.glob("*.link")):
        links = read_link(path)
        linked = [item for item in names if item in links]
        lost = sum(links[item] not in entities for item in linked) if entities else 0
        notes.append(
            f"{path.name}: {len(linked):,} of {len(names):,} items are entities of the graph"
            + (f"; {lost:,} of these have no triple there" if lost else "")
        )
    return notes
