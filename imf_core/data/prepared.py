"""From `DataConfig` to everything a training run reads, and its form on disk that all trials share.

The prepared folder holds vocabularies, training and validation triples and the features: **not** the test split, so that no
trial can read it even by mistake. Arrays are memory-mapped by safetensors and treated as read-only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from imf_core.config import DataConfig, StructureConfig
from imf_core.data.bundled import BUNDLED, bundled_path
from imf_core.data.graph import KnowledgeGraph, Vocabulary
from imf_core.data.modality import Modality, load_modality
from imf_core.data.readers import read_graph, read_lines
from imf_core.encode.image import BitmapImageEncoder, find_images
from imf_core.encode.structure_table import structure_table
from imf_core.encode.text import NgramTextEncoder, readable
from imf_core.errors import DataError

_LISTED = 5  # damaged pictures named in a note


@dataclass(frozen=True)
class LinkData:
    """A graph and the modalities of its entities, in the order in which the model uses them.

    Args:
        graph: triples and vocabularies.
        modalities: features of the entities.
        notes: what the user should know about the features (damaged pictures, replaced views, ...).
        structure: (N, w) float32, what the structure branch starts from, a row of NaN where it starts at random; None: all do.
    """

    graph: KnowledgeGraph
    modalities: tuple[Modality, ...]
    notes: tuple[str, ...] = ()
    structure: np.ndarray | None = None

    def describe(self, names: tuple[str, ...] | None = None) -> list[str]:
        """What the user should know before training: notes on the graph, each modality's coverage, notes on the features."""
        return [*self.graph.notes, *(modality.describe() for modality in self.select(names)), *self.notes]

    def select(self, names: tuple[str, ...] | None) -> tuple[Modality, ...]:
        """The named modalities (None: all).

        Raises:
            DataError: a name that the data does not have.
        """
        if names is None:
            return self.modalities
        found = {modality.name: modality for modality in self.modalities}
        for name in names:
            if name not in found:
                raise DataError(
                    f"modality {name!r} is not there; found: {', '.join(found) or 'none'}",
                    remedy="add modalities/<name>.safetensors, descriptions.tsv or images/, or leave it out", value=name,
                )
        return tuple(found[name] for name in names)


def prepare(config: DataConfig, structure: StructureConfig | None = None, *, progress: bool = False) -> LinkData:
    """Read the graph and build its modalities.

    Looks in the graph folder for `descriptions.tsv` (entity<TAB>text), `images/<entity>.png` and `modalities/*`.

    Args:
        config: where the graph is and which views are built.
        structure: what the structure branch starts from; None: random values.
        progress: show a bar while a structure table is trained.

    Raises:
        DataError: the graph or a feature file cannot be used.
    """
    folder = resolve(config.path)
    graph = read_graph(folder)
    modalities: list[Modality] = []
    text = _text_modality(config, folder, graph)
    image, notes = _image_modality(config, folder, graph)
    modalities += [modality for modality in (image, text) if modality is not None]
    for path in sorted((folder / "modalities").glob("*")) if (folder / "modalities").is_dir() else []:
        if path.name.startswith(".") or path.name.endswith(".names.txt"):
            continue
        loaded = load_modality(path, graph.entities.names)
        if any(modality.name == loaded.name for modality in modalities):
            notes.append(f"{loaded.name}: the features of modalities/{path.name} are used instead of the view built before")
        modalities = [modality for modality in modalities if modality.name != loaded.name] + [loaded]
    table, said = structure_table(graph, structure or StructureConfig(), progress=progress)
    return LinkData(graph, tuple(modalities), (*notes, *said), table)


def resolve(path: str) -> Path:
    """The folder behind `data.path`: a bundled data set by name, or a folder.

    Raises:
        DataError: neither.
    """
    if Path(path).is_dir():
        return Path(path).resolve()
    if path in BUNDLED:
        return bundled_path(path)
    raise DataError(f"{path!r} is neither a folder nor a bundled data set", remedy=f"bundled: {', '.join(BUNDLED)}", path=path)


def _text_modality(config: DataConfig, folder: Path, graph: KnowledgeGraph) -> Modality | None:
    descriptions = folder / "descriptions.tsv"
    kind = config.text
    if kind == "auto":
        kind = "descriptions" if descriptions.exists() else "none"
    if kind == "none":
        return None
    unknown = 0
    if kind == "names":
        texts: list[str | None] = [readable(name) for name in graph.entities.names]
    else:
        texts = [None] * graph.num_entities
        for number, line in read_lines(descriptions):
            name, separator, text = line.partition("\t")
            if not separator:
                raise DataError.at(
                    descriptions, number, "no tab between entity and text", value=line[:80], remedy="write entity<TAB>text"
                )
            position = graph.entities.index.get(name)
            if position is None:
                unknown += 1
            elif texts[position] is not None:
                raise DataError.at(
                    descriptions, number, "a second text for the entity", value=name, remedy="join the two lines"
                )
            else:
                texts[position] = text.replace("\t", " ")
    matrix, mask = NgramTextEncoder(width=config.text_width).encode(texts)
    if not mask.any():
        raise DataError(
            f"{descriptions} describes none of the {graph.num_entities:,} entities ({unknown:,} lines of unknown names)",
            remedy="write entity<TAB>text with the graph's names, or set data.text=names or data.text=none",
            path=str(descriptions),
        )
    return Modality("text", matrix, mask, unknown)


