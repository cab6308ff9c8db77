"""Files of user-item pairs -> `PairFile`: tab-separated text, RecBole's atomic files, NumPy pairs and CSR matrices.

Names keep every byte; a byte order mark, CRLF line ends and blank lines are ignored. No file that is read can run code. A wrong
line is an error with file, line, value and remedy.

Shapes: `P` interactions.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imf_core.config_base import nearest
from imf_core.errors import DataError
from imf_core.files.lines import read_lines
from imf_core.files.tensors import read_arrays
from imf_core.recommend.data.atomic_files import TYPES

SUFFIXES = (".tsv", ".txt", ".inter", ".npz", ".npy")
_USER = ("user_id", "user", "userid", "uid", "users", "reviewerid", "reviewer_id", "customer_id", "customerid")
_ITEM = (
    "item_id", "item", "itemid", "iid", "items", "movieid", "movie_id", "asin", "product_id", "productid", "article_id",
    "business_id",
)
_RATING = ("rating", "score", "stars", "overall")
_SPLIT = ("x_label", "split", "set")  # a published split in a column
_SPLITS = {"0": 0, "1": 1, "2": 2, "train": 0, "valid": 1, "val": 1, "dev": 1, "validation": 1, "test": 2}
_LABEL = "label"
_MOST_ITEMS = 10**8  # of a matrix: each column gets a name
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
        problems: what makes the interactions mean something else than they say.
        split: (P,) int64, 0 train, 1 valid, 2 test, where a column says so.
    """

    path: Path
    users: tuple[str, ...]
    items: tuple[str, ...]
    rows: np.ndarray
    lines: np.ndarray
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    split: np.ndarray | None = None


@dataclass(frozen=True)
class _Columns:
    """Positions of the columns user, item, rating, label and split (None: there is none); names of all columns, in order."""

    user: int
    item: int
    rating: int | None
    names: tuple[str, ...]
    label: int | None = None
    split: int | None = None

    @classmethod
    def named(cls, names: list[str]) -> _Columns | None:
        """The columns by their names, in lower case; None without a user or an item."""
        user, item = _first(names, _USER), _first(names, _ITEM)
        if user is None or item is None:
            return None
        label = names.index(_LABEL) if _LABEL in names else None
        return cls(user, item, _first(names, _RATING), tuple(names), label, _first(names, _SPLIT))

    @property
    def count(self) -> int:
        """Number of columns."""
        return len(self.names)

    def unused(self, rated: bool, labelled: bool) -> list[str]:
        """Names of the columns that nobody reads."""
        used = {self.user, self.item, self.split, self.rating if rated else None, self.label if labelled else None}
        return [name for place, name in enumerate(self.names) if place not in used]


def read_pairs(path: Path, min_rating: float | None = None, label: str | None = None) -> PairFile:
    """Read interactions; the suffix gives the format.

    - `.tsv`, `.txt`: `user<TAB>item`, with or without a header line that names the columns (`user`, `item`, `rating`, ...). A
      column `x_label`, `split` or `set` holds a published split: 0, 1, 2 or train, valid, test.
    - `.inter`: a RecBole atomic file; the header gives each column's name and type, as in `user_id:token`, or the name alone.
    - `.npy`: an integer matrix (P, 2). `.npz`: a CSR matrix as `scipy.sparse.save_npz` writes it (users x items, every stored
      entry other than 0 is an interaction), or arrays `users` and `items` of equal length.

    Args:
        path: the file.
        min_rating: interactions with a lower rating are left out and counted; None: all count.
        label: column in which a value of 0 or less marks what is no interaction; None: there is none.

    Raises:
        DataError: the format is not known, or a line cannot be used.
    """
    if path.suffix in (".npy", ".npz"):
        return _read_arrays(path, min_rating)
    if path.suffix not in SUFFIXES:
        raise DataError.at(path, None, "format is not known", value=path.suffix, remedy=f"use one of {', '.join(SUFFIXES)}")
    return _Text(path, min_rating, label).read()


