"""What the structure branch starts from, as one table: made once, kept in the cache, shared by all trials."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from imf_core.config import StructureConfig
from imf_core.data.features.modality import load_modality
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.errors import DataError
from imf_core.files.atomic import atomic_file
from imf_core.files.cache import cache_root
from imf_core.files.digest import sha256_of

_VERSION = 1  # raise it whenever the same settings give another table


def structure_table(
    graph: KnowledgeGraph, config: StructureConfig, *, progress: bool = False
) -> tuple[np.ndarray | None, list[str]]:
    """The table of `config.init`, and what the user should know about it.

    Args:
        graph: only its names and training triples are read.
        config: `random` needs no table; `gat` is trained, or read from the cache; `file` is read and aligned by name.
        progress: show a bar while training.

    Returns:
        (N, w) float32 or None, a row of NaN for an entity that the file lacks; and notes.

    Raises:
        DataError: the file cannot be used, or the cache cannot be written.
        DivergedError: training became non-finite.
    """
    if config.init == "random":
        return None, []
    if config.init == "file":
        assert config.file is not None
        path = Path(config.file)
        if not path.is_file():
            raise DataError(f"structure.file {config.file!r} is no file", remedy="check the path", path=config.file)
        loaded = load_modality(path, graph.entities.names, name="table")
        table = np.where(loaded.mask[:, None], loaded.matrix, np.float32(np.nan))
        present = f"{int(loaded.mask.sum()):,} of {graph.num_entities:,} entities"
        extra = f", {loaded.unknown:,} rows of unknown names ignored" if loaded.unknown else ""
        return table, [f"structure: starts from {path.name}: {present}, {loaded.width} wide{extra}; the others start at random"]
    return _pretrained(graph, config, progress)


def cache_key(graph: KnowledgeGraph, config: StructureConfig) -> str:
    """24 hex digits that change with the training triples and with every setting of the encoder. Names play no part."""
    settings = [_VERSION, graph.num_entities, graph.num_relations, config.model_dump(exclude={"init", "file"})]
    triples = np.ascontiguousarray(graph.train, dtype=np.int64)
    return sha256_of([triples.tobytes(), json.dumps(settings, sort_keys=True)])[:24]


def _pretrained(graph: KnowledgeGraph, config: StructureConfig, progress: bool) -> tuple[np.ndarray, list[str]]:
    path = cache_root() / "structure" / f"{cache_key(graph, config)}.safetensors"
    note = f"structure: starts from graph attention, {config.width} wide"
    cached = _read(path, (graph.num_entities, config.width))
    if cached is not None:
        return cached, [f"{note}, from the cache"]
    from imf_core.encode.structure.attention import pretrain  # torch_geometric takes seconds to import

    table, report = pretrain(graph, config, progress=progress)
    try:
        with atomic_file(path) as scratch:
            save_file({"table": table}, scratch)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"the structure table cannot be kept in {path.parent}: {error}",
            remedy="set IMF_CACHE to a folder that can be written", path=str(path.parent),
        ) from error
    return table, [
        f"{note}, trained for {config.epochs} epochs in {report.seconds:.0f} s: "
        f"margin loss {report.losses[0]:.3f}, then {report.losses[-1]:.3f}"
    ]


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The table in the cache; None if there is none, or it cannot be used and has to be made again."""
    try:
        table = load_file(path).get("table")
    except (OSError, SafetensorError):
        return None
    return table if table is not None and table.shape == shape and np.isfinite(table).all() else None