def _image_modality(config: DataConfig, folder: Path, graph: KnowledgeGraph) -> tuple[Modality | None, list[str]]:
    """The bitmap view, where there is one, and notes on pictures that were left out."""
    pictures = folder / "images"
    if config.images == "none" or not pictures.is_dir():
        return None, []
    files = find_images(pictures, graph.entities.names)
    notes = [f"image: {files.repeated:,} further pictures of entities that already have one ignored"] if files.repeated else []
    found = sum(path is not None for path in files.paths)
    if not found:
        return None, [f"image: none of the {files.unknown:,} pictures in images/ carries the name of an entity"]
    encoder = BitmapImageEncoder(width=config.image_width)
    matrix, mask = encoder.encode(files.paths)
    if encoder.rejected:
        path, reason = encoder.rejected[0]
        if not mask.any():
            raise DataError(
                f"{pictures}: none of the {found:,} pictures can be read (first: {path.name}: {reason})",
                remedy="replace them, or set data.images=none to go without pictures",
                path=str(pictures),
            )
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in encoder.rejected[:_LISTED])
        more = f"; and {len(encoder.rejected) - _LISTED:,} more" if len(encoder.rejected) > _LISTED else ""
        notes.append(
            f"image: {len(encoder.rejected):,} of {found:,} pictures cannot be read and count as missing ({listed}{more})"
        )
    return Modality("image", matrix, mask, files.unknown), notes


def save_prepared(data: LinkData, folder: Path) -> None:
    """Write the shared form. The test split is left out on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"train": np.ascontiguousarray(data.graph.train), "valid": np.ascontiguousarray(data.graph.valid)}
    for modality in data.modalities:
        tensors[f"matrix.{modality.name}"] = np.ascontiguousarray(modality.matrix)
        tensors[f"mask.{modality.name}"] = np.ascontiguousarray(modality.mask)
    if data.structure is not None:
        tensors["structure"] = np.ascontiguousarray(data.structure)
    save_file(tensors, folder / "arrays.safetensors")
    described = {
        "entities": data.graph.entities.names,
        "relations": data.graph.relations.names,
        "source": data.graph.source,
        "notes": data.graph.notes,
        "data_notes": data.notes,
        "modalities": {modality.name: {"unknown": modality.unknown} for modality in data.modalities},
        "arrays_sha256": _sha256(folder / "arrays.safetensors"),
        "fingerprint": data.graph.fingerprint,
    }
    (folder / "vocabulary.json").write_text(json.dumps(described), encoding="utf-8")


def load_prepared(folder: Path | str) -> LinkData:
    """Read what `save_prepared` wrote.

    Raises:
        DataError: a part is missing or damaged, or the arrays do not belong to the vocabulary beside them.
    """
    folder = Path(folder)
    try:
        described: dict[str, Any] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "arrays.safetensors")
        found = _sha256(folder / "arrays.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged: {error}", remedy="prepare it again", path=str(folder)) from error
    if found != described["arrays_sha256"]:
        raise DataError(
            f"{folder} is damaged: arrays.safetensors {found[:12]} is not {described['arrays_sha256'][:12]}",
            remedy="prepare it again",
            path=str(folder),
        )
    graph = KnowledgeGraph(
        Vocabulary(tuple(described["entities"])), Vocabulary(tuple(described["relations"]), "relation"),
        arrays["train"], arrays["valid"], None, tuple(described["notes"]), described["source"],
    )
    if graph.fingerprint != described["fingerprint"]:
        raise DataError(
            f"{folder} is damaged: fingerprint {graph.fingerprint[:12]} is not {described['fingerprint'][:12]}",
            remedy="prepare it again",
        )
    modalities = tuple(
        Modality(name, arrays[f"matrix.{name}"], arrays[f"mask.{name}"], **facts)
        for name, facts in described["modalities"].items()
    )
    return LinkData(graph, modalities, tuple(described["data_notes"]), arrays.get("structure"))


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def without_modality(data: LinkData, name: str) -> LinkData:
    """The same data without one modality (for ablations)."""
    return replace(data, modalities=tuple(modality for modality in data.modalities if modality.name != name))
