"""From a folder or file of interactions to `RawInteractions`: finds the files, assigns ids, matches rows of features.

Shapes: `U` users, `I` items, `P` interactions.
"""

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
        DataError: there are none, or several files without a split.
    """
    if source.is_file():
        return {"all": source}
    suffixes = (".tsv", ".inter", ".npz", ".npy", ".txt")
    for suffix in suffixes:
        if (source / f"interactions{suffix}").is_file():
            return {"all": source / f"interactions{suffix}"}
    files = {
        split: path for split in SPLITS for suffix in reversed(suffixes) if (path := source / f"{split}{suffix}").is_file()
    }
    atomic = sorted(source.glob("*.inter"))
    for split in SPLITS:  # RecBole's benchmark files: NAME.train.inter
        files.update((split, path) for path in atomic if path.name.endswith(f".{split}.inter"))
    whole = [path for path in atomic if path not in files.values()]
    if "train" in files:
        return {split: files[split] for split in SPLITS if split in files}
    if len(whole) == 1:
        return {"all": whole[0]}
    several = f"several: {', '.join(path.name for path in whole)}" if whole else "none"
    raise DataError(f"{source}: no one file of interactions ({several})", remedy=_REMEDY, path=str(source))


def read_raw_interactions(
    source: Path | str,
    *,
    min_rating: float | None = None,
    label: str | None = None,
    listed: Iterable[str] = (),
    numbered: int | None = None,
    test: bool = False,
) -> RawInteractions:
    """Read every interaction of a folder or file.

    Ids follow `users.txt` and `items.txt` if they exist (they must then hold every name); otherwise the order of first
    appearance in train, valid and test, then that of `listed`.

    Args:
        source: a folder, see `interaction_files`, or a file.
        min_rating, label: see `read_pairs`.
        listed: further items, for example those that have features.
        numbered: number of rows of features without names: items are then numbers below I, or from U to U + I - 1 if the
            files number items after the users. None: items have names.
        test: return the test pairs of a separate file too; its names get ids in either case.

    Raises:
        DataError: the files are missing, a line cannot be used, or an item has no row of features.
    """
    path = Path(source)
    files = interaction_files(path)
    parts = {split: read_pairs(file, min_rating, label) for split, file in files.items()}
    folder = path if path.is_dir() else path.parent
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
    if "all" in parts and (split_of := parts["all"].split) is not None:
        pairs = rows.pop("all")
        rows |= {split: pairs[split_of == place] for place, split in enumerate(SPLITS) if (split_of == place).any()}
    used = np.zeros(len(items), dtype=bool)
    for pairs in rows.values():
        used[pairs[:, 1]] = True
    splits = {split: pairs for split, pairs in rows.items() if split != "test" or test}
    problems = tuple(problem for part in parts.values() for problem in part.problems)
    problems += _twins(users) + _twins(items)
    return RawInteractions(users, items, splits, used, notes, str(source), offset, problems)


def _twins(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The problem that one file writes `7` where another writes `7.0`."""
    twins = [name for name in vocabulary.names if name.endswith(".0") and name[:-2] in vocabulary.index]
    if not twins:
        return ()
    kinds, first = f"{vocabulary.kind}s", twins[0]
    return (
        f"{len(twins):,} {kinds} differ from another only by '.0' ({first[:-2]} and {first}) and count as two: write whole "
        "numbers in all files",
    )


def _vocabulary(kind: str, parts: Mapping[str, PairFile], folder: Path, listed: Iterable[str]) -> Vocabulary:
    """The names of users or items in id order; `kind` is `user` or `item`.

    Raises:
        DataError: `users.txt` or `items.txt` lacks a name; tells the line of the interaction.
    """
    names = {split: part.users if kind == "user" else part.items for split, part in parts.items()}
    fixed = folder / f"{kind}s.txt"
    if not fixed.is_file():
        return Vocabulary(tuple(dict.fromkeys([*(name for used in names.values() for name in used), *listed])), kind)
    vocabulary = Vocabulary(tuple(dict.fromkeys([*read_names(fixed), *listed])), kind)
    for split, used in names.items():
        odd = next((position for position, name in enumerate(used) if name not in vocabulary.index), None)
        if odd is not None:
            raise DataError.at(
                parts[split].path,
                _line(parts[split], odd, kind),
                f"the {kind} is missing in {fixed.name}",
                value=used[odd],
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
    """0 if items are numbered from 0, U if they are numbered after the users.

    Raises:
        DataError: an item is no number, or the numbers fit neither; tells the line.
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
    # Neither numbering fits: report the first line that contradicts the numbering of the first item.
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


def _line(part: PairFile, position: int, kind: str = "item") -> int | None:
    """Line of the first interaction of a user or an item, given by its position in the file's names."""
    rows = np.flatnonzero(part.rows[:, 0 if kind == "user" else 1] == position)
    return int(part.lines[rows[0]]) if len(rows) else None
