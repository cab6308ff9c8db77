"""Entity tables of feature modalities, and the initial values of the structure table.

Shapes: `N` entities, `n` of them, `d` entity width, `f` feature width, `w` width of a given structure table.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imf_core.data.features.modality import Modality
from imf_core.errors import DataError


class ModalityTable(nn.Module):
    """A modality's frozen features, projected to d (model section 1).

    Args:
        modality: features (N, f) and presence mask (N,).
        width: d; None: the standardised features themselves, d = f, which nothing trains.
        policy: what replaces a missing row: `learned` (one trained vector), `mean` (of the present rows), `neutral` (1 in the
            fusion's product; zero elsewhere).
        finetune: train the projected table itself instead of the projection, as the published code does.
    """

    def __init__(self, modality: Modality, width: int | None, policy: str, finetune: bool) -> None:
        super().__init__()
        self.policy = policy
        mask = torch.from_numpy(modality.mask.copy())
        self.complete = bool(mask.all())
        self.register_buffer("mask", mask)
        self.mask: Tensor
        features = shared_tensor(modality.standardised())
        self.projection: nn.Linear | None = None
        self.features: Tensor | None
        self.table: nn.Parameter | None = None
        self.missing: nn.Parameter | None = None
        self._mean_features: Tensor | None = None
        if width is None:
            self.register_buffer("features", features)
            return
        projection = nn.Linear(modality.width, width)
        nn.init.normal_(projection.weight, std=(modality.width * width) ** -0.5)  # rows of unit length: first scores of order 1
        nn.init.zeros_(projection.bias)
        if finetune:
            with torch.no_grad():
                self.table = nn.Parameter(projection(features))
            self.register_buffer("features", None)
        else:
            self.projection = projection
            self.register_buffer("features", features)
        self.missing = nn.Parameter(torch.randn(width) * 0.1) if policy == "learned" and not self.complete else None

    def share(self, other: nn.Module) -> None:
        """Use the frozen features and the mask of another table of the modality: memory and a checkpoint hold them once."""
        for name in ("features", "mask"):
            if getattr(other, name) is not None:  # a trained table has no features any more
                self.register_buffer(name, getattr(other, name), persistent=False)

    def forward(self, nodes: Tensor | None = None) -> Tensor:
        """Projected features, missing rows filled according to the policy.

        Args:
            nodes: (n,) int64 entity ids: only their rows; a trained table then gets a sparse gradient, and the mean that fills
                missing rows gets none. None: all N.

        Returns:
            (N, d) or (n, d).
        """
        if nodes is not None:
            return self._rows(nodes)
        projected = self.projected()
        return projected if self.complete or self.frozen else _filled(projected, self.mask, self.filler(projected))

    def projected(self) -> Tensor:
        """(N, d): the projected features of all entities; the missing rows mean nothing."""
        if self.projection is not None:
            projected: Tensor = self.projection(self.features)
            return projected
        return self._unprojected

    def filler(self, projected: Tensor) -> Tensor | None:
        """(d,): what `forward` fills missing rows with; None: zeros."""
        return _mean_row(projected, self.mask) if self.policy == "mean" and not self.complete else self.missing

    @property
    def frozen(self) -> bool:
        """Whether these are the features themselves; their missing rows are zero."""
        return self.projection is None and self.table is None

    @property
    def _unprojected(self) -> Tensor:
        rows = self.features if self.table is None else self.table
        assert rows is not None
        return rows

    def _rows(self, nodes: Tensor) -> Tensor:
        if self.projection is not None:
            assert self.features is not None
            projected: Tensor = self.projection(self.features[nodes])
        else:
            projected = functional.embedding(nodes, self._unprojected, sparse=True)
        if self.complete or self.frozen:
            return projected
        filler: Tensor | None = self.missing
        if filler is None and self.policy == "mean":
            with torch.no_grad():
                filler = self._mean()
        return _filled(projected, self.mask[nodes], filler)

    def _mean(self) -> Tensor:
        """(d,): the row of the policy `mean`."""
        if self.projection is None:
            assert self.table is not None
            return _mean_row(self.table, self.mask)
        if self._mean_features is None:  # frozen features: computed once
            assert self.features is not None
            self._mean_features = _mean_row(self.features, self.mask)
        mean: Tensor = self.projection(self._mean_features)
        return mean


def _mean_row(table: Tensor, mask: Tensor) -> Tensor:
    """(N, d), (N,) -> (d,): mean of the present rows."""
    weight = mask.to(table.dtype)
    return (weight @ table) / weight.sum()


def _filled(rows: Tensor, mask: Tensor, filler: Tensor | None) -> Tensor:
    """(n, d) rows with the filler (d,), or zero, where the mask (n,) is False."""
    return torch.where(mask[:, None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device) if filler is None else filler)


def shared_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares the array's memory, even if read-only: features are never written to, and all trials may map the
    same file.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def initialise(table: Tensor, scale: float) -> None:
    """Fill a new table with normal numbers of this standard deviation; 0: Xavier's."""
    if not scale:
        nn.init.xavier_normal_(table)
    else:
        nn.init.normal_(table, std=scale)


@torch.no_grad()
def start_from(parameter: Tensor, table: np.ndarray) -> None:
    """Overwrite randomly initialised rows with those of a table, scaled to the same standard deviation.

    The rows are centred; a wider table is reduced to its d leading principal components, a narrower one fills the first w
    columns and leaves the others random. The overall standard deviation stays that of the random values, so that the first
    scores have the usual magnitude.

    Args:
        parameter: (N, d), randomly initialised; changed in place.
        table: (N, w) float; an entity with a row of NaN keeps its random row.

    Raises:
        DataError: the table has another number of rows, or no finite row.
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
    """(n, w) centred rows -> (w, d) principal directions, with the sign that makes the largest entry of each positive."""
    _, vectors = np.linalg.eigh(rows.T @ rows)
    leading = vectors[:, ::-1][:, :width]
    largest = np.abs(leading).argmax(axis=0)
    return np.asarray(leading * np.sign(leading[largest, np.arange(width)]))
