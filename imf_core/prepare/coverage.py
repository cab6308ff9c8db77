"""Which entities have which modality: by looking at names and files, without encoding anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from imf_core.data.audit.report import Coverage
from imf_core.data.features.feature_files import Features
from imf_core.encode.image.pictures import find_images
from imf_core.errors import DataError
from imf_core.files.digest import sha256_of_file
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES, Description, EntityFiles

_COMPARED = 8  # features at the start of a row


def coverage(files: EntityFiles, entities: Sequence[str]) -> tuple[Coverage, ...]:
    """Look at `images/`, `descriptions.tsv` and `modalities/*` of a graph folder.

    What makes a modality unusable is part of its entry rather than an error: the audit reports all of them at once.

    Args:
        files: texts and features of the graph.
        entities: N names.

    Returns:
        One entry for each modality: pictures, texts, then feature files by name. A feature file of the same name replaces
        pictures or texts, as it does in training.
    """
    index = frozenset(entities)
    entries = []
    if "image" not in files.features and (files.folder / IMAGES).is_dir():
        entries.append(_images(files.folder / IMAGES, entities))
    if "text" not in files.features and (files.folder / DESCRIPTIONS).exists():
        entries.append(_texts(files.descriptions, index))
    return (*entries, *(_features(name, features, index) for name, features in files.features.items()))


def _images(folder: Path, entities: Sequence[str]) -> Coverage:
    try:
        files = find_images(folder, entities)
    except DataError as error:
        return Coverage("image", 0, len(entities), problem=error.problem)
    present = sum(bool(paths) for paths in files.paths)
    alike = same_pictures(files.paths, entities)
    return Coverage("image", present, len(entities), unknown=files.unknown, several=files.several, alike=alike)


def same_pictures(paths: Sequence[Sequence[Path]], entities: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of entities that have the same picture file, byte for byte. Only files of one size are read.

    Args:
        paths: pictures of each of the N entities.
        entities: their names.
    """
    by_size: dict[int, list[tuple[Path, str]]] = {}
    for name, pictures in zip(entities, paths, strict=True):
        for path in pictures:
            if path.is_file():
                by_size.setdefault(path.stat().st_size, []).append((path, name))
    groups: dict[str, dict[str, None]] = {}
    for files in by_size.values():
        for path, name in files if len({name for _, name in files}) > 1 else ():
            with suppress(OSError):  # encoding tells of pictures that cannot be read
                groups.setdefault(sha256_of_file(path), {})[name] = None
    return _shared(groups.values())


def same_rows(features: Features) -> tuple[tuple[str, ...], ...]:
    """Groups of names with the same row of features, bit for bit. Only rows that begin alike are compared whole."""
    matrix = features.matrix
    start = np.ascontiguousarray(matrix[:, :_COMPARED])
    _, group, size = np.unique(start, axis=0, return_inverse=True, return_counts=True)
    groups: dict[bytes, list[str]] = {}
    for row in np.flatnonzero(size[group] > 1).tolist():
        groups.setdefault(matrix[row].tobytes(), []).append(features.names[row])
    return _shared(groups.values())


def _shared(groups: Iterable[Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    """The groups of several names, the largest first."""
    named = [group for group in map(tuple, groups) if len(group) > 1]
    return tuple(sorted(named, key=lambda group: (-len(group), group)))


def _texts(descriptions: Iterable[Description | DataError], entities: frozenset[str]) -> Coverage:
    names, blank, problem = [], set(), ""
    for row in descriptions:
        if isinstance(row, DataError):
            problem = problem or row.problem
            continue
        _, name, text = row
        names.append(name)
        if not text.strip():
            blank.add(name)
    return _named("text", names, entities, problem or _repeated(names, entities), len(blank & entities))


def _features(name: str, features: Features | DataError, entities: frozenset[str]) -> Coverage:
    if isinstance(features, DataError):
        return Coverage(name, 0, len(entities), problem=features.problem)
    entry = _named(name, features.names, entities, _repeated(features.names, None))
    return replace(entry, alike=same_rows(features)) if name == "image" and not entry.problem else entry


def _named(name: str, names: Sequence[str], entities: frozenset[str], problem: str, empty: int = 0) -> Coverage:
    distinct = set(names)
    known = len(distinct & entities)
    return Coverage(name, known - empty, len(entities), empty=empty, unknown=len(distinct) - known, problem=problem)


def _repeated(names: Iterable[str], entities: frozenset[str] | None) -> str:
    """The problem of names (of entities alone, if they are given) that occur twice; empty if none does."""
    once: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in once and (entities is None or name in entities):
            twice[name] = None
        once.add(name)
    return f"{len(twice):,} entities are named twice (first: {next(iter(twice))!r})" if twice else ""
