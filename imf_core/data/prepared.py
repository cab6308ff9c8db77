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
from safetensors.numpy import save_file
from safetensors.torch import load_file

from imf_core.config import DataConfig, StructureConfig
from imf_core.data.bundled import BUNDLED, bundled_path
from imf_core.data.features import feature_files
from imf_core.data.files import GraphFiles
from imf_core.data.graph import KnowledgeGraph, Vocabulary
from imf_core.data.modality import Modality, load_modality
from imf_core.data.readers import read_graph
from imf_core.data.views import DESCRIPTIONS, IMAGES, image_view, text_view
from imf_core.encode.structure_table import structure_table
from imf_core.errors import DataError

_VIEWS = {"image": (image_view, IMAGES), "text": (text_view, DESCRIPTIONS)}  # in the order of the branches


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

    Looks in the graph folder for `descriptions.tsv` (entity<TAB>text), `images/<entity>.png` and `modalities/*`. Features that
    are there ready-made, as `modalities/text.safetensors`, go before a view that would be built; a view of a pretrained encoder
    is extracted once and kept in the feature store.

    Args:
        config: where the graph is and which views are built.
        structure: what the structure branch starts from; None: random values.
        progress: show a bar while a structure table is trained.

    Raises:
        DataError: the graph or a feature file cannot be used.
    """
    folder = resolve(config.path)
    graph = graph_of(config)
    ready = feature_files(folder)
    modalities: list[Modality] = []
    notes: list[str] = []
    for name, (build, source) in _VIEWS.items():
        if name in ready:
            modalities.append(load_modality(ready.pop(name), graph.entities.names))
            if (folder / source).exists():
                notes.append(f"{name}: ready-made features are used, not {source}")
            continue
        view = build(config, folder, graph).usable()
        notes += view.notes
        modalities += [view.modality] if view.modality is not None else []
    modalities += [load_modality(path, graph.entities.names) for path in ready.values()]
    table, said = structure_table(graph, structure or StructureConfig(), progress=progress)
    return LinkData(graph, tuple(modalities), (*notes, *said), table)


def graph_of(config: DataConfig) -> KnowledgeGraph:
    """The graph of the settings, without any features.

    Raises:
        DataError: it cannot be used.
    """
    return read_graph(GraphFiles.of(config, resolve(config.path)), unseen=config.unseen)


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


def save_prepared(data: LinkData, folder: Path) -> None:
    """Write the shared form: features standardised, so that no trial needs a copy. The test split is left out on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"train": np.ascontiguousarray(data.graph.train), "valid": np.ascontiguousarray(data.graph.valid)}
    for modality in data.modalities:
        tensors[f"matrix.{modality.name}"] = np.ascontiguousarray(modality.standardised())
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
        "modalities": {
            modality.name: {"unknown": modality.unknown, "encoder": modality.encoder, "standard": True}
            for modality in data.modalities
        },
        "arrays_sha256": sha256_of(folder / "arrays.safetensors"),
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
        # The flavour for torch maps the file: all processes share its pages. The one for NumPy would copy it.
        arrays = {name: tensor.numpy() for name, tensor in load_file(folder / "arrays.safetensors").items()}
        found = sha256_of(folder / "arrays.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is damaged: {error}", remedy="prepare it again", path=str(folder)) from error
    if found != described["arrays_sha256"]:
        raise DataError(
            f"{folder} is damaged: arrays.safetensors {found[:12]} is not {described['arrays_sha256'][:12]}",
            remedy="prepare it again",
            path=str(folder),
        )
    for name, array in arrays.items():
        if name not in ("train", "valid"):
            array.flags.writeable = False  # features are shared by all trials and written by none
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


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def without_modality(data: LinkData, name: str) -> LinkData:
    """The same data without one modality (for ablations)."""
    return replace(data, modalities=tuple(modality for modality in data.modalities if modality.name != name))
