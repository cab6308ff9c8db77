"""Which entities have which modality: by looking at names and files, without encoding anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from imf_core.data.audit.report import Coverage
from imf_core.data.features.feature_files import Features
from imf_core.encode.image.pictures import find_images
from imf_core.errors import DataError
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES, Description, EntityFiles


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
    return Coverage("image", present, len(entities), unknown=files.unknown, several=files.several)


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
    return _named(name, features.names, entities, _repeated(features.names, None))


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
