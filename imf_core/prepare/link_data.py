"""From `DataConfig` to everything a training run reads, and its form on disk that all trials share.

The prepared folder holds vocabularies, training and validation triples and the features: **not** the test split, so that no
trial can read it even by mistake. Arrays are memory-mapped by safetensors and treated as read-only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from imf_core.config import DataConfig, StructureConfig
from imf_core.data.bundled.unicode import BUNDLED, bundled_path
from imf_core.data.features.feature_files import feature_files
from imf_core.data.features.modality import Modality, load_modality
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.readers import read_graph
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.encode.structure.table import structure_table
from imf_core.errors import DataError
from imf_core.prepare.shared_form import check_fingerprint, load_shared, named, save_shared
from imf_core.prepare.views import DESCRIPTIONS, IMAGES, image_view, text_view

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

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what a study is tied to."""
        return self.graph.fingerprint

    @property
    def has_test(self) -> bool:
        """Whether there is a test split to open."""
        return self.graph.test_reader is not None

    @property
    def nbytes(self) -> int:
        """Size of the arrays that all trials share, in bytes."""
        return self.graph.train.nbytes + self.graph.valid.nbytes + sum(modality.matrix.nbytes for modality in self.modalities)

    def summary(self) -> str:
        """One line for the terminal: where it is from and how large it is."""
        return self.graph.describe()

    def describe(self, names: tuple[str, ...] | None = None) -> list[str]:
        """What the user should know before training: notes on the graph, each modality's coverage, notes on the features."""
        return [*self.graph.notes, *(modality.describe() for modality in self.select(names)), *self.notes]

    def select(self, names: tuple[str, ...] | None) -> tuple[Modality, ...]:
        """The named modalities (None: all).

        Raises:
            DataError: a name that the data does not have.
        """
        return named(self.modalities, names)


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
    graph = data.graph
    arrays = {"train": graph.train, "valid": graph.valid}
    if data.structure is not None:
        arrays["structure"] = data.structure
    save_shared(folder, arrays, data.modalities, {
        "entities": graph.entities.names, "relations": graph.relations.names, "source": graph.source, "notes": graph.notes,
        "data_notes": data.notes, "fingerprint": graph.fingerprint,
    })


def load_prepared(folder: Path | str) -> LinkData:
    """Read what `save_prepared` wrote.

    Raises:
        DataError: a part is missing or damaged, or the arrays do not belong to the vocabulary beside them.
    """
    folder = Path(folder)
    facts, arrays, modalities = load_shared(folder)
    graph = KnowledgeGraph(
        Vocabulary(tuple(facts["entities"])), Vocabulary(tuple(facts["relations"]), "relation"),
        arrays["train"], arrays["valid"], None, tuple(facts["notes"]), facts["source"],
    )
    check_fingerprint(folder, graph.fingerprint, facts)
    return LinkData(graph, modalities, tuple(facts["data_notes"]), arrays.get("structure"))


def without_modality(data: LinkData, name: str) -> LinkData:
    """The same data without one modality (for ablations)."""
    return replace(data, modalities=tuple(modality for modality in data.modalities if modality.name != name))
