"""Graphs -> folders: tab-separated names, OpenKE ids or N-Triples, complete or not at all.

Lists of names go along with every format, so that a graph that is read back has the same ids. What a format cannot hold is
refused before anything is written: nothing is dropped, replaced or renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imf_core.data.formats.ntriples import LITERALS_FILE
from imf_core.data.formats.terms import in_brackets, term_of
from imf_core.data.formats.vocabularies import list_files
from imf_core.data.graph.graph import SPLITS, Vocabulary
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_folder

RECORDS = REPAIR_RECORD, SPLIT_RECORD = "repair.json", "split.json"  # how the splits of a written graph were made
COPIED = ("descriptions.tsv", "images", "modalities", LITERALS_FILE)
_BREAKS = "\t\r\n"
_MARK = "\ufeff"
_BLOCK = 1 << 16  # lines put together at a time
_SUFFIXES = (".tsv", ".txt", ".nt", "2id.txt")
# What a folder may hold to be replaced on request: the files of a graph, nothing that somebody might miss.
_PARTS = {
    *(f"{split}{suffix}" for split in SPLITS for suffix in _SUFFIXES), *list_files("entity"), *list_files("relation"),
    *COPIED, *RECORDS,
}


class Target(StrEnum):
    """A format that can be written."""

    TSV = "tsv"
    OPENKE = "openke"
    NT = "nt"


def write_graph(
    out: Path, beside: Path | None, entities: Vocabulary, relations: Vocabulary, splits: Mapping[str, np.ndarray], record: str,
    facts: Mapping[str, Any],
) -> list[str]:
    """Write a graph folder: tab-separated names, lists of names in id order, a record, and copies of what lay beside.

    The folder appears complete or not at all. Links are followed: the copy needs nothing of the original.

    Args:
        out: must not exist, or be an empty folder.
        beside: the folder from which `copy_beside` copies.
        entities, relations, splits: see `write_splits`.
        record: name of a JSON file that tells how the splits were made.
        facts: its content.

    Returns:
        What was copied.

    Raises:
        DataError: the folder is taken or cannot be written, or a name does not fit into tab-separated lines.
    """
    check_place(out, beside)
    with new_folder(out) as scratch:
        write_splits(scratch, Target.TSV, entities, relations, splits)
        copied = copy_beside(beside, scratch)
        # ASCII: odd bytes of a path are escaped
        write_lines(scratch / record, [json.dumps({**facts, "copied": copied}, indent=1)])
    return copied


def write_splits(
    folder: Path, target: Target, entities: Vocabulary, relations: Vocabulary, splits: Mapping[str, np.ndarray]
) -> None:
    """Write files of triples and lists of names into an existing folder.

    Args:
        folder: where they go; files of the same names are overwritten.
        target: the format.
        entities, relations: names in id order.
        splits: (T, 3) head, relation, tail ids by the name of the split; one line a row, in this order.

    Raises:
        DataError: a name that the format cannot hold.
        OSError: the folder cannot be written.
    """
    check_names(target, entities, relations)
    if target is Target.OPENKE:
        for vocabulary in (entities, relations):
            rows = (f"{name}\t{position}" for position, name in enumerate(vocabulary.names))
            write_lines(folder / f"{vocabulary.kind}2id.txt", chain([str(len(vocabulary))], rows))
        ids = [[str(number) for number in range(len(vocabulary))] for vocabulary in (entities, relations)]
        for split, triples in splits.items():
            _write_triples(folder / f"{split}2id.txt", triples, ids[0], ids[1], " ", "\n", ids=True)
        return
    names = [_texts(target, vocabulary) for vocabulary in (entities, relations)]
    for kind, listed in zip(("entity", "relation"), names):
        write_lines(folder / list_files(kind)[0], listed)
    if target is Target.NT:
        terms = [[in_brackets(term) for term in listed] for listed in names]
        for split, triples in splits.items():
            _write_triples(folder / f"{split}.nt", triples, terms[0], terms[1], " ", " .\n")
    else:
        for split, triples in splits.items():
            _write_triples(folder / f"{split}.tsv", triples, names[0], names[1], "\t", "\n")


def check_names(target: Target, *vocabularies: Vocabulary) -> None:
    """Refuse names that a format cannot hold. N-Triples hold every name, percent-encoded where need be.

    Raises:
        DataError: a blank name, or one with a tab or a line end.
    """
    if target is Target.NT:
        return
    for vocabulary in vocabularies:
        for name in vocabulary.names:
            broken = any(sign in name for sign in _BREAKS)
            if broken or not name.strip():
                problem = "holds a tab or a line end" if broken else "is blank"
                raise DataError(
                    f"the {vocabulary.kind} {name!r} {problem}, which tab-separated files cannot hold",
                    remedy="rename it, or write N-Triples (imf convert --to nt), which hold any name", value=name,
                )


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A line each, in UTF-8, undecodable bytes as they came; a mark that belongs to the first line is read back.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as handle:
        for number, line in enumerate(lines):
            if number == 0 and line.startswith(_MARK):
                handle.write(_MARK)  # readers take the first one for a byte order mark
            handle.write(f"{line}\n")


def check_place(out: Path, beside: Path | None, *, replace: bool = False, sources: Iterable[Path] = ()) -> None:
    """Refuse a place where nothing may be written.

    Args:
        out: the folder to be.
        beside: the graph's folder, parts of which are copied.
        replace: a folder that holds a graph and nothing else may be there.
        sources: files that are read, so that they cannot be replaced.

    Raises:
        DataError: something exists there already, or it lies in the folder that is copied.
    """
    if beside is not None and out.resolve().is_relative_to(beside.resolve()):
        raise DataError(f"{out} lies in the graph's own folder {beside}", remedy="give a place beside it", path=str(out))
    occupied = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    if occupied and (not replace or out.is_symlink() or not out.is_dir()):
        raise DataError(
            f"{out} is there already and not an empty folder", remedy="give the name of a new folder", path=str(out)
        )
    if not occupied:
        return
    foreign = sorted(path.name for path in out.iterdir() if path.name not in _PARTS)
    if foreign:
        raise DataError(
            f"{out} is not replaced: it holds {foreign[0]}, which is no part of a graph",
            remedy="give the name of a new folder, or empty this one yourself", path=str(out), value=foreign[0],
        )
    for source in (*sources, *([beside] if beside is not None else [])):
        if source.resolve().is_relative_to(out.resolve()):
            raise DataError(
                f"{out} is not replaced: {source}, which is read, lies in it", remedy="give the name of a new folder",
                path=str(out),
            )


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, see `atomic_folder`.

    Args:
        out: must not exist, or be an empty folder; see `check_place`.
        replace: a folder at `out` gives way.

    Raises:
        DataError: something cannot be written.
    """
    try:
        with atomic_folder(out, replace=replace) as scratch:
            yield scratch
    except OSError as error:  # shutil.Error, which gathers several, is one
        raise DataError(
            f"{out} cannot be written: {error.strerror or error}", remedy="choose another place, or free some space there",
            path=str(out),
        ) from error


