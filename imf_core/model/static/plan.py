"""What a static step needs to know about a batch, planned on the host in numpy while the step before runs.

Whatever depends on the batch becomes an index of a fixed, padded length, so a GPU never has to be asked for a size.

Shapes: `B` queries, `U` relations of a batch (padded), `b` blocks of 32 queries of one relation (padded), `P` known answers
(padded), `N` entities, `V` views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imf_core.model.losses.target import Positives

BLOCK = 32  # queries of a block: the rows of a relation's matrix product


@dataclass(frozen=True)
class Sizes:
    """Lengths of everything in a plan.

    Args:
        queries: B. It is not padded: an epoch has batches of two sizes, and BatchNorm sees real rows alone.
        relations: U, room for the distinct relations.
        answers: P, room for the known answers.
    """

    queries: int
    relations: int
    answers: int

    @property
    def blocks(self) -> int:
        """b: enough for any batch of these sizes."""
        return -(-self.queries // BLOCK) + self.relations


@dataclass(frozen=True)
class Plan:
    """Indices and weights of a batch. Padded indices repeat a real one; padded weights are 0.

    Args:
        distinct: (U,) int64, the relations of the batch.
        owners: (b,) int64, position in `distinct` of each block's relation.
        slots: (b * 32,) int64, the query in each row of the blocks.
        filled: (b * 32,) float, 1 for a row with a query, 0 for padding.
        places: (B,) int64, the row of each query: the inverse of `slots`.
        nodes: (B,) int64, the distinct heads.
        pair_weights: (V, V, B) float, weight of each of `nodes` in the contrastive loss of view v against view w; (0, 0, B)
            without that loss.
        answers: (P,) int64, the known answers as positions in a flat (B * N) matrix of scores.
        answer_shares: (P,) float, under `ce` 1 / |answers of the query|, under `bce` 1.
        answer_weights: (P,) float, the same, under `ce` times the weight of the query.
        row_weights: (B,) float, weight of each query under `ce`; they sum to 1.
    """

    distinct: Tensor
    owners: Tensor
    slots: Tensor
    filled: Tensor
    places: Tensor
    nodes: Tensor
    pair_weights: Tensor
    answers: Tensor
    answer_shares: Tensor
    answer_weights: Tensor
    row_weights: Tensor


@dataclass(frozen=True)
class Planner:
    """Plans the batches of a training.

    Args:
        num_entities: N.
        loss: `ce` or `bce`.
        per_triple: `ce`: weight a query by its number of answers.
        masks: per view (N,) bool, which entities have it, or None where all do; empty without a contrastive loss.
    """

    num_entities: int
    loss: str
    per_triple: bool
    masks: Sequence[np.ndarray | None]

    def plan(self, heads: np.ndarray, relations: np.ndarray, positives: Positives, sizes: Sizes) -> tuple[Plan, Positives]:
        """Plan a batch.

        Args:
            heads, relations: (B,) int64 ids.
            positives: its known answers, on the host.
            sizes: with room for the batch, see `room`.

        Returns:
            The plan, and the known answers padded to P.
        """
        rows, tails, counts = positives.rows.numpy(), positives.tails.numpy(), positives.counts.numpy()
        real = np.zeros(sizes.answers, np.float32)
        real[: len(rows)] = 1
        rows, tails = _padded(rows, sizes.answers), _padded(tails, sizes.answers)
        row_weights = counts / counts.sum() if self.per_triple else np.full(len(counts), 1 / len(counts))
        shares = real / counts[rows] if self.loss == "ce" else real
        answer_weights = shares * row_weights[rows] if self.loss == "ce" else real
        nodes, pair_weights = self._contrasted(heads)
        arrays = (
            *_grouped(relations, sizes), nodes, pair_weights, rows * self.num_entities + tails, shares, answer_weights,
            row_weights,
        )
        plan = Plan(*(_tensor(array) for array in arrays))
        return plan, Positives(_tensor(rows), _tensor(tails), positives.counts, _tensor(real))

    def _contrasted(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) distinct heads and (V, V, B) their weights: a mean over the pairs of views that at least two of them share."""
        views, distinct = len(self.masks), np.unique(heads)
        has = np.zeros((views, len(heads)), bool)
        for view, mask in enumerate(self.masks):
            has[view, : len(distinct)] = True if mask is None else mask[distinct]
        both = has[:, None] & has[None, :] & ~np.eye(views, dtype=bool)[:, :, None]  # (V, V, B)
        counts = both.sum(axis=2, keepdims=True)
        usable = counts > 1
        return _padded(distinct, len(heads)), both * usable / np.maximum(counts * usable.sum(), 1)


def room(relations: np.ndarray, answers: int, least: Sizes | None = None) -> Sizes:
    """The smallest sizes that hold a batch: powers of two, so that few batches of an epoch ask for others.

    Args:
        relations: (B,) int64 ids.
        answers: number of known answers.
        least: sizes that were enough so far.
    """
    distinct = len(np.unique(relations))
    grown = _power_of_two(distinct), _power_of_two(answers)
    return Sizes(len(relations), *(grown if least is None else (max(grown[0], least.relations), max(grown[1], least.answers))))


def _grouped(relations: np.ndarray, sizes: Sizes) -> tuple[np.ndarray, ...]:
    """`distinct`, `owners`, `slots`, `filled` and `places` of `Plan`."""
    distinct, counts = np.unique(relations, return_counts=True)
    order = np.argsort(relations, kind="stable")  # (B,) queries of a relation side by side
    needed = -(-counts // BLOCK)
    owners = _padded(np.repeat(np.arange(len(distinct)), needed), sizes.blocks)
    starts = (np.cumsum(needed) - needed) * BLOCK - (np.cumsum(counts) - counts)
    rows = np.arange(len(order)) + np.repeat(starts, counts)  # row of each ordered query
    slots, filled = np.full(sizes.blocks * BLOCK, order[0]), np.zeros(sizes.blocks * BLOCK)
    slots[rows], filled[rows] = order, 1
    places = np.empty_like(order)
    places[order] = rows
    return _padded(distinct, sizes.relations), owners, slots, filled, places


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """The values, then the first of them again, up to a length."""
    return np.concatenate([values, np.full(length - len(values), values[0])])


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int64 if array.dtype.kind == "i" else np.float32))