class _Text:
    """A text file being read; arguments as of `read_pairs`."""

    def __init__(self, path: Path, min_rating: float | None, label: str | None) -> None:
        self.path, self.min_rating, self.label = path, min_rating, label
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {}
        self.rows, self.numbers, self.splits = array("q"), array("q"), array("q")
        self.low = self.negative = 0
        self.labels: set[str] = set()
        self.first: list[str] | None = None  # cells of the first line, where that was not taken for a header
        self.second: list[str] | None = None

    def read(self) -> PairFile:
        """All lines; errors as of `read_pairs`."""
        columns: _Columns | None = None
        for number, line in read_lines(self.path):
            cells = line.split("\t")
            if columns is None:
                columns, is_header = self._columns(number, line, cells)
                if is_header:
                    continue
                self.first = cells
            elif self.second is None:
                self.second = cells
            if len(cells) != columns.count:
                problem = f"{len(cells)} columns instead of {columns.count}"
                raise DataError.at(self.path, number, problem, value=line[:80], remedy=_REMEDY)
            self._add(number, line, cells, columns)
        pairs = np.array(self.rows, dtype=np.int64).reshape(-1, 2)
        split = np.array(self.splits, dtype=np.int64) if columns is not None and columns.split is not None else None
        return PairFile(
            self.path, tuple(self.users), tuple(self.items), pairs, np.array(self.numbers, dtype=np.int64),
            tuple(self._notes(columns)), tuple(self._problems(pairs)), split,
        )

    def _columns(self, number: int, line: str, cells: list[str]) -> tuple[_Columns, bool]:
        columns, is_header = _header(self.path, number, cells)
        if self.min_rating is not None and columns.rating is None:
            raise DataError.at(
                self.path, number, "data.min_rating needs a column of ratings", value=line[:80],
                remedy="name it rating in a header line, or leave min_rating out",
            )
        if self.label is not None:
            if self.label.lower() not in columns.names or not is_header:
                raise DataError.at(
                    self.path, number, f"data.label names no column{nearest(self.label, columns.names)}", value=self.label,
                    remedy="name it in a header line, or leave data.label out",
                )
            columns = replace(columns, label=columns.names.index(self.label.lower()))
        return columns, is_header

    def _add(self, number: int, line: str, cells: list[str], columns: _Columns) -> None:
        user, item = cells[columns.user], cells[columns.item]
        if not user.strip() or not item.strip():
            problem = f"the {'item' if user.strip() else 'user'} is blank"
            raise DataError.at(self.path, number, problem, value=line[:80], remedy=_REMEDY)
        if columns.label is not None:
            if self.label is None:
                self.labels.add(cells[columns.label].strip().removesuffix(".0"))
            elif _number(self.path, number, cells[columns.label], "label") <= 0:
                self.negative += 1
                return
        rating = columns.rating if self.min_rating is not None else None
        if rating is not None and _number(self.path, number, cells[rating], "rating") < float(self.min_rating or 0.0):
            self.low += 1
            return
        if columns.split is not None:
            split = _SPLITS.get(cells[columns.split].strip().lower())
            if split is None:
                raise DataError.at(
                    self.path, number, f"the column {columns.names[columns.split]} holds no split", value=cells[columns.split],
                    remedy="write 0, 1, 2 or train, valid, test there, or give the column another name",
                )
            self.splits.append(split)
        self.rows.extend((self.users.setdefault(user, len(self.users)), self.items.setdefault(item, len(self.items))))
        self.numbers.append(number)

    def _notes(self, columns: _Columns | None) -> list[str]:
        name, notes = self.path.name, []
        if self.low:
            notes.append(f"{name}: {self.low:,} interactions with a rating below {self.min_rating:g} left out")
        if self.negative:
            notes.append(f"{name}: {self.negative:,} lines with {self.label} 0 left out: no interactions")
        if columns is None:
            return notes
        if columns.split is not None:
            notes.append(f"{name}: the column {columns.names[columns.split]} gives the split")
        unused = columns.unused(self.min_rating is not None, self.label is not None)
        if unused:
            notes.append(f"{name}: column{'s' if len(unused) > 1 else ''} not used: {', '.join(unused)}")
        if self.label is None and self.labels == {"0", "1"}:
            notes.append(f"{name}: lines with label 0 count as interactions too; data.label=label leaves them out")
        return notes

    def _problems(self, pairs: np.ndarray) -> list[str]:
        """A first line that was read as an interaction and may be a header."""
        if self.first is None or self.second is None or len(pairs) < 2:
            return []
        user, item = pairs[0]
        again = (pairs[1:, 0] == user).any() or (pairs[1:, 1] == item).any()
        digits = [any(map(str.isdigit, "".join(cells))) for cells in (self.first, self.second)]
        if again or digits[0] or not digits[1]:
            return []
        known = f"user: {', '.join(_USER[:4])}; item: {', '.join(_ITEM[:4])}"
        told = f"{self.path.name}: the first line ({', '.join(self.first)}) has a user and an item that occur nowhere else"
        return [f"{told}: if it is a header, name the columns (known are {known})"]