def copy_beside(beside: Path | None, folder: Path) -> list[str]:
    """Copy what lies beside the triples: `descriptions.tsv`, `images/`, `modalities/`, `literals.nt`. Links are followed.

    Returns:
        The names of what was there and is copied.

    Raises:
        OSError: something cannot be read or written.
    """
    if beside is None:
        return []
    copied = [name for name in COPIED if (beside / name).exists()]
    for name in copied:
        if not (beside / name).is_dir():
            shutil.copyfile(beside / name, folder / name)
            continue
        shutil.copytree(beside / name, folder / name, copy_function=shutil.copyfile)
        for inner in (folder / name, *(folder / name).rglob("*")):
            if inner.is_dir():
                inner.chmod(0o755)  # copied from a read-only place, it would be read-only too
    return copied


def _texts(target: Target, vocabulary: Vocabulary) -> Sequence[str]:
    """The names in the spelling of a format."""
    if target is Target.NT:
        return [term_of(name, vocabulary.kind) for name in vocabulary.names]
    return vocabulary.names


def _write_triples(
    path: Path, triples: np.ndarray, entities: Sequence[str], relations: Sequence[str], between: str, end: str,
    ids: bool = False,
) -> None:
    """One line a triple, put together in blocks so that memory does not grow with the file.

    Args:
        path: the file.
        triples: (T, 3).
        entities, relations: the text of each id.
        between, end: separator between two texts, and after the last.
        ids: as OpenKE has it: a count in the first line, and the relation last.
    """
    order = (0, 2, 1) if ids else (0, 1, 2)
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as handle:
        if ids:
            handle.write(f"{len(triples)}\n")
        elif len(triples) and entities[triples[0, 0]].startswith(_MARK):
            handle.write(_MARK)  # see write_lines
        for start in range(0, len(triples), _BLOCK):
            block = triples[start : start + _BLOCK]
            columns = [[(relations if column == 1 else entities)[row] for row in block[:, column].tolist()] for column in order]
            handle.write("".join(between.join(cells) + end for cells in zip(*columns)))
