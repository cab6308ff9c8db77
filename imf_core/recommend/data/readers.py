"""From a folder or file of interactions to `RawInteractions`: which files, whose ids, which rows of the features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from imf_core.data.graph.graph import SPLITS, Vocabulary
from imf_core.errors import DataError
from imf_core.recommend.data.interactions import RawInteractions
from imf_core.recommend.data.pair_files import PairFile, read_names, read_pairs

_REMEDY = (
    "it holds interactions.tsv (user<TAB>item), NAME.inter, interactions.npz or .npy; or train.*, valid.* and test.* of these"
)


def interaction_files(source: Path) -> dict[str, Path]:
    """`{"all": file}`, or the files of `train`, `valid` and `test`, of a folder or a single file.

    Raises:
        DataError: there are none.
    """
    if source.is_file():
        return {"all": source}
    suffixes = (".tsv", ".inter", ".npz", ".npy", ".txt")
    for suffix in suffixes:
        if (source / f"interactions{suffix}").is_file():
            return {"all": source / f"interactions{suffix}"}
    found = {
        split: path for split in SPLITS for suffix in reversed(suffixes) if (path := source / f"{split}{suffix}").is_file()
    }
    atomic = sorted(source.glob("*.inter"))
    for split in SPLITS:  # RecBole's benchmark files: NAME.train.inter
        found.update((split, path) for path in atomic if path.name.endswith(f".{split}.inter"))
    whole = [path for path in atomic if path not in found.values()]
    if "train" in found:
        return {split: found[split] for split in SPLITS if split in found}
    if len(whole) == 1:
        return {"all": whole[0]}
    several = f"several: {', '.join(path.name for path in whole)}" if whole else "none"
    raise DataError(f"{source}: no one file of interactions ({several})", remedy=_REMEDY, path=str(source))


def read_raw_interactions(
    source: Path | str,
    *,
    min_rating: float | None = None,
    listed: Iterable[str] = (),
    numbered: int | None = None,
    test: bool = False,
) -> RawInteractions:
    """Every interaction of a folder or file, as it stands.

    Ids follow `users.txt` and `items.txt` where they are there (and then hold every name); else the order of first
    appearance in train, valid and test, then that of `listed`.

    Args:
        source: a folder, see `interaction_files`, or a file.
        min_rating: see `read_pairs`.
        listed: further items, for example those that have features.
        numbered: I, where features without names are numbered by row: items are then numbers below I, or below U + I where
            the files count items on after the users.
        test: hand out the test pairs of a file of their own too; its names count either way.

    Raises:
        DataError: no such files, a line that cannot be used, or an item that is no row of the features.
    """
    place = Path(source)
    files = interaction_files(place)
    parts = {split: read_pairs(path, min_rating) for split, path in files.items()}
    folder = place if place.is_dir() else place.parent
    users = _vocabulary("user", parts, folder, ())
    offset = None
    if numbered is not None:
        offset = _offset(parts, users, numbered)
        listed = (str(offset + row) for row in range(numbered))
    items = _vocabulary("item", parts, folder, listed)
    notes = tuple(note for part in parts.values() for note in part.notes)
    if offset:
        notes += (f"items are numbered on after the {len(users):,} users: item {offset} is row 0 of the features",)
    rows = {split: _renumbered(part, users, items) for split, part in parts.items()}
    used = np.zeros(len(items), dtype=bool)
    for pairs in rows.values():
        used[pairs[:, 1]] = True
    splits = {split: pairs for split, pairs in rows.items() if split != "test" or test}
    return RawInteractions(users, items, splits, used, notes, str(source), offset)


def _vocabulary(kind: str, parts: Mapping[str, PairFile], folder: Path, listed: Iterable[str]) -> Vocabulary:
    """The names in id order.

    Raises:
        DataError: a name that a list beside the interactions lacks; names the line.
    """
    names = {split: part.users if kind == "user" else part.items for split, part in parts.items()}
    fixed = folder / f"{kind}s.txt"
    if not fixed.is_file():
        return Vocabulary(tuple(dict.fromkeys([*(name for own in names.values() for name in own), *listed])), kind)
    vocabulary = Vocabulary(tuple(dict.fromkeys([*read_names(fixed), *listed])), kind)
    for split, own in names.items():
        odd = next((place for place, name in enumerate(own) if name not in vocabulary.index), None)
        if odd is not None:
            raise DataError.at(
                parts[split].path,
                _line(parts[split], odd, kind),
                f"the {kind} is missing in {fixed.name}",
                value=own[odd],
                remedy="add the name there, or remove the list: it is then built from the interactions",
            )
    return vocabulary


def _renumbered(part: PairFile, users: Vocabulary, items: Vocabulary) -> np.ndarray:
    maps = [
        np.fromiter((vocabulary.index[name] for name in names), dtype=np.int64, count=len(names))
        for vocabulary, names in ((users, part.users), (items, part.items))
    ]
    return np.stack((maps[0][part.rows[:, 0]], maps[1][part.rows[:, 1]]), axis=1)


def _offset(parts: Mapping[str, PairFile], users: Vocabulary, num_items: int) -> int:
    """0 where items count from 0, U where they go on after the users.

    Raises:
        DataError: an item is no number, or the file mixes both or fits neither; names the line.
    """
    remedy = f"number all items from 0 to {num_items - 1:,}, or give the features names (X.names.txt beside X.npy)"
    numbers = {}
    for split, part in parts.items():
        odd = next((name for name in part.items if not (name.isascii() and name.isdecimal() and name == str(int(name)))), None)
        if odd is not None:
            raise DataError.at(
                part.path,
                _line(part, part.items.index(odd)),
                "features without names need items that are row numbers",
                value=odd,
                remedy=remedy,
            )
        numbers[split] = np.array([int(name) for name in part.items], dtype=np.int64)
    every = np.concatenate(list(numbers.values()))
    shift = len(users)
    for offset in (0, shift):
        if not len(every) or (every.min() >= offset and every.max() < offset + num_items):
            return offset
    # Neither numbering fits: name the first line that does not go with the file's first item.
    first = next(int(values[0]) for values in numbers.values() if len(values))
    offset = 0 if first < num_items else shift
    for split, part in parts.items():
        outside = (numbers[split] < offset) | (numbers[split] >= offset + num_items)
        if outside.any():
            position = int(np.flatnonzero(outside)[0])
            raise DataError.at(
                part.path,
                _line(part, position),
                f"the item is none of the {num_items:,} rows of the features, which are "
                f"{offset:,} to {offset + num_items - 1:,} here",
                value=part.items[position],
                remedy=remedy,
            )
    raise AssertionError("one of the items does not fit")


def _line(part: PairFile, place: int, kind: str = "item") -> int | None:
    """Where a user or an item of a file stands first."""
    at = np.flatnonzero(part.rows[:, 0 if kind == "user" else 1] == place)
    return int(part.lines[at[0]]) if len(at) else None