def _header(path: Path, number: int, cells: list[str]) -> tuple[_Columns, bool]:
    """The columns, as the first line shows them, and whether that line is a header."""
    if path.suffix == ".inter" and (any(":" in cell for cell in cells) or _Columns.named(_names(cells)) is None):
        return _typed_header(path, number, cells), True
    columns = _Columns.named(_names(cells))
    if columns is not None:
        return columns, True
    if len(cells) < 2:
        separator = next((sign for sign in ("::", ",", ";", " ") if sign in cells[0].strip()), "")
        found = f"no tab, but {separator!r}, between user and item" if separator else "one column instead of two"
        raise DataError.at(path, number, found, value=cells[0][:80], remedy=_REMEDY)
    return _Columns(0, 1, None, tuple(f"column {place}" for place in range(1, len(cells) + 1))), False


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().lower().partition(":")[0] for cell in cells]


def _typed_header(path: Path, number: int, cells: list[str]) -> _Columns:
    names: dict[str, tuple[int, str]] = {}
    for position, cell in enumerate(cells):
        name, separator, kind = cell.strip().partition(":")
        if not separator or kind not in TYPES:
            raise DataError.at(
                path,
                number,
                "a column of an atomic file has no type of RecBole's",
                value=cell,
                remedy=f"write name:type, type one of {', '.join(TYPES)}; a file without a header is read as .tsv",
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
    every = _names(cells)
    label = every.index(_LABEL) if _LABEL in every else None
    place = rating[0] if rating is not None else None
    return _Columns(positions["user"], positions["item"], place, tuple(every), label, _first(every, _SPLIT))


def _first(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((position for position, name in enumerate(names) if name in known), None)


def _number(path: Path, number: int, text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        setting = {"rating": "min_rating", "label": "data.label"}[what]
        raise DataError.at(path, number, f"the {what} is no number", value=text, remedy=f"correct it, or leave {setting} out")
    return value


def _read_arrays(path: Path, min_rating: float | None) -> PairFile:
    if min_rating is not None and path.suffix == ".npy":
        raise DataError.at(path, None, "data.min_rating needs ratings; pairs have none", remedy="leave min_rating out")
    arrays = read_arrays(path)
    if isinstance(arrays, np.ndarray):
        return _of_pairs(path, arrays)
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
    pointers, columns, values, shape = (arrays[name] for name in ("indptr", "indices", "data", "shape"))
    flat = all(part.ndim == 1 and part.dtype.kind in "iu" for part in (pointers, columns, shape)) and values.ndim == 1
    if not flat or shape.shape != (2,) or values.dtype.kind not in "biuf":
        raise DataError.at(path, None, "the parts of the CSR matrix are no lists of numbers", remedy="save it again")
    num_users, num_items = (int(size) for size in shape)
    if num_items > _MOST_ITEMS:
        raise DataError.at(path, None, f"a CSR matrix of {num_items:,} items", remedy="leave out columns without an entry")
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
