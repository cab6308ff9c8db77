"""The interface of an encoder, whatever it reads and however large its model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

ItemT_contra = TypeVar("ItemT_contra", contravariant=True)


class Encoder(Protocol[ItemT_contra]):
    """Turns one item an entity (a text, the path of a picture, ...) into features.

    Encoders are fitted on what they encode and give the same bits for the same input on one machine.
    """

    name: str

    def encode(self, items: Sequence[ItemT_contra | None]) -> tuple[np.ndarray, np.ndarray]:
        """Encode items that are aligned with the entities.

        Args:
            items: n items; None where the entity has none.

        Returns:
            Features (n, f) float32, finite, zero rows where there is nothing to encode; and the presence mask (n,) bool.
            f may be smaller than the width asked for: no more than the present items can span.
        """
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
