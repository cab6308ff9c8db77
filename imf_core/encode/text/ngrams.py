"""Texts -> vectors without any pretrained model: character n-grams, weighted by TF-IDF, reduced by a truncated SVD."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import numpy as np

from imf_core.encode.base import spread

_URL = re.compile(r"^<?[A-Za-z][A-Za-z0-9+.-]*://(?P<path>[^>]*)>?$")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
# All that joins words in identifiers; hyphens, apostrophes, dots, and the signs of C++ and C#, belong to the words.
_JOINTS = re.compile(r"[\s_/:<>()\[\]{}\"|=&?;]+")


class NgramTextEncoder:
    """Latent semantic analysis of character n-grams: texts that share parts of words lie close to each other.

    Args:
        width: f, number of features; fewer if there are fewer texts.
        seed: of the randomised SVD.
        max_features: the most frequent n-grams are kept.
        max_chars: a longer text is cut, which bounds memory on graphs with whole articles.
    """

    name = "char-ngrams"

    def __init__(self, width: int = 128, seed: int = 0, *, max_features: int = 30_000, max_chars: int = 1_000) -> None:
        self.width, self.seed, self.max_features, self.max_chars = width, seed, max_features, max_chars

    def encode(self, items: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts; None and blank texts are missing.

        Args:
            items: n texts.

        Returns:
            Features (n, f) float32, rows of length sqrt(f), so that a feature has mean square 1; presence mask (n,) bool.
        """
        texts = [item[: self.max_chars] for item in items if item is not None and item.strip()]
        mask = np.array([item is not None and bool(item.strip()) for item in items], dtype=bool)
        if not texts:
            return np.zeros((len(items), 0), dtype=np.float32), mask
        # Here: they take a second to load, and a trial reads features that are ready.
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        counts = TfidfVectorizer(
            analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=self.max_features, dtype=np.float64
        ).fit_transform(texts)
        width = min(self.width, *counts.shape)
        left, singular, _ = randomized_svd(counts, n_components=width, n_iter=5, random_state=self.seed)
        vectors = left * singular
        # Length says how common a text's n-grams are, not what it is about; sqrt(f) gives the features unit scale.
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12) * np.sqrt(width)
        return spread(vectors, mask), mask


def readable(name: str) -> str:
    """Words from an identifier: `Gilles_Mbang_Ondo`, `<http://dbpedia.org/resource/Foo_Bar>` -> `Foo Bar`.

    Of a web address only the last part describes the entity. A name of punctuation alone is returned unchanged.
    """
    address = _URL.match(name.strip())
    text = name
    if address:
        parts = [part for part in re.split(r"[/#]", address["path"]) if part]
        text = parts[-1] if parts else address["path"]
    if _PERCENT.search(text):
        text = unquote(text, errors="surrogateescape")
    return _JOINTS.sub(" ", text).strip() or name
