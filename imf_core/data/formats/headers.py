"""Header lines above triples: no fact, so they are neither trained on nor ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from imf_core.data.formats.parts import Part

_WORDS = frozenset({
    "head", "head_id", "subject", "subj", "source", "src", "from", "start", "entity1", "e1", "ent1", "node1", "start_id",
    "relation", "rel", "relation_id", "predicate", "pred", "property", "edge", "link", "type", "label", "via",
    "tail", "tail_id", "object", "obj", "target", "dst", "to", "end", "entity2", "e2", "ent2", "node2", "end_id",
})
_LETTERS = {"hrt", "spo"}  # head, relation, tail; subject, predicate, object


def first_row(part: Part) -> tuple[str, str, str] | None:
    """Names of the first row if none of them occurs again in the file; None else."""
    if not len(part.triples):
        return None
    head, relation, tail = part.triples[0].tolist()
    rest = part.triples[1:]
    if (rest[:, 1] == relation).any() or ((rest[:, [0, 2]] == head) | (rest[:, [0, 2]] == tail)).any():
        return None
    return part.entities[head], part.relations[relation], part.entities[tail]


def is_header(row: tuple[str, str, str]) -> bool:
    """Whether all three cells are words that name columns."""
    cells = [cell.strip().strip(":#").lower() for cell in row]
    return all(cell in _WORDS for cell in cells) or "".join(cells) in _LETTERS


def headers(parts: Mapping[str, Part]) -> dict[str, tuple[str, str, str]]:
    """The header of each split that has one: a first row of words that name columns, or that stands above several splits.

    Its names occur in no other row.
    """
    rows = {split: row for split, part in parts.items() if (row := first_row(part)) is not None}
    counts = [sum(row == other and len(parts[split].triples) > 1 for split, other in rows.items()) for row in rows.values()]
    found = {split: row for (split, row), count in zip(rows.items(), counts) if count > 1 or is_header(row)}
    for split, part in parts.items() if found else ():  # the names of a large graph are gathered only where it matters
        names = {*part.entities, *part.relations} - {*found.get(split, ())}
        found = {other: row for other, row in found.items() if not names & {*row}}
    return found


def without_first(part: Part) -> Part:
    """A part without its first row, whose names occur in no other: they come first in its numbering."""
    fewer = len(set(part.triples[0, [0, 2]].tolist()))
    triples = part.triples[1:] - [fewer, 1, fewer]
    return replace(part, entities=part.entities[fewer:], relations=part.relations[1:], triples=triples)


def odd_first_row(parts: Mapping[str, Part]) -> str | None:
    """The split whose first row has three names that occur nowhere else: read as a fact, but it may be a header; None: none."""
    for split, part in parts.items():
        row = first_row(part)
        if row is not None and len(part.triples) > 1:
            others = [other for name, other in parts.items() if name != split]
            if not any({*row} & {*other.entities, *other.relations} for other in others):
                return split
    return None
