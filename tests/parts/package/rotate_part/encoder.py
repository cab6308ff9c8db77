"""Texts as counts of hashed words."""

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field

import imf_core


class HashSettings(imf_core.Section):
    """Settings of the word hashes."""

    width: int = Field(32, ge=2, le=4096, description="number of features")


@imf_core.text_encoder("hashes", settings=HashSettings)
class WordHashes:
    """Counts of words, each at the place that its hash names."""

    name = "hashes"

    def __init__(self, settings: HashSettings) -> None:
        self.width = settings.width

    def encode(self, items: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(items), self.width), dtype=np.float32)
        for row, text in enumerate(items):
            for word in (text or "").split():
                matrix[row, int(hashlib.sha256(word.lower().encode()).hexdigest(), 16) % self.width] += 1
        return matrix, np.array([bool(text and text.strip()) for text in items])
