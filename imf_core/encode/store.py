"""The feature store: what a pretrained encoder made of some entities, extracted once and kept by content.

    <cache>/features/<key>.safetensors    rows and names; the key is a hash of model, settings and input. Beside them a digest
                                          and flags of each item: what another graph, or the same one with a new picture, has
                                          in common with this one is not encoded again
    <cache>/features/<key>.parts/         shards of an extraction that is not finished; a killed one goes on from them
    <cache>/features/<key>.lock           held while extracting: a second process waits and then reads
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imf_core.data.features.feature_files import Features, read_features, save_features
from imf_core.encode.base import Part, PretrainedEncoder
from imf_core.encode.reuse import BLANK, PRESENT, REJECTED, TRUNCATED, Known, digest_rows, known_items
from imf_core.errors import DataError, ResourceError
from imf_core.files.atomic import atomic_file
from imf_core.files.cache import REMEDY, cache_root
from imf_core.files.digest import sha256_of
from imf_core.files.locks import lock

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
        encoded: items that were encoded now; 0 if all features were in the store.
        reused: items that an earlier extraction of other items had encoded.
    """

    features: Features
    path: Path
    key: str
    items: int
    truncated: int
    blank: int
    rejected: tuple[tuple[str, int, str], ...]
    encoded: int
    reused: int = 0


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
        """The features of the items: read if they are in the store, else encoded; an interrupted extraction goes on.

        Items that an earlier extraction has encoded are not encoded again.

        Args:
            encoder: what encodes them.
            names: n distinct entity names.
            items: n texts, or tuples of picture files.
        """
        identity = encoder.identity()
        digests = [encoder.digest(item) for item in items]
        key = _key(identity, names, digests)
        path = self.root / f"{key}.safetensors"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with suppress(DataError):  # absent, or damaged since: made anew
                return _extracted(path, key, 0)
            with _locked(self.root / f"{key}.lock"):
                with suppress(DataError):  # another process made it meanwhile
                    return _extracted(path, key, 0)
                settings = json.dumps(identity)
                known = known_items(self.root, settings, digests)
                shards = _Shards(self.root / f"{key}.parts", encoder, items, digests, known)
                with _bar(self.progress, encoder.name, len(items)) as advance:
                    advance(len(items) - len(known.missing))
                    for shard in shards:
                        shards.make(shard, advance)
                features, more = shards.merged(names, {"encoder": encoder.name, "key": key, "settings": settings})
                save_features(path, features, more)
                shards.remove()
                return _extracted(path, key, shards.encoded, len(items) - len(known.missing))
        except OSError as error:
            raise DataError(
                f"features cannot be written to {self.root}: {error.strerror or error}",
                remedy=f"free some space there, or {REMEDY}", path=str(self.root),
            ) from error


class _Shards:
    """The parts of an extraction, each a file that is written atomically."""

    def __init__(
        self, folder: Path, encoder: PretrainedEncoder[ItemT], items: Sequence[ItemT], digests: Sequence[str], known: Known
    ) -> None:
        self.folder, self.encoder, self.items, self.known = folder, encoder, items, known
        self.digests = digest_rows(digests)
        self.order = known.missing[encoder.order([items[item] for item in known.missing])]
        self.encoded = 0
        folder.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[int]:
        return iter(range(-(-len(self.order) // self.encoder.shard)))

    def rows(self, shard: int) -> np.ndarray:
        """The items of a shard."""
        return self.order[shard * self.encoder.shard : (shard + 1) * self.encoder.shard]

    def make(self, shard: int, advance: Callable[[int], None]) -> None:
        """Encode a shard and write it, where it is not there from an earlier start."""
        rows = self.rows(shard)
        path = self.folder / f"{shard:05d}.safetensors"
        with suppress(OSError, SafetensorError), safe_open(path, framework="numpy") as handle:
            if np.array_equal(handle.get_tensor("digests"), self.digests[rows]):
                advance(len(rows))
                return
        part = self.encoder.encode_part([self.items[row] for row in rows], advance)
        self.encoded += len(rows)
        facts = {"truncated": part.truncated, "blank": part.blank, "rejected": part.rejected}
        vectors = np.ascontiguousarray(part.vectors, dtype=np.float32)
        tensors = {"digests": self.digests[rows], "present": part.present, "vectors": vectors}
        with atomic_file(path) as scratch:
            save_file(tensors, scratch, metadata={"said": json.dumps(facts)})

    def merged(self, names: Sequence[str], facts: dict[str, str]) -> tuple[Features, dict[str, np.ndarray]]:
        """All present rows in the order of the items; digests and flags of all. The matrix is held once, beside one shard."""
        flags = self.known.flags.copy()
        rejected: list[tuple[int, int, str]] = []
        width = 0
        for shard in self:
            part, rows = self._read(shard), self.rows(shard)
            width = max(width, part.vectors.shape[1])
            flags[rows[part.present]] |= PRESENT
            flags[rows[part.truncated]] |= TRUNCATED
            flags[rows[part.blank]] |= BLANK
            rejected_here = [(int(rows[item]), picture, reason) for item, picture, reason in part.rejected]
            flags[[item for item, _, _ in rejected_here]] |= REJECTED
            rejected += rejected_here
        width = max([width, *(source.width for source in self.known.sources)])
        present = flags & PRESENT != 0
        position = np.cumsum(present) - 1
        matrix = np.zeros((int(present.sum()), width), dtype=np.float32)
        for source in self.known.sources:
            matrix[position[source.items]] = source.vectors()
        for shard in self:
            part = self._read(shard)
            matrix[position[self.rows(shard)[part.present]]] = part.vectors
        counts = {"items": len(flags)}
        counts |= {name: int((flags & bit != 0).sum()) for name, bit in (("truncated", TRUNCATED), ("blank", BLANK))}
        said = json.dumps([(names[item], picture, reason) for item, picture, reason in sorted(rejected)])
        facts = {**facts, **{name: str(count) for name, count in counts.items()}, "rejected": said, "format": str(_FORMAT)}
        rows_of = tuple(name for name, has in zip(names, present, strict=True) if has)
        return Features(rows_of, matrix, facts), {"digests": self.digests, "flags": flags}

    def _read(self, shard: int) -> Part:
        with safe_open(self.folder / f"{shard:05d}.safetensors", framework="numpy") as handle:
            facts = json.loads(handle.metadata()["said"])
            rejected = [(int(item), int(picture), str(reason)) for item, picture, reason in facts["rejected"]]
            present, vectors = handle.get_tensor("present"), handle.get_tensor("vectors")
            return Part(present, vectors, facts["truncated"], facts["blank"], rejected)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _extracted(path: Path, key: str, encoded: int, reused: int = 0) -> Extracted:
    features = read_features(path)
    facts = features.facts
    rejected = tuple((str(name), int(picture), str(reason)) for name, picture, reason in json.loads(facts["rejected"]))
    return Extracted(
        features, path, key, int(facts["items"]), int(facts["truncated"]), int(facts["blank"]), rejected, encoded, reused
    )


def _key(identity: dict[str, str], names: Sequence[str], digests: Sequence[str]) -> str:
    content = (f"{name}\n{digest}\n" for name, digest in zip(names, digests, strict=True))
    return sha256_of(chain([json.dumps([_FORMAT, identity], sort_keys=True)], content))[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time extract this."""
    with path.open("w") as stream:
        with suppress(ResourceError):  # a file system without locks: each file is still written atomically
            lock(stream)
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
