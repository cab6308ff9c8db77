"""The contracts of encoders: of texts, of pictures, of whatever else lies in a graph folder.

Shapes: `n` items, `N` entities, `f` features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from imf_core.config import Config, DataConfig
from imf_core.data.graph.graph import Vocabulary
from imf_core.encode.base import usable_features
from imf_core.encode.registry import image_encoder, made, text_encoder
from imf_core.prepare.entity_files import DESCRIPTIONS, IMAGES
from imf_core.prepare.views import View, image_view, other_view, text_view
from imf_core.testing.base import PartContract

NAMES = tuple(f"entity {row}" for row in range(12))
VOCABULARY = Vocabulary(NAMES)


class EncoderContract(PartContract):
    """An encoder of one's own: features and a mask, the same each time. `prepare` writes what it reads."""

    kind = "encoder"
    chosen_by: ClassVar[str] = "data.encoders"

    def prepare(self, folder: Path) -> None:
        """Write into the graph folder what the encoder reads, for some of the entities `NAMES`."""

    def data(self, folder: Path) -> DataConfig:
        """Settings that choose the encoder for a folder."""
        value: Any = [self.name] if self.kind == "encoder" else self.name
        return Config().updated({"data.path": str(folder), self.chosen_by: value, **self.settings}).data

    def encoded(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, f) and mask (n,)."""
        encoder = made(self.part, self.data(folder))
        return usable_features(encoder.encode(folder, NAMES), len(NAMES), self.name)

    def view(self, folder: Path) -> View:
        """The modality, as a training gets it."""
        return other_view(self.name, self.data(folder), folder, VOCABULARY)

    def test_it_makes_features_of_some_entities(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        matrix, mask = self.encoded(tmp_path)
        assert matrix.shape[1] > 0 and mask.any(), "it encodes none of the items"
        assert matrix[mask].std(axis=0).max() > 0, "all items have the same features"

    def test_it_makes_the_same_features_again(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        for first, second in zip(self.encoded(tmp_path), self.encoded(tmp_path), strict=True):
            np.testing.assert_array_equal(first, second)

    def test_a_training_gets_its_modality(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        modality = self.view(tmp_path).usable().modality
        assert modality is not None and modality.matrix.dtype == np.float32 and len(modality.mask) == len(NAMES)


class TextEncoderContract(EncoderContract):
    """An encoder of texts: None and blank texts are missing, and other texts do not take their places."""

    kind, chosen_by = "text_encoder", "data.text_encoder"
    texts: ClassVar[Sequence[str | None]] = (
        *(f"a {word} thing of {word}s" for word in ("red", "green", "blue", "yellow", "white", "black", "brown", "grey")),
        None, "", "  ", "été, naïve, 中文, and 100 words" + " more" * 100,
    )

    def prepare(self, folder: Path) -> None:
        lines = (f"{name}\t{text}\n" for name, text in zip(NAMES, self.texts, strict=True) if text)
        (folder / DESCRIPTIONS).write_text("".join(lines), encoding="utf-8")

    def encoded(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        return _encoded(text_encoder(self.name, settings=self.data(folder)), list(self.texts), self.name)

    def view(self, folder: Path) -> View:
        return text_view(self.data(folder), folder, VOCABULARY)

    def test_items_with_nothing_to_read_are_missing(self, tmp_path: Path) -> None:
        _, mask = self.encoded(tmp_path)
        assert mask.tolist() == [bool(text and text.strip()) for text in self.texts]


class ImageEncoderContract(EncoderContract):
    """An encoder of pictures: unreadable files are missing, not the end of it."""

    kind, chosen_by = "image_encoder", "data.image_encoder"

    def prepare(self, folder: Path) -> None:
        (folder / IMAGES).mkdir()
        rng = np.random.default_rng(0)
        for name in NAMES[:8]:
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / IMAGES / f"{name}.png")
        (folder / IMAGES / f"{NAMES[8]}.png").write_bytes(b"no picture")

    def encoded(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        files = [folder / IMAGES / f"{name}.png" for name in NAMES]
        items = [(path,) if path.exists() else () for path in files]
        return _encoded(image_encoder(self.name, settings=self.data(folder)), items, self.name)

    def view(self, folder: Path) -> View:
        return image_view(self.data(folder), folder, VOCABULARY)

    def test_files_that_cannot_be_read_are_missing(self, tmp_path: Path) -> None:
        self.prepare(tmp_path)
        _, mask = self.encoded(tmp_path)
        assert mask.tolist() == [True] * 8 + [False] * 4


def _encoded(encoder: Any, items: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and mask, by an encoder of either sort."""
    if not hasattr(encoder, "encode_part"):
        return usable_features(encoder.encode(items), len(items), name)
    there = [row for row, item in enumerate(items) if item]
    assert len({encoder.digest(items[row]) for row in there}) == len({str(items[row]) for row in there}), "digests collide"
    part = encoder.encode_part([items[row] for row in there], lambda count: None)
    mask = np.zeros(len(items), dtype=bool)
    mask[there] = part.present
    matrix = np.zeros((len(items), part.vectors.shape[1]), dtype=np.float32)
    matrix[mask] = part.vectors
    return usable_features((matrix, mask), len(items), name)
