"""The views of a graph's entities that are built from its folder: texts and pictures, read by the encoders of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imf_core.config import DataConfig
from imf_core.data.features.modality import Modality, modality_of
from imf_core.data.formats.layout import GraphFiles
from imf_core.data.graph.graph import Vocabulary
from imf_core.encode.base import usable_features
from imf_core.encode.image.pictures import FORMATS_READ, find_images
from imf_core.encode.registry import image_encoder, made, text_encoder
from imf_core.encode.store import Extracted, FeatureStore
from imf_core.encode.text.ngrams import readable
from imf_core.errors import DataError
from imf_core.parts.registry import named
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES, EntityFiles

_LISTED = 5  # damaged pictures named in a note


@dataclass(frozen=True)
class View:
    """A modality that was built, and what there is to know about it.

    Args:
        modality: None if there is nothing to build it from, or nothing usable.
        notes: what the user should know.
        hints: the part of the notes that the counts below do not tell.
        items: texts, or picture files of entities.
        blank: texts with nothing to read.
        unknown: names of texts or pictures that are no entity.
        several: entities with more than one picture.
        rejected: picture files that cannot be read, and why.
        extracted: with a pretrained encoder, the entry of the feature store.
        failure: why nothing is usable although there are items.
    """

    modality: Modality | None
    notes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    items: int = 0
    blank: int = 0
    unknown: int = 0
    several: int = 0
    rejected: tuple[tuple[Path, str], ...] = ()
    extracted: Extracted | None = None
    failure: DataError | None = None

    def usable(self) -> View:
        """The view itself.

        Raises:
            DataError: there are items, but nothing is usable.
        """
        if self.failure is not None:
            raise self.failure
        return self


def text_source(config: DataConfig, folder: Path) -> str:
    """What the texts are read from: `names`, `descriptions`, `literals`, or `none`."""
    if config.text == "auto":
        return "descriptions" if (folder / DESCRIPTIONS).exists() else "none"
    return config.text


def text_view(
    config: DataConfig, folder: Path, vocabulary: Vocabulary, files: EntityFiles | None = None, also: str | None = None
) -> View:
    """The modality `text`, or that of a further encoder of the texts.

    Args:
        config: where the texts are from, and their encoder.
        folder: graph folder.
        vocabulary: names of the entities, or of whatever has texts.
        files: the texts of the folder, if they may have been read already.
        also: the further encoder, by whose name its modality is called.

    Raises:
        DataError: a line that cannot be used, or no such encoder.
    """
    source = text_source(config, folder)
    if source == "none":
        return View(None)
    texts, unknown = _texts(source, files or EntityFiles(folder, GraphFiles.of(config, folder)), vocabulary)
    names = vocabulary.names
    read_by, called = also or config.text_encoder, also or "text"
    encoder = text_encoder(read_by, pooling=config.text_pooling, width=config.text_width, settings=config)
    described = [row for row, text in enumerate(texts) if text is not None]
    blank = sum(not (texts[row] or "").strip() for row in described)
    if len(described) == blank:
        path = folder / DESCRIPTIONS if source == "descriptions" else folder
        failure = DataError(
            f"{path} describes none of the {len(vocabulary):,} entities ({unknown:,} lines of unknown names)",
            remedy="write entity<TAB>text with the graph's names, or set data.text=names or data.text=none", path=str(path),
        )
        return View(None, items=len(described), blank=blank, unknown=unknown, failure=failure)
    if not hasattr(encoder, "encode_part"):
        matrix, mask = usable_features(encoder.encode(texts), len(texts), read_by)
        modality = Modality(called, matrix, mask, unknown, getattr(encoder, "name", read_by))
        return View(modality, items=len(described), blank=blank, unknown=unknown)
    extracted = FeatureStore().extract(encoder, [names[row] for row in described], [texts[row] or "" for row in described])
    counts = f"truncated {extracted.truncated:,} of {extracted.items:,}, blank {extracted.blank:,} of {extracted.items:,}"
    notes = (f"{called}: {counts}",) if extracted.truncated or extracted.blank else ()
    modality = _modality(called, extracted, names, unknown)
    return View(modality, notes, (), len(described), extracted.blank, unknown, extracted=extracted)


def _texts(source: str, files: EntityFiles, vocabulary: Vocabulary) -> tuple[list[str | None], int]:
    """A text for each of the N entities, None for one without a text; and the number of texts of unknown names."""
    if source == "names":
        return [readable(name) for name in vocabulary.names], 0
    if source == "literals":
        literals = files.literals
        return [literals.get(name) for name in vocabulary.names], len(literals.keys() - vocabulary.index.keys())
    texts: list[str | None] = [None] * len(vocabulary)
    unknown = 0
    for row in files.descriptions:
        if isinstance(row, DataError):
            raise row
        number, name, text = row
        position = vocabulary.index.get(name)
        if position is None:
            unknown += 1
        elif texts[position] is not None:
            raise DataError.at(
                files.folder / DESCRIPTIONS, number, "a second text for the entity", value=name, remedy="join the two lines"
            )
        else:
            texts[position] = text.replace("\t", " ")
    return texts, unknown


def image_view(config: DataConfig, folder: Path, vocabulary: Vocabulary) -> View:
    """The modality `image`, if there are pictures; several pictures of an entity are averaged.

    Raises:
        DataError: the folder cannot be listed, or no such encoder.
    """
    pictures = folder / IMAGES
    if config.images == "none" or not pictures.is_dir():
        return View(None)
    names = vocabulary.names
    files = find_images(pictures, names)
    hints: tuple[str, ...] = ()
    if files.others:
        hints = (f"files in {IMAGES}/ of a format that is not read: {files.others:,}; convert them to {FORMATS_READ}",)
    if not files.count:
        hint = (
            f"none of the {files.unknown:,} names of pictures in {IMAGES}/ is an entity: name them as the entities, in percent "
            "form where a name has a slash (AC%2FDC for AC/DC); ids of Freebase also in dotted form (m.02x for /m/02x)"
        )
        if not files.unknown:
            hint = f"there is no picture in {IMAGES}/ ({FORMATS_READ}, named as an entity)"
        hints = (hint, *hints)
        return View(None, tuple(f"image: {hint}" for hint in hints), hints, unknown=files.unknown)
    encoder = image_encoder(config.image_encoder, width=config.image_width, settings=config)
    extracted: Extracted | None = None
    modality: Modality | None = None
    if not hasattr(encoder, "encode_part"):
        matrix, mask = usable_features(encoder.encode(files.paths), len(files.paths), config.image_encoder)
        rejected = getattr(encoder, "rejected", [])
        if mask.any():
            modality = Modality("image", matrix, mask, files.unknown, getattr(encoder, "name", config.image_encoder))
    else:
        pictured = [row for row, paths in enumerate(files.paths) if paths]
        extracted = FeatureStore().extract(encoder, [names[row] for row in pictured], [files.paths[row] for row in pictured])
        index = vocabulary.index
        rejected = [(files.paths[index[name]][position], reason) for name, position, reason in extracted.rejected]
        if extracted.features.names:
            modality = _modality("image", extracted, names, files.unknown)
    failure = None
    if modality is None:
        path, reason = rejected[0]
        failure = DataError(
            f"{pictures}: none of the {files.count:,} pictures can be read (first: {path.name}: {reason})",
            remedy="replace them, or set data.images=none to go without pictures", path=str(pictures),
        )
    if files.several:
        hints = (*hints, f"entities with several pictures: {files.several:,}; the features are their mean")
    notes = [f"image: {hint}" for hint in hints]
    if rejected:
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in rejected[:_LISTED])
        more = f"; and {len(rejected) - _LISTED:,} more" if len(rejected) > _LISTED else ""
        notes.append(
            f"image: {len(rejected):,} of {files.count:,} pictures cannot be read and count as missing ({listed}{more})"
        )
    return View(
        modality, tuple(notes), hints, files.count, unknown=files.unknown, several=files.several, rejected=tuple(rejected),
        extracted=extracted, failure=failure,
    )


def other_view(name: str, config: DataConfig, folder: Path, vocabulary: Vocabulary) -> View:
    """A modality that an encoder of one's own makes from whatever it finds in the graph folder.

    Raises:
        DataError: it returns something else than features and a mask.
    """
    encoder = made(named("encoder", name), config)
    matrix, mask = usable_features(encoder.encode(folder, vocabulary.names), len(vocabulary), name)
    if not mask.any():
        return View(None, (f"{name}: the encoder made features of none of the {len(vocabulary):,} entities",))
    return View(Modality(name, matrix, mask, 0, name))


def _modality(name: str, extracted: Extracted, entities: Sequence[str], unknown: int) -> Modality:
    return replace(modality_of(name, extracted.features, entities), unknown=unknown)
