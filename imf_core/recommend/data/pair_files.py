"""Files of user-item pairs -> `PairFile`: tab-separated text, RecBole's atomic files, NumPy pairs and CSR matrices.

Names keep every byte; a byte order mark, CRLF line ends and blank lines are ignored. No file that is read can run code. A wrong
line is an error with file, line, value and remedy.

Shapes: `P` interactions.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imf_core.config_base import nearest
from imf_core.errors import DataError
from imf_core.files.lines import read_lines

SUFFIXES = (".tsv", ".txt", ".inter", ".npz", ".npy")
_USER = ("user_id", "user", "userid", "uid", "users")
_ITEM = ("item_id", "item", "itemid", "iid", "items", "movieid", "movie_id")
_RATING = ("rating", "score", "stars")
_TYPES = ("token", "token_seq", "float", "float_seq")  # of a RecBole header
_REMEDY = "write user<TAB>item, one interaction a line"


@dataclass(frozen=True)
class PairFile:
    """The interactions of one file.

    Args:
        path: of the file.
        users, items: distinct names in the order in which they first appear.
        rows: (P, 2) int64 positions in `users` and `items`, repeats included.
        lines: (P,) int64 line of each interaction; for a matrix its position, from 1.
        notes: what was skipped.
    """

    path: Path
    users: tuple[str, ...]
    items: tuple[str, ...]
    rows: np.ndarray
    lines: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns user, item and rating (None: there is none), and the number of columns."""

    user: int
    item: int
    rating: int | None
    count: int


def read_pairs(path: Path, min_rating: float | None = None) -> PairFile:
    """Read interactions; the suffix gives the format.

    - `.tsv`, `.txt`: `user<TAB>item`, with or without a header line that names the columns (`user`, `item`, `rating`, ...);
      further columns are ignored.
    - `.inter`: a RecBole atomic file; the header gives each column's name and type, as in `user_id:token`.
    - `.npy`: an integer matrix (P, 2). `.npz`: a CSR matrix as `scipy.sparse.save_npz` writes it (users x items, every stored
      entry other than 0 is an interaction), or arrays `users` and `items` of equal length.

    Args:
        path: the file.
        min_rating: interactions with a lower rating are left out and counted; None: all count.

    Raises:
        DataError: the format is not known, or a line cannot be used.
    """
    if path.suffix in (".npy", ".npz"):
        return _read_arrays(path, min_rating)
    if path.suffix not in SUFFIXES:
        raise DataError.at(path, None, "format is not known", value=path.suffix, remedy=f"use one of {', '.join(SUFFIXES)}")
    return _read_text(path, min_rating)


def _read_text(path: Path, min_rating: float | None) -> PairFile:
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rows, numbers = array("q"), array("q")
    low = 0
    columns: _Columns | None = None
    for number, line in read_lines(path):
        cells = line.split("\t")
        if columns is None:
            columns, is_header = _header(path, number, cells)
            if min_rating is not None and columns.rating is None:
                raise DataError.at(
                    path,
                    number,
                    "data.min_rating needs a column of ratings",
                    value=line[:80],
                    remedy="name it rating in a header line, or leave min_rating out",
                )
            if is_header:
                continue
        if len(cells) != columns.count:
            raise DataError.at(
                path, number, f"{len(cells)} columns instead of {columns.count}", value=line[:80], remedy=_REMEDY
            )
        user, item = cells[columns.user], cells[columns.item]
        if not user.strip() or not item.strip():
            raise DataError.at(
                path, number, f"the {'item' if user.strip() else 'user'} is blank", value=line[:80], remedy=_REMEDY
            )
        if (
            min_rating is not None
            and columns.rating is not None
            and _rating(path, number, cells[columns.rating]) < min_rating
        ):
            low += 1
            continue
        rows.extend((users.setdefault(user, len(users)), items.setdefault(item, len(items))))
        numbers.append(number)
    notes = [f"{path.name}: {low:,} interactions with a rating below {min_rating:g} left out"] if low else []
    used = 2 + (min_rating is not None)
    if columns is not None and columns.count > used:
        notes.append(f"{path.name}: {columns.count - used} further column{'s' if columns.count - used > 1 else ''} passed over")
    pairs = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return PairFile(path, tuple(users), tuple(items), pairs, np.array(numbers, dtype=np.int64), tuple(notes))


def _header(path: Path, number: int, cells: list[str]) -> tuple[_Columns, bool]:
    """The columns, as the first line shows them, and whether that line is a header."""
    if path.suffix == ".inter":
        return _typed_header(path, number, cells), True
    names = [cell.strip().lower().partition(":")[0] for cell in cells]
    user, item = _first(names, _USER), _first(names, _ITEM)
    if user is not None and item is not None:
        return _Columns(user, item, _first(names, _RATING), len(cells)), True
    if len(cells) < 2:
        separator = next((sign for sign in ("::", ",", ";", " ") if sign in cells[0].strip()), "")
        found = f"no tab, but {separator!r}, between user and item" if separator else "one column instead of two"
        raise DataError.at(path, number, found, value=cells[0][:80], remedy=_REMEDY)
    return _Columns(0, 1, None, len(cells)), False


