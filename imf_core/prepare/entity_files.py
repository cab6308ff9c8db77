"""What lies beside the triples in a graph's folder and describes its entities: texts and ready-made features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from imf_core.data.features.feature_files import Features, feature_files, read_features
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.formats.ntriples import literal_texts
from imf_core.errors import DataError
from imf_core.files.lines import read_lines

DESCRIPTIONS, IMAGES = "descriptions.tsv", "images"
Description = tuple[int, str, str]  # line number, entity, text


class EntityFiles:
    """The texts and features of a graph's entities. Each file is read when it is first asked for, and only then.

    Args:
        folder: graph folder.
        files: the graph's triples, whose literals may serve as texts.
        train_literals: `Part.texts` of the training file, if it has been read already.
        given: features by modality that are in memory; they go before files of the same modality.
    """

    def __init__(
        self, folder: Path, files: GraphFiles | None = None, train_literals: Mapping[str, Sequence[str]] | None = None,
        given: Mapping[str, Features] | None = None,
    ) -> None:
        self.folder, self.files, self.train_literals = folder, files or GraphFiles(folder), train_literals
        self.given = given or {}

    @cached_property
    def descriptions(self) -> tuple[Description | DataError, ...]:
        """`descriptions.tsv` line by line; a line, or the file, that cannot be used is an error in its place."""
        try:
            return tuple(_parsed(self.folder / DESCRIPTIONS))
        except DataError as error:
            return (error,)

    @property
    def texts(self) -> dict[str, str]:
        """The usable lines of `descriptions.tsv` by entity; empty without such a file."""
        return {row[1]: row[2] for row in self.descriptions if not isinstance(row, DataError)}

    @cached_property
    def features(self) -> dict[str, Features | DataError]:
        """The feature files by modality; one that cannot be used is an error in its place."""
        read = {name: _features(path) for name, path in feature_files(self.folder).items() if name not in self.given}
        return {**read, **self.given}

    @cached_property
    def literals(self) -> dict[str, str]:
        """See `literal_texts`."""
        return literal_texts(self.files, self.train_literals)


def usable(features: Features | DataError) -> Features:
    """The features.

    Raises:
        DataError: the file cannot be used.
    """
    if isinstance(features, DataError):
        raise features
    return features


def origin(name: str, features: object, source: str) -> str:
    """A note on a modality whose features are read from a file although their source is there too.

    Args:
        name: of the modality.
        features: of the file; `Features` know who wrote them.
        source: the texts or pictures from which they could be made.
    """
    encoder = features.facts.get("encoder") if isinstance(features, Features) else None
    if encoder is not None:
        return f"{name}: features that `imf encode` made from {source} with {encoder} (run it again after a change there)"
    return f"{name}: ready-made features are used, not {source}"


def _parsed(path: Path) -> Iterator[Description | DataError]:
    for number, line in read_lines(path):
        name, separator, text = line.partition("\t")
        if separator:
            yield number, name, text
        else:
            yield DataError.at(
                path, number, "no tab between entity and text", value=line[:80], remedy="write entity<TAB>text"
            )


def _features(path: Path) -> Features | DataError:
    try:
        return read_features(path)
    except DataError as error:
        return error
