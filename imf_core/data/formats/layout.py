"""Which files a graph is read from, and in which format each of them is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from imf_core.config import DataConfig
from imf_core.errors import DataError
from imf_core.files.lines import PACKED, plain_name, read_lines
from imf_core.parts.registry import KINDS
from imf_core.parts.registry import names as part_names

_SUFFIXES = (".tsv", ".txt", ".nt", ".kg")
_REMEDY = "put head<TAB>relation<TAB>tail lines into train.tsv (and valid.tsv, test.tsv)"


@dataclass(frozen=True)
class SplitFile:
    """One file of triples and how it is written: tab-separated names (`names`), OpenKE ids (`ids`), N-Triples (`ntriples`),
    RecBole's (`kg`), or as a reader of one's own reads it, by its name.
    """

    path: Path
    format: str


@dataclass(frozen=True)
class GraphFiles:
    """A graph folder, and files that replace those of the folder.

    Args:
        folder: graph folder; None: explicit files alone.
        train, valid, test: each is read instead of the folder's file of that split; None: the folder's.
    """

    folder: Path | None = None
    train: Path | None = None
    valid: Path | None = None
    test: Path | None = None

    @classmethod
    def of(cls, config: DataConfig, folder: Path) -> GraphFiles:
        """The files that settings name: `data.train`, `data.valid` and `data.test` go before those of the folder."""
        train, valid, test = (Path(name).expanduser() if name else None for name in (config.train, config.valid, config.test))
        return cls(folder, train, valid, test)

    @classmethod
    def at(cls, source: Path | str | GraphFiles) -> GraphFiles:
        """A folder becomes the files in it.

        Raises:
            DataError: there is no such folder.
        """
        files = source if isinstance(source, GraphFiles) else cls(Path(source))
        if files.folder is not None and not files.folder.is_dir():
            remedy = "give the folder that holds train.tsv, train.nt or train2id.txt"
            raise DataError(f"{files.folder} is not a folder", remedy=remedy, path=str(files.folder))
        return files

    @cached_property
    def splits(self) -> dict[str, SplitFile]:
        """The file of each split that exists; train always does. Looked up once.

        Raises:
            DataError: no training file, or splits in formats that do not go together.
        """
        train = self.train or self._training_file()
        splits = {"train": SplitFile(train, format_of(train))}
        for split, given in (("valid", self.valid), ("test", self.test)):
            path = given or self._beside(split, splits["train"])
            if path is not None:
                splits[split] = SplitFile(path, format_of(path))
        for split, file in splits.items():
            if (file.format == "ids") != (splits["train"].format == "ids"):
                raise DataError(
                    f"{file.path} ({split}) and {train} (train) do not go together: one holds ids, the other names",
                    remedy="give all splits in one format; `imf convert` writes any of them", path=str(file.path),
                )
        return splits

    def folders(self) -> list[Path]:
        """Where lists of names may lie: beside the training file, then in the folder."""
        beside = [self.train.parent] if self.train is not None else []
        return beside + ([self.folder] if self.folder is not None and self.folder not in beside else [])

    def ignored(self) -> list[str]:
        """Training files of the folder that are passed over because it holds several."""
        if self.folder is None or self.train is not None:
            return []
        return [path.name for path in self._candidates("train")[1:]]

    def __str__(self) -> str:
        return str(self.train or self.folder)

    def _candidates(self, split: str) -> list[Path]:
        if self.folder is None:
            return []
        names = (f"{split}2id.txt", *(f"{split}{suffix}" for suffix in _SUFFIXES))
        packed = [f"{name}{container}" for container in ("", *PACKED) for name in names]
        found = [path for name in packed if (path := self.folder / name).exists()]
        return found or [path for reader in own_readers() if (path := self.folder / f"{split}.{reader}").exists()]

    def _training_file(self) -> Path:
        candidates = self._candidates("train")
        if candidates:
            return candidates[0]
        if self.folder is None:
            raise DataError("no training file was given", remedy="set data.train, or data.path to a graph folder")
        others = sorted(path.name for path in self.folder.iterdir() if path.name.lower().startswith("train"))
        there = f"; {', '.join(others)} is of a format that is not read" if others else ""
        raise DataError(
            f"{self.folder} holds neither train.tsv, train.txt, train.nt nor train2id.txt{there}", remedy=_REMEDY,
            path=str(self.folder),
        )

    def _beside(self, split: str, train: SplitFile) -> Path | None:
        """The folder's file of a split that goes with the training file; one of the same suffix is preferred."""
        ids = train.format == "ids"
        fitting = [path for path in self._candidates(split) if plain_name(path).endswith("2id.txt") == ids]
        suffix = Path(plain_name(train.path)).suffix
        return min(fitting, key=lambda path: Path(plain_name(path)).suffix != suffix, default=None)


def own_readers() -> list[str]:
    """Names of the readers that are none of the product's: each reads files whose names end in a dot and its name."""
    return [name for name in part_names("reader") if name not in KINDS["reader"].built_in]


def format_of(path: Path) -> str:
    """The format of a file of triples, from its name and, where that leaves it open, from its first lines.

    Only files that are no tab-separated triples are looked at for another format, so no names are ever misread.

    Raises:
        DataError: the file cannot be opened.
    """
    name = plain_name(path)
    if name.endswith(".nt"):
        return "ntriples"
    if name.endswith(".kg"):
        return "kg"
    if name.endswith("2id.txt"):
        return "ids"
    if path.suffix not in (".tsv", ".txt", ".csv") and path.suffix[1:] in own_readers():
        return path.suffix[1:]
    lines = [line for _, line in islice(read_lines(path), 2)]
    if not lines or lines[0].count("\t") == 2:
        return "names"
    if lines[0].strip().isdecimal() and (len(lines) == 1 or _three_ids(lines[1])):
        return "ids"
    if lines[0].lstrip().startswith(("<", "_:")) and lines[0].rstrip().endswith("."):
        return "ntriples"
    return "names"


def _three_ids(line: str) -> bool:
    cells = line.split()
    return len(cells) == 3 and all(cell.isdecimal() for cell in cells)
