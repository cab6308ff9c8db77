"""The graphs on which searches are compared and start points are chosen; some are made smaller, so that trials take seconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imf_core.data.audit.repair import repair
from imf_core.data.formats.readers import read_raw
from imf_core.data.formats.writers import write_graph
from imf_core.errors import DataError

_HELD_OUT = 3000  # validation and test triples, at most


@dataclass(frozen=True)
class Small:
    """How a graph is made smaller.

    Args:
        share: of its training triples that stay, drawn by a fixed seed.
        repaired: its splits are repaired first, as `imf audit --repair` does.
    """

    share: float = 1.0
    repaired: bool = False


BUNDLED = "unicode"
GRAPHS = {
    "MKG-Y": Small(), "DB15K": Small(0.5, repaired=True), "FB15K237": Small(0.2), "MKG-W": Small(0.5), "WN18RR": Small(0.5),
    BUNDLED: Small(),
}
COMPARED = ("MKG-Y", "DB15K", "FB15K237", BUNDLED)


def small_graph(name: str, shared: Path, cache: Path) -> str:
    """The folder of a graph as the benchmarks use it, made once; the bundled graph stays as it is.

    Args:
        name: a key of `GRAPHS`.
        shared: folder that holds the graphs, each in a folder of its name.
        cache: where smaller graphs go.

    Raises:
        DataError: the graph is unknown or absent.
    """
    if name not in GRAPHS:
        raise DataError(f"there is no graph {name!r}", remedy=f"choose from {', '.join(GRAPHS)}")
    if name == BUNDLED:
        return BUNDLED
    source, target, how = shared / name, cache / "graphs" / name, GRAPHS[name]
    if (target / "train.tsv").exists():
        return str(target)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder", remedy="name the folder that holds the graphs", path=str(source))
    raw = read_raw(source, test=True)
    if how.repaired:
        fixed = repair(raw, valid_size=_HELD_OUT)
        raw = replace(raw, train=fixed.train, valid=fixed.valid, test=fixed.test)
    rng = np.random.default_rng(0)
    sizes = {"train": round(how.share * len(raw.train)), "valid": _HELD_OUT, "test": _HELD_OUT}
    splits = {
        split: rows[np.sort(rng.permutation(len(rows))[: sizes[split]])] for split, rows in raw.splits.items()
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"source": str(source), "share": how.share, "repaired": how.repaired}
    write_graph(target, source, raw.entities, raw.relations, splits, "split.json", facts)
    return str(target)
