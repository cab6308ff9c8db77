"""The feature store: what a pretrained encoder made of some entities, extracted once and kept by content.

    <cache>/features/<key>.safetensors    rows and names; the key is a hash of model, settings and input
    <cache>/features/<key>.parts/         shards of an extraction that is not finished; a killed one goes on from them
    <cache>/features/<key>.lock           held while extracting: a second process waits and then reads
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imf_core.data.cache import REMEDY, cache_root
from imf_core.data.features import Features, read_features, save_features
from imf_core.encode.base import Part, PretrainedEncoder
from imf_core.errors import DataError

ItemT = TypeVar("ItemT")
_FORMAT = 1  # raise it whenever the files change


@dataclass(frozen=True)
class Extracted:
    """Features from the store.

    Args:
        features: K rows, mapped into memory and read-only.
        path: the file that holds them.
        key: hash of model, settings and input.
        items: number of items that were asked for.
        truncated, blank: items that were longer than the model reads; items with nothing to read.
        rejected: (name, picture, reason) of the pictures that cannot be read; the position is the one among the entity's own.
        encoded: items that were encoded now; 0 where all was there.
    """

    features: Features
    path: Path
    key: str
    items: int
    truncated: int
    blank: int
    rejected: tuple[tuple[str, int, str], ...]
    encoded: int


class FeatureStore:
    """Features by content.

    Args:
        root: folder of the store; default: `features` in the cache folder.
        progress: show a bar where standard error is a terminal.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(self, root: Path | None = None, *, progress: bool = True) -> None:
        self.root = root if root is not None else cache_root() / "features"
        self.progress = progress

    def extract(self, encoder: PretrainedEncoder[ItemT], names: Sequence[str], items: Sequence[ItemT]) -> Extracted:
        """The features of the items: read where they are there, else encoded; an interrupted extraction goes on.

        Args:
            encoder: what encodes them.
            names: n distinct entity names.
            items: n texts, or tuples of picture files.
        """
        identity = encoder.identity()
        key = _key(identity, names, [encoder.digest(item) for item in items])
        path = self.root / f"{key}.safetensors"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with suppress(DataError):  # absent, or damaged since: made anew
                return _extracted(path, key, 0)
            with _locked(self.root / f"{key}.lock"):
                with suppress(DataError):  # another process made it meanwhile
                    return _extracted(path, key, 0)
                shards = _Shards(self.root / f"{key}.parts", encoder, items)
                with _bar(self.progress, encoder.name, len(items)) as advance:
                    for shard in shards:
                        shards.make(shard, advance)
                facts = {"encoder": encoder.name, "key": key, "settings": json.dumps(identity)}
                save_features(path, shards.merged(names, facts))
                shards.remove()
                return _extracted(path, key, shards.encoded)
        except OSError as error:
            raise DataError(
                f"features cannot be written to {self.root}: {error.strerror or error}",
                remedy=f"free some space there, or {REMEDY}", path=str(self.root),
            ) from error


class _Shards:
    """The parts of an extraction, each a file that is there whole or not at all."""

    def __init__(self, folder: Path, encoder: PretrainedEncoder[ItemT], items: Sequence[ItemT]) -> None:
        self.folder, self.encoder, self.items = folder, encoder, items
        self.order = encoder.order(items)
        self.encoded = 0
        folder.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[int]:
        return iter(range(-(-len(self.items) // self.encoder.shard)))

    def rows(self, shard: int) -> np.ndarray:
        return self.order[shard * self.encoder.shard : (shard + 1) * self.encoder.shard]

    def make(self, shard: int, advance: Callable[[int], None]) -> None:
        rows = self.rows(shard)
        path = self.folder / f"{shard:05d}.safetensors"
        with suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as handle:
            if len(handle.get_tensor("present")) == len(rows):
                advance(len(rows))
                return
        part = self.encoder.encode_part([self.items[row] for row in rows], advance)
        self.encoded += len(rows)
        scratch = self.folder / f".{uuid.uuid4().hex}"
        counts = {"truncated": part.truncated, "blank": part.blank, "rejected": part.rejected}
        save_file({"present": part.present, "vectors": np.ascontiguousarray(part.vectors, dtype=np.float32)}, scratch,
                  metadata={"counts": json.dumps(counts)})
        os.replace(scratch, path)

    def merged(self, names: Sequence[str], facts: dict[str, str]) -> Features:
        """All present rows in the order of the items. The matrix is held once, beside one shard."""
        present = np.zeros(len(self.items), dtype=bool)
        width = truncated = blank = 0
        rejected: list[tuple[str, int, str]] = []
        for shard in self:
            part = self._read(shard)
            rows = self.rows(shard)
            present[rows] = part.present
            width = max(width, part.vectors.shape[1])
            truncated, blank = truncated + part.truncated, blank + part.blank
            rejected += [(names[rows[item]], picture, reason) for item, picture, reason in part.rejected]
        position = np.cumsum(present) - 1
        matrix = np.zeros((int(present.sum()), width), dtype=np.float32)
        for shard in self:
            part = self._read(shard)
            matrix[position[self.rows(shard)[part.present]]] = part.vectors
        rank = {name: row for row, name in enumerate(names)}
        rejected.sort(key=lambda entry: (rank[entry[0]], entry[1]))
        counts = {"items": str(len(self.items)), "truncated": str(truncated), "blank": str(blank)}
        facts = {**facts, **counts, "rejected": json.dumps(rejected), "format": str(_FORMAT)}
        return Features(tuple(name for name, has in zip(names, present, strict=True) if has), matrix, facts)

    def _read(self, shard: int) -> Part:
        with safe_open(self.folder / f"{shard:05d}.safetensors", framework="numpy") as handle:
            counts = json.loads(handle.metadata()["counts"])
            rejected = [(int(item), int(picture), str(reason)) for item, picture, reason in counts["rejected"]]
            return Part(
                handle.get_tensor("present"), handle.get_tensor("vectors"), counts["truncated"], counts["blank"], rejected
            )

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _extracted(path: Path, key: str, encoded: int) -> Extracted:
    features = read_features(path)
    facts = features.facts
    rejected = tuple((str(name), int(picture), str(reason)) for name, picture, reason in json.loads(facts["rejected"]))
    return Extracted(
        features, path, key, int(facts["items"]), int(facts["truncated"]), int(facts["blank"]), rejected, encoded
    )


def _key(identity: dict[str, str], names: Sequence[str], digests: Sequence[str]) -> str:
    total = hashlib.sha256(json.dumps([_FORMAT, identity], sort_keys=True).encode())
    for name, digest in zip(names, digests, strict=True):
        total.update(f"{name}\n{digest}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes that extract this; the lock of a killed process is free at once."""
    with path.open("w") as handle:
        with suppress(OSError):  # a file system without locks: each file is still written in one step
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    path.unlink(missing_ok=True)


@contextmanager
def _bar(wanted: bool, title: str, total: int) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"encode with {title}", total=total)
        yield lambda count: bar.update(task, advance=count)
