"""From `DataConfig` to everything a training run reads, and its form on disk that all trials share.

The prepared folder holds vocabularies, training and validation triples and the features: **not** the test split, so that no
trial can read it even by mistake. Arrays are memory-mapped by safetensors and treated as read-only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from imf_core.config import DataConfig
from imf_core.data.bundled import BUNDLED, bundled_path
from imf_core.data.graph import KnowledgeGraph, Vocabulary
from imf_core.data.modality import Modality, load_modality
from imf_core.data.readers import read_graph, read_lines
from imf_core.encode.image import BitmapImageEncoder, find_images
from imf_core.encode.text import NgramTextEncoder, readable
from imf_core.errors import DataError


@dataclass(frozen=True)
class LinkData:
    """A graph and the modalities of its entities, in the order in which the model uses them."""

    graph: KnowledgeGraph
    modalities: tuple[Modality, ...]

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


def prepare(config: DataConfig) -> LinkData:
    """Read the graph and build its modalities.

    Looks in the graph folder for `descriptions.tsv` (entity<TAB>text), `images/<entity>.png` and `modalities/*`.

    Raises:
        DataError: the graph or a feature file cannot be used.
    """
    folder = resolve(config.path)
    graph = read_graph(folder)
    modalities: list[Modality] = []
    text = _text_modality(config, folder, graph)
    image = _image_modality(config, folder, graph)
    modalities += [modality for modality in (image, text) if modality is not None]
    for path in sorted((folder / "modalities").glob("*")) if (folder / "modalities").is_dir() else []:
        if path.name.endswith(".names.txt"):
            continue
        loaded = load_modality(path, graph.entities.names)
        modalities = [modality for modality in modalities if modality.name != loaded.name] + [loaded]
    return LinkData(graph, tuple(modalities))


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
    return Modality("text", matrix, mask, unknown)


def _image_modality(config: DataConfig, folder: Path, graph: KnowledgeGraph) -> Modality | None:
    if config.images == "none" or not (folder / "images").is_dir():
        return None
    files = find_images(folder / "images", graph.entities.names)
    if not any(path is not None for path in files.paths):
        return None
    matrix, mask = BitmapImageEncoder(width=config.image_width).encode(files.paths)
    return Modality("image", matrix, mask, files.unknown)


def save_prepared(data: LinkData, folder: Path) -> None:
    """Write the shared form. The test split is left out on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"train": np.ascontiguousarray(data.graph.train), "valid": np.ascontiguousarray(data.graph.valid)}
    for modality in data.modalities:
        tensors[f"matrix.{modality.name}"] = np.ascontiguousarray(modality.matrix)
        tensors[f"mask.{modality.name}"] = np.ascontiguousarray(modality.mask)
    save_file(tensors, folder / "arrays.safetensors")
    described = {
        "entities": data.graph.entities.names,
        "relations": data.graph.relations.names,
        "source": data.graph.source,
        "notes": data.graph.notes,
        "modalities": [modality.name for modality in data.modalities],
        "fingerprint": data.graph.fingerprint,
    }
    (folder / "vocabulary.json").write_text(json.dumps(described), encoding="utf-8")


def load_prepared(folder: Path | str) -> LinkData:
    """Read what `save_prepared` wrote.

    Raises:
        DataError: the arrays do not belong to the vocabulary beside them.
    """
    folder = Path(folder)
    described = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    arrays = load_file(folder / "arrays.safetensors")
    graph = KnowledgeGraph(
        Vocabulary(tuple(described["entities"])), Vocabulary(tuple(described["relations"]), "relation"),
        arrays["train"], arrays["valid"], None, tuple(described["notes"]), described["source"],
    )
    if graph.fingerprint != described["fingerprint"]:
        raise DataError(
            f"{folder} is damaged: fingerprint {graph.fingerprint[:12]} is not {described['fingerprint'][:12]}",
            remedy="prepare it again",
        )
    modalities = tuple(Modality(name, arrays[f"matrix.{name}"], arrays[f"mask.{name}"]) for name in described["modalities"])
    return LinkData(graph, modalities)


def without_modality(data: LinkData, name: str) -> LinkData:
    """The same data without one modality (for ablations)."""
    return replace(data, modalities=tuple(modality for modality in data.modalities if modality.name != name))
