"""The interface of a pretrained encoder, and what encoders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from imf_core.errors import DataError

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


class WholeEncoder(Protocol[ItemT_contra]):
    """An encoder that looks at all items together, such as one that reduces them by principal components."""

    def encode(self, items: Sequence[ItemT_contra | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode n items, None where there is nothing: features (n, f), and a mask (n,) of those that have some."""
        ...


def usable_features(encoded: tuple[Any, Any], count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """What an encoder that may be someone else's made of n items: features (n, f) float32, finite, zero where there are none;
    mask (n,) bool.

    Args:
        encoded: features and mask, as it returned them.
        count: n.
        name: of the encoder, for messages.

    Raises:
        DataError: it returned something else.
    """
    matrix, mask = encoded
    matrix, mask = np.ascontiguousarray(matrix, dtype=np.float32), np.asarray(mask)
    if matrix.ndim != 2 or len(matrix) != count or mask.shape != (count,) or mask.dtype != bool:
        raise DataError(
            f"the encoder {name} made {matrix.shape} features and a mask {mask.shape} of {mask.dtype} for {count:,} items",
            remedy=f"return features ({count}, f) and a mask ({count},) of bool", value=name,
        )
    if not np.isfinite(matrix[mask]).all():
        row = int(np.flatnonzero(mask)[~np.isfinite(matrix[mask]).all(axis=1)][0])
        raise DataError(f"the encoder {name} made a number that is not finite for item {row}", remedy="mask it", value=name)
    return np.where(mask[:, None], matrix, np.float32(0)), mask


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
