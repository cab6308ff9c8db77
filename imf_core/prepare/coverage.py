"""Which entities have which modality: by looking at names and files, without encoding anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from imf_core.data.audit.report import Coverage
from imf_core.data.features.feature_files import feature_files, read_features
from imf_core.encode.image.pictures import find_images
from imf_core.errors import DataError
from imf_core.files.lines import read_lines


def coverage(folder: Path, entities: Sequence[str]) -> tuple[Coverage, ...]:
    """Look at `images/`, `descriptions.tsv` and `modalities/*` of a graph folder.

    What makes a modality unusable stands in its entry; it is no error here, as the audit tells of all of them at once.

    Args:
        folder: graph folder.
        entities: N names.

    Returns:
        One entry a modality that is there: pictures, texts, then feature files by name. A feature file of the same name stands
        in place of pictures and texts, as it does in training.
    """
    index = frozenset(entities)
    found: dict[str, Coverage] = {}
    if (folder / "images").is_dir():
        found["image"] = _images(folder / "images", entities)
    if (folder / "descriptions.tsv").exists():
        found["text"] = _texts(folder / "descriptions.tsv", index)
    for name, path in feature_files(folder).items():
        found.pop(name, None)  # it stands behind the others
        found[name] = _features(path, index)
    return tuple(found.values())


def _images(folder: Path, entities: Sequence[str]) -> Coverage:
    try:
        files = find_images(folder, entities)
    except DataError as error:
        return Coverage("image", 0, len(entities), problem=error.problem)
    present = sum(bool(paths) for paths in files.paths)
    return Coverage("image", present, len(entities), unknown=files.unknown, several=files.several)


def _texts(path: Path, entities: frozenset[str]) -> Coverage:
    names, blank, problem = [], set(), ""
    try:
        for number, line in read_lines(path):
            name, separator, text = line.partition("\t")
            if not separator:
                problem = problem or f"{path}, line {number}: no tab between entity and text"
                continue
            names.append(name)
            if not text.strip():
                blank.add(name)
    except DataError as error:
        problem = error.problem
    return _named("text", names, entities, problem or _repeated(names, entities), len(blank & entities))


def _features(path: Path, entities: frozenset[str]) -> Coverage:
    try:
        names = read_features(path).names
    except DataError as error:
        return Coverage(path.stem, 0, len(entities), problem=error.problem)
    return _named(path.stem, names, entities, _repeated(names, None))


def _named(name: str, names: Sequence[str], entities: frozenset[str], problem: str, empty: int = 0) -> Coverage:
    distinct = set(names)
    known = len(distinct & entities)
    return Coverage(name, known - empty, len(entities), empty=empty, unknown=len(distinct) - known, problem=problem)


def _repeated(names: Iterable[str], entities: frozenset[str] | None) -> str:
    """The problem of a name that comes twice (of entities alone, where they are given); empty where none does."""
    once: set[str] = set()
    twice: dict[str, None] = {}
    for name in names:
        if name in once and (entities is None or name in entities):
            twice[name] = None
        once.add(name)
    return f"{len(twice):,} entities are named twice (first: {next(iter(twice))!r})" if twice else ""