def _typed_header(path: Path, number: int, cells: list[str]) -> _Columns:
    names: dict[str, tuple[int, str]] = {}
    for position, cell in enumerate(cells):
        name, separator, kind = cell.strip().partition(":")
        if not separator or kind not in _TYPES:
            raise DataError.at(
                path,
                number,
                "a column of an atomic file has no type of RecBole's",
                value=cell,
                remedy=f"write name:type, type one of {', '.join(_TYPES)}; a file without a header is read as .tsv",
            )
        names[name.lower()] = (position, kind)
    positions = {}
    for what, known in (("user", _USER), ("item", _ITEM)):
        name = next((name for name in known if name in names), "")
        if not name:
            hint = nearest(known[0], names)
            raise DataError.at(
                path, number, f"no column {known[0]}{hint}", value="\t".join(cells), remedy=f"name it {known[0]}:token"
            )
        positions[what], kind = names[name]
        if kind not in ("token", "float"):
            raise DataError.at(
                path, number, f"the {what} is a sequence", value=f"{name}:{kind}", remedy=f"make it {name}:token"
            )
    rating = next((names[name] for name in _RATING if name in names), None)
    if rating is not None and rating[1] != "float":
        rating = None
    return _Columns(positions["user"], positions["item"], rating[0] if rating is not None else None, len(cells))


def _first(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((position for position, name in enumerate(names) if name in known), None)


def _rating(path: Path, number: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError.at(path, number, "the rating is no number", value=text, remedy="correct it, or leave min_rating out")
    return value


def _read_arrays(path: Path, min_rating: float | None) -> PairFile:
    if min_rating is not None and path.suffix == ".npy":
        raise DataError.at(path, None, "data.min_rating needs ratings; pairs have none", remedy="leave min_rating out")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _of_pairs(path, loaded)
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise DataError.at(
            path, None, f"no plain NumPy file: {error}", remedy="save integers without objects (a pickle can run code)"
        ) from error
    if {"users", "items"} <= arrays.keys():
        users, items = arrays["users"], arrays["items"]
        if users.ndim != 1 or users.shape != items.shape:
            raise DataError.at(
                path, None, f"users {users.shape} and items {items.shape} are no pairs", remedy="give equal lengths"
            )
        return _of_pairs(path, np.stack((users, items), axis=1))
    return _of_matrix(path, arrays, min_rating)


def _of_pairs(path: Path, pairs: np.ndarray) -> PairFile:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iuUS":
        raise DataError.at(
            path, None, f"not pairs of ids: shape {pairs.shape}, {pairs.dtype}", remedy="save an integer matrix of two columns"
        )
    texts = pairs.astype(str)
    if pairs.dtype.kind in "iu" and (pairs < 0).any():
        row = int(np.flatnonzero((pairs < 0).any(axis=1))[0])
        raise DataError.at(path, row + 1, "an id is negative", value=pairs[row].tolist(), remedy="count from 0")
    users, items = _in_order(texts[:, 0]), _in_order(texts[:, 1])
    rows = np.stack((users[1], items[1]), axis=1)
    return PairFile(path, users[0], items[0], rows, np.arange(1, len(rows) + 1))


def _in_order(names: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """(P,) names -> distinct names in the order of first appearance, and (P,) position of each name in them."""
    distinct, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    return tuple(distinct[order].tolist()), position[inverse]


def _of_matrix(path: Path, arrays: Mapping[str, np.ndarray], min_rating: float | None) -> PairFile:
    """A CSR matrix: all its rows are users and all its columns are items, even without an entry."""
    kind = arrays.get("format")
    kind = kind.item() if kind is not None and kind.ndim == 0 else None
    if kind not in (b"csr", "csr") or not {"indptr", "indices", "data", "shape"} <= arrays.keys():
        raise DataError.at(
            path,
            None,
            f"neither users and items nor a CSR matrix: {', '.join(arrays)}",
            value=kind,
            remedy="save it by scipy.sparse.save_npz(path, matrix.tocsr())",
        )
    pointers, columns, values = arrays["indptr"], arrays["indices"], arrays["data"]
    num_users, num_items = (int(size) for size in arrays["shape"])
    fits = len(pointers) == num_users + 1 and not pointers[0] and pointers[-1] == len(columns) == len(values)
    if not fits or (np.diff(pointers) < 0).any() or (len(columns) and (columns.min() < 0 or columns.max() >= num_items)):
        raise DataError.at(path, None, f"the CSR matrix of shape ({num_users}, {num_items}) is damaged", remedy="save it again")
    users = np.repeat(np.arange(num_users, dtype=np.int64), np.diff(pointers))
    keep = values != 0
    if min_rating is not None:
        keep &= values >= min_rating
    low = int(((values != 0) & ~keep).sum())
    notes = (f"{path.name}: {low:,} interactions with a rating below {min_rating:g} left out",) if low else ()
    rows = np.stack((users[keep], columns[keep].astype(np.int64)), axis=1)
    names = (tuple(map(str, range(num_users))), tuple(map(str, range(num_items))))
    return PairFile(path, *names, rows, np.flatnonzero(keep) + 1, notes)


def read_names(path: Path) -> Iterator[str]:
    """The names of a list of users or items, one on each line.

    Raises:
        DataError: a name is listed twice, or the file cannot be opened.
    """
    seen: set[str] = set()
    for number, name in read_lines(path):
        if name in seen:
            raise DataError.at(path, number, "the name stands there twice", value=name, remedy="keep one of the two lines")
        seen.add(name)
        yield name
