"""Texts -> vectors without any pretrained model: which words a text begins with, which come next, and which follow.

What a text begins with says what the thing is called, the rest what it is, the next words first of all. Kept apart, the name of
one thing can be found in the description of another: a definition names what it defines a kind of. `model.heads=[{view: words,
scoring: similarity, parts: 3, only: true}]` makes a branch of that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np

from imf_core.encode.base import spread

_WORD = re.compile(r"\w+")
_END = re.compile(r"[,;:.()\[\]\"]| - ")
_LONGEST = 5  # words of a name
_NEXT = 4  # words after it: a definition begins with what the thing is a kind of
PARTS = 3
_KEPT = 6  # letters of a word: what follows are mostly endings


class WordsTextEncoder:
    """Words weighted by TF-IDF and projected by random signs: the dot product of two texts is the cosine of their bags of
    words, but for noise of sqrt(3 / f) (Achlioptas, PODS 2001).

    Args:
        width: f; a third each is of the name, of the four words after it, and of what follows. With fewer words than f / 3, the
            width is three times their number, and nothing is projected.
        seed: of the projection.
        max_features: the most frequent words are kept.
        max_chars: a longer text is cut.
    """

    name = "words"

    def __init__(self, width: int = 1536, seed: int = 0, *, max_features: int = 100_000, max_chars: int = 1_000) -> None:
        self.width, self.seed, self.max_features, self.max_chars = width, seed, max_features, max_chars

    def encode(self, items: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode texts; None and texts without a word are missing.

        Args:
            items: n texts.

        Returns:
            Features (n, f) float32, each third of a row of about unit length, or zero without words; presence mask (n,) bool.
        """
        texts = [(item or "")[: self.max_chars] for item in items]
        mask = np.array([_WORD.search(text) is not None for text in texts], dtype=bool)
        if not mask.any():
            return np.zeros((len(items), 0), dtype=np.float32), mask
        # Here: they take a second to load, and a trial reads features that are ready.
        from sklearn.feature_extraction.text import TfidfVectorizer

        parts = [part for text, present in zip(texts, mask, strict=True) if present for part in parted(text)]
        weigh = TfidfVectorizer(analyzer=words_of, sublinear_tf=True, max_features=self.max_features, dtype=np.float32)
        counts, wide = weigh.fit_transform(parts), self.width // PARTS
        if counts.shape[1] <= wide:
            vectors = counts.toarray()
        else:  # every word has unit length; in scikit-learn's sparse projection a single word may have half of that, or twice
            signs = np.random.default_rng(self.seed).integers(0, 2, (counts.shape[1], wide), dtype=np.int8)
            vectors = counts @ ((2 * signs.astype(np.float32) - 1) / np.sqrt(wide))
        return spread(np.asarray(vectors).reshape(int(mask.sum()), -1), mask), mask


def parted(text: str) -> tuple[str, str, str]:
    """What a text begins with, up to the first sign or five words; the next four words; the rest."""
    found = _END.search(text)
    end = _after(text, 0, _LONGEST, found.start() if found else len(text))
    then = _after(text, end, _NEXT, len(text))
    return text[:end], text[end:then], text[then:]


def _after(text: str, start: int, count: int, end: int) -> int:
    """Where the word after `count` words begins; `end` if there is none before it."""
    return next((match.start() for match in islice(_WORD.finditer(text, start, end), count, None)), end)


def words_of(text: str) -> list[str]:
    """Its words in lower case, without their endings."""
    return [word[:_KEPT] for word in _WORD.findall(text.lower())]
