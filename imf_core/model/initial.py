"""A given table of entity vectors as the first values of a trained one.

Shapes: `N` entities, `w` width of the given table, `d` width of the trained one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from imf_core.errors import DataError


@torch.no_grad()
def start_from(parameter: Tensor, table: np.ndarray) -> None:
    """Overwrite randomly initialised rows by those of a table, at the deviation that they have.

    The rows are centred; a wider table is reduced to its d leading principal components, a narrower one fills the first w
    columns and leaves the others random. The result has the random values' overall standard deviation, so that the first
    scores are of the usual order.

    Args:
        parameter: (N, d), randomly initialised; changed in place.
        table: (N, w) float; a row of NaN leaves that entity's random row.

    Raises:
        DataError: the table has another number of rows, or no row to start from.
    """
    if table.ndim != 2 or len(table) != len(parameter):
        raise DataError(
            f"the structure table is {table.shape}, not one row for each of {len(parameter):,} entities",
            remedy="prepare the data again",
        )
    present = ~np.isnan(table).any(axis=1)
    rows = table[present].astype(np.float64)
    if not len(rows) or not np.isfinite(rows).all():
        raise DataError("the structure table has no finite row to start from", remedy="check structure.file")
    rows -= rows.mean(axis=0)
    width = parameter.shape[1]
    if rows.shape[1] > width:
        rows = rows @ _leading(rows, width)
    rows *= float(parameter.std()) / (float(rows.std()) or 1.0)
    parameter[torch.from_numpy(np.flatnonzero(present)), : rows.shape[1]] = torch.from_numpy(rows).to(parameter)


def _leading(rows: np.ndarray, width: int) -> np.ndarray:
    """(w, d) principal directions of centred rows, signs fixed: the largest entry of each is positive."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    leading = vectors[:, ::-1][:, :width]
    largest = np.abs(leading).argmax(axis=0)
    return np.asarray(leading * np.sign(leading[largest, np.arange(width)]))
