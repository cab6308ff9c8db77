"""From `DataConfig` to everything a training run reads, and its form on disk that all trials share.

The prepared folder holds vocabularies, training and validation triples and the features: **not** the test split, so that no
trial can read it even by mistake. Arrays are memory-mapped by safetensors and treated as read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from imf_core.config import Config, DataConfig, StructureConfig
from imf_core.data.audit.audit import audit
from imf_core.data.audit.report import AuditReport, Coverage
from imf_core.data.bundled.unicode import BUNDLED, bundled_path
from imf_core.data.features.feature_files import Features
from imf_core.data.features.modality import Modality, modality_of
from imf_core.data.formats.in_memory import IN_MEMORY, reading_of
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.readers import GraphReading, read_files
from imf_core.data.graph.graph import KnowledgeGraph, RawGraph, Vocabulary
from imf_core.encode.structure.table import structure_table
from imf_core.errors import DataError
from imf_core.prepare.coverage import coverage
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES, EntityFiles, origin, usable
from imf_core.prepare.shared_form import check_fingerprint, load_shared, named, save_shared
from imf_core.prepare.views import View, image_view, other_view, text_view


@dataclass(frozen=True)
class LinkData:
    """A graph and the modalities of its entities, in the order in which the model uses them.

    Args:
        graph: triples and vocabularies.
        modalities: features of the entities.
        notes: what the user should know about the features (damaged pictures, replaced views, ...).
        structure: (N, w) float32, what the structure branch starts from, a row of NaN where it starts at random; None: all do.
        config: the settings of `data` and `structure` that it was prepared by; None: it was made by other means.
    """

    graph: KnowledgeGraph
    modalities: tuple[Modality, ...]
    notes: tuple[str, ...] = ()
    structure: np.ndarray | None = None
    config: Config | None = None

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

    def audit(self) -> AuditReport:
        """Compare the splits, test included, find what is wrong, and rank a baseline without training.

        The lines of a folder are read again, since train here is without repeats.
        """
        if self.config is not None and self.config.data.path != IN_MEMORY:
            return GraphSource.open(self.config.data, test=True).audit()
        there = tuple(
            Coverage(modality.name, int(modality.mask.sum()), len(modality.mask), unknown=modality.unknown)
            for modality in self.modalities
        )
        return audit(reading_of(self.graph, test=True).raw, coverage=there)


@dataclass(frozen=True)
class GraphSource:
    """The files of a graph, each read and parsed once, for the audit and for training alike.

    Args:
        config: where the graph is and which views are built.
        folder: graph folder.
        reading: the lines of the graph.
        files: what lies beside them; read when it is first asked for.
        given: a graph that is in memory, to be used as it is; None: it is made from the lines.
    """

    config: DataConfig
    folder: Path
    reading: GraphReading
    files: EntityFiles
    given: KnowledgeGraph | None = None

    @classmethod
    def open(cls, config: DataConfig, *, test: bool, features: Mapping[str, Features] | None = None) -> GraphSource:
        """Read the triples of a graph.

        Args:
            config: where the graph is.
            test: read the lines of the test split too, for an audit. They stay in memory for `KnowledgeGraph.open_test`.
            features: by modality, besides those in the folder.

        Raises:
            DataError: no known layout, or a line that cannot be used.
        """
        folder = resolve(config.path)
        files = GraphFiles.of(config, folder)
        keep_literals = config.text == "literals"
        reading = read_files(GraphFiles.at(files), test=test, keep_literals=keep_literals)
        if config.test_size:
            reading = reading.with_test(config.test_size, keep=test)
        train_literals = reading.texts if keep_literals and files.splits["train"].format == "ntriples" else None
        return cls(config, folder, reading, EntityFiles(folder, files, train_literals, features))

    @classmethod
    def in_memory(
        cls, config: DataConfig, reading: GraphReading, *, features: Mapping[str, Features] | None = None,
        given: KnowledgeGraph | None = None,
    ) -> GraphSource:
        """A graph without a folder: of its settings `unseen`, `test_size` and a text view of names apply.

        Args:
            config: settings.
            reading: its lines.
            features: by modality.
            given: see above.
        """
        folder = Path(IN_MEMORY)
        if config.test_size:
            reading = reading.with_test(config.test_size, keep=False)
        config = config.model_copy(update={"path": IN_MEMORY, "train": None, "valid": None, "test": None})
        return cls(config, folder, reading, EntityFiles(folder, given=features), given)

    def audit(self) -> AuditReport:
        """The audit of all lines that were read; see `imf_core.data.audit.audit.audit`."""
        return audited(self.raw, self.files)

    @property
    def raw(self) -> RawGraph:
        """The lines of the graph, for an audit."""
        return self.reading.raw

    def coverage(self) -> tuple[Coverage, ...]:
        """Which entities have which modality; see `coverage`."""
        return coverage(self.files, self.raw.entities.names)

    def graph(self) -> KnowledgeGraph:
        """The graph to train on, the same object each time; it raises what `read_graph` raises."""
        return self._graph

    @cached_property
    def _graph(self) -> KnowledgeGraph:
        return self.given or self.reading.mended(self.config.unseen)

    def prepare(self, structure: StructureConfig | None = None, *, progress: bool = False) -> LinkData:
        """Build the modalities of the graph.

        Looks in the graph folder for `descriptions.tsv` (entity<TAB>text), `images/<entity>.png` and `modalities/*`.
        Ready-made features, such as `modalities/text.safetensors`, replace a view that would be built; a view of a pretrained
        encoder is extracted once and kept in the feature store.

        Args:
            structure: what the structure branch starts from; None: random values.
            progress: show a bar while a structure table is trained.

        Raises:
            DataError: the graph or a feature file cannot be used.
        """
        graph = self.graph()
        names = graph.entities.names
        views: dict[str, tuple[Callable[..., View], str]] = {  # in the order of the branches
            "image": (image_view, IMAGES), "text": (partial(text_view, files=self.files), DESCRIPTIONS),
        }
        ready = dict(self.files.features)
        modalities: list[Modality] = []
        notes: list[str] = []
        for name, (build, source) in views.items():
            if name in ready:
                features = usable(ready.pop(name))
                modalities.append(modality_of(name, features, names))
                if (self.folder / source).exists():
                    notes.append(origin(name, features, source))
                continue
            view = build(self.config, self.folder, graph.entities).usable()
            notes += view.notes
            modalities += [view.modality] if view.modality is not None else []
        further: dict[str, Callable[..., View]] = {
            **{name: partial(text_view, files=self.files, also=name) for name in self.config.more_text_encoders},
            **{name: partial(other_view, name) for name in self.config.encoders},
        }
        for name, make in further.items():
            if name not in ready:
                view = make(self.config, self.folder, graph.entities).usable()
                notes += view.notes
                modalities += [view.modality] if view.modality is not None else []
        modalities += [modality_of(name, usable(features), names) for name, features in ready.items()]
        table, table_notes = structure_table(graph, structure or StructureConfig(), progress=progress)
        config = Config(data=self.config, structure=structure or StructureConfig())
        return LinkData(graph, tuple(modalities), (*notes, *table_notes), table, config)


def audited(raw: RawGraph, files: EntityFiles | None) -> AuditReport:
    """The audit of a graph.

    Args:
        raw: all lines of all splits, test included.
        files: what describes its entities; None: nothing does.
    """
    return audit(
        raw, coverage=coverage(files, raw.entities.names) if files is not None else (),
        texts=files.texts if files is not None else None,
    )


def prepare(config: DataConfig, structure: StructureConfig | None = None, *, progress: bool = False) -> LinkData:
    """Read a graph and build its modalities; see `GraphSource.prepare`."""
    return GraphSource.open(config, test=False).prepare(structure, progress=progress)


def graph_of(config: DataConfig) -> KnowledgeGraph:
    """The graph of the settings, without any features.

    Raises:
        DataError: it cannot be used.
    """
    return GraphSource.open(config, test=False).graph()


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
        "data_notes": data.notes, "fingerprint": graph.fingerprint, "made": graph.made,
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
        arrays["train"], arrays["valid"], None, tuple(facts["notes"]), facts["source"], facts["made"],
    )
    check_fingerprint(folder, graph.fingerprint, facts)
    return LinkData(graph, modalities, tuple(facts["data_notes"]), arrays.get("structure"))
