"""`imf_core.prepare`, `read_graph`, `audit` and `encode`: from files, frames or lists to what a model trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from imf_core.config import Config, DataConfig
from imf_core.data.audit.report import AuditReport
from imf_core.data.features.feature_files import Features
from imf_core.data.formats.in_memory import is_in_memory, named_rows, read_triples, reading_of
from imf_core.data.formats.writers import Target, check_place, new_folder, write_splits
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.encode.registry import AUTO
from imf_core.errors import ConfigError, DataError
from imf_core.files.digest import sha256_of
from imf_core.prepare.encoding import encode_folder
from imf_core.prepare.link_data import GraphSource, LinkData
from imf_core.prepare.views import View

Settings = Config | Mapping[str, Any] | None  # a configuration, or settings by dotted name on top of the defaults


def prepare(
    data: Any, settings: Settings = None, *, valid: Any = None, test: Any = None,
    features: Mapping[str, Any] | None = None, progress: bool = False,
) -> LinkData:
    """Read a graph and make the features of its entities, for `train`.

    Examples:
        >>> import imf_core as imf
        >>> triples = [("Berlin", "capital of", "Germany"), ("Paris", "capital of", "France"), ("Paris", "in", "France")]
        >>> size = (["Berlin", "Paris"], [[3.8], [2.1]])
        >>> data = imf.prepare(triples, valid=[("Berlin", "in", "Germany")], features={"size": size})
        >>> print(data.summary(), *data.describe(), sep="; ")
        (in memory): 4 entities, 2 relations, 3 training and 1 validation triples; size: 2 of 4 entities (50.0 %), 1 wide

    Args:
        data: a graph folder or the name of a bundled data set; a `KnowledgeGraph`; a list of (head, relation, tail) names; or a
            pandas or polars frame with the columns `head`, `relation` and `tail`. A folder also brings texts, pictures and
            feature files, see docs/your-graph.md.
        settings: of these, `data.*` and `structure.*` apply: `{"data.text": "names"}`.
        valid, test: as `data`, where that is a list or a frame. Without `valid` a tenth of `data` is set aside.
        features: by modality, `(names, matrix)` with one row of the (K, f) matrix a name, or a vector by name. Entities without
            a row lack the modality.
        progress: show a bar while a structure table is trained.

    Raises:
        DataError: the data cannot be used; names file, line or row, value and remedy.
        ConfigError: an unknown setting, or one out of range.
    """
    config = configured(settings)
    source = open_source(data, config.data.absolute(), valid=valid, test=test, features=features)
    return source.prepare(config.structure, progress=progress)


def read_graph(data: Any, settings: Settings = None, *, valid: Any = None, test: Any = None) -> KnowledgeGraph:
    """Read a graph without features; its notes say what was mended.

    Examples:
        >>> import imf_core as imf
        >>> graph = imf.read_graph([("a", "next", "b"), ("b", "next", "c")], valid=[("a", "next", "c")])
        >>> graph.num_entities, graph.relations.names
        (3, ('next',))

    Args and errors: as `prepare`.
    """
    return open_source(data, configured(settings).data, valid=valid, test=test).graph()


def audit(
    data: Any, settings: Settings = None, *, valid: Any = None, test: Any = None, features: Mapping[str, Any] | None = None
) -> AuditReport:
    """Compare the splits of a graph, find what is wrong with them, and rank a baseline without training.

    It shows itself in a notebook; `.problems`, `.warnings`, `.lines()` and `.to_json()` have the parts.

    Examples:
        >>> import imf_core as imf
        >>> report = imf.audit([("a", "next", "b"), ("b", "next", "c")], valid=[("a", "next", "b")], test=[("a", "next", "c")])
        >>> print(report.problems[0].partition(":")[0])
        1 of 1 validation lines stand in train and 0 in test; 0 stand in neither

    Args and errors: as `prepare`; a `LinkData` will do as well.
    """
    if (ready := already_prepared(data)) is not None:
        return ready.audit()
    return open_source(data, configured(settings).data, valid=valid, test=test, features=features, look=True).audit()


def encode(
    data: str | Path, *, text: str = AUTO, image: str = AUTO, text_pooling: str = AUTO, out: str | Path | None = None,
    force: bool = False, say: Callable[[str], None] | None = None,
) -> dict[str, View]:
    """Turn the texts and pictures of a graph folder into feature files, which training uses where they are.

    What was extracted is kept by content: a second run is free, a killed one continues.

        views = imf_core.encode("mygraph", text="minilm", image="efficientnet-lite0")
        views["text"].modality.describe()

    Args:
        data: graph folder, or a bundled data set together with `out`.
        text: auto, none, ngrams, minilm, or a transformers model by folder or hub name.
        image: auto, none, bitmap, efficientnet-lite0, vgg16[:FILE], timm:NAME[:FILE], or a transformers model.
        text_pooling: auto, mean, cls or pooler: how a text model's tokens become one vector.
        out: folder of the feature files; None: `modalities` in the graph folder.
        force: replace feature files that no encoder of ours wrote.
        say: receives the lines that the command prints.

    Returns:
        What was built, by modality; `.rejected` lists pictures that cannot be read.

    Raises:
        DataError: nothing to encode, or a file that cannot be read, replaced or written.
        ConfigError: an unknown encoder.
    """
    return encode_folder(
        str(data), text=text, image=image, text_pooling=text_pooling, out=Path(out) if out is not None else None, force=force,
        say=say or (lambda line: None),
    )


def already_prepared(data: Any) -> LinkData | None:
    """The data itself if it comes from `prepare`, else None."""
    return data if hasattr(data, "graph") and hasattr(data, "modalities") else None


def configured(settings: Settings) -> Config:
    """A configuration; settings by dotted name are put on the defaults.

    Raises:
        ConfigError: an unknown setting, or one out of range.
    """
    if isinstance(settings, Config):
        return settings
    return Config().updated(settings or {}, source="settings")


def open_source(
    data: Any, config: DataConfig, *, valid: Any = None, test: Any = None, features: Mapping[str, Any] | None = None,
    look: bool = False,
) -> GraphSource:
    """The source of a graph, whatever it is given as; arguments and errors as of `prepare`.

    Args:
        look: read the lines of test too, for an audit.
    """
    given = {name: Features(*named_rows(rows)) for name, rows in sorted((features or {}).items())}
    if isinstance(data, KnowledgeGraph):
        if config.test_size or config.unseen != DataConfig().unseen:
            raise ConfigError(
                "data.test_size and data.unseen change a graph that is made already", remedy="give its triples instead",
                key="data.test_size",
            )
        source = GraphSource.in_memory(config, reading_of(data, test=look), features=given, given=data)
    elif is_in_memory(data):
        return GraphSource.in_memory(config, read_triples(data, valid, test), features=given)
    elif isinstance(data, str | Path):
        source = GraphSource.open(config.model_copy(update={"path": str(data)}), test=look, features=given)
    elif data is None:
        source = GraphSource.open(config, test=look, features=given)
    else:
        raise DataError(
            f"{type(data).__name__} is no graph", remedy="give a folder, a KnowledgeGraph, a frame or a list of triples"
        )
    if valid is not None or test is not None:
        raise DataError("valid and test belong to triples in memory", remedy="put valid.tsv and test.tsv into the folder")
    return source


def content_digest(data: LinkData) -> str:
    """SHA-256 of all that `write_folder` writes, of the user's test triples too."""
    features = [part for item in data.modalities for part in (item.name, item.matrix.tobytes(), item.mask.tobytes())]
    test = data.graph.open_test().tobytes() if data.has_test else b""
    return sha256_of([data.fingerprint, test, *features])


def write_folder(data: LinkData, folder: Path) -> Path:
    """Write a graph and its features as a graph folder, which every command reads.

    Args:
        data: its test split, if there is one, is written too. Texts and pictures are not in it, only their features.
        folder: must not exist, or be empty.

    Raises:
        DataError: the folder is taken or cannot be written, or a name that tab-separated lines cannot hold.
    """
    check_place(folder, None)
    graph = data.graph
    splits = {"train": graph.train, "valid": graph.valid, **({"test": graph.open_test()} if data.has_test else {})}
    with new_folder(folder) as scratch:
        write_splits(scratch, Target.TSV, graph.entities, graph.relations, splits)
        (scratch / "modalities").mkdir()
        for modality in data.modalities:
            modality.save(scratch / "modalities" / f"{modality.name}.safetensors", graph.entities.names)
    return folder
