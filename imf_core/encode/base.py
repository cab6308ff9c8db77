"""The interface of a pretrained encoder, and what encoders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


@dataclass
class Part:
    """What a pretrained encoder made of some items.

    Args:
        present: (n,) bool: which of the items gave a vector.
        vectors: (p, f) float32 of the p present ones, in order.
        truncated: positions of the items that were longer than the model reads.
        blank: positions of the items with nothing to read.
        rejected: (item, picture, reason) of files that cannot be read, both positions from 0.
    """

    present: np.ndarray
    vectors: np.ndarray
    truncated: list[int] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    rejected: list[tuple[int, int, str]] = field(default_factory=list)


class PretrainedEncoder(Protocol[ItemT_contra]):
    """An encoder whose vectors do not depend on the other items: it can be interrupted, and what it made can be kept."""

    name: str
    shard: int  # items after which an interrupted extraction goes on

    def identity(self) -> dict[str, str]:
        """All that the vectors depend on besides the items: kind, settings, hash of the weights."""
        ...

    def digest(self, item: ItemT_contra) -> str:
        """A hash of the item's content, hexadecimal, always of one length."""
        ...

    def order(self, items: Sequence[ItemT_contra]) -> np.ndarray:
        """(n,) the order in which the items are best encoded."""
        ...

    def encode_part(self, items: Sequence[ItemT_contra], advance: Callable[[int], None]) -> Part:
        """Encode n items; call `advance` with how many more are done."""
        ...


def spread(vectors: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put the vectors of the present items into their rows.

    Args:
        vectors: (p, f) of the p items present, in order.
        mask: (n,) bool with p True entries.

    Returns:
        (n, f) float32, zero where the mask is False.
    """
    matrix = np.zeros((len(mask), vectors.shape[1]), dtype=np.float32)
    matrix[mask] = vectors
    return matrix
