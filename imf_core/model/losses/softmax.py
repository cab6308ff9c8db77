"""Softmax losses of all branches and of their combination, forward and backward in one go over tiles of entities.

Autograd through `logsumexp`, the weighting and a second `logsumexp` reads and writes the `(B, N)` scores about forty times
a branch, which costs more than the matrix products. Here the scores are kept once, in tiles, and become their gradient in
place: the gradient of a softmax loss is known once its normaliser is. Where even that is more than the budget allows, the
queries are taken in blocks, one after the other.

Shapes: `B` queries (of a block), `N` entities, `M` branches, `d` width, `C` candidates of a tile, `c` of them that lack a
modality.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imf_core.model.decision import partial_columns
from imf_core.model.losses.target import JointTarget
from imf_core.model.losses.tiles import Tile, table_gradients, tile_width, tiles


def joint_softmax_loss(contexts: Sequence[Tensor], tables: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
    """Sum of the branches' softmax losses and of that of their combination.

    Equals `softmax_loss` of each `c_m @ E_m^T`, plus `joint_weight` times that of their combined scores (`Imf.combine`).

    Args:
        contexts: M tensors (B, d).
        tables: M tensors (N, d).
        target: answers and weights.

    Returns:
        The differentiable total in nats, and its parts (M,) or (M + 1,), for display: branches, then the combination if it
        counts.
    """
    total, parts = _JointSoftmax.apply(target, *contexts, *tables)
    return total, parts


class _JointSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: JointTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """M contexts (B, d), then M tables (N, d) -> total and parts; the gradients are formed here, `backward` scales them."""
        count = len(tensors) // 2
        exact = target.weights.dtype
        kind = target.product_dtype(exact)
        rows = target.row_weights()  # (B,)
        contexts, tables = ([tensor.to(kind) for tensor in part] for part in (tensors[:count], tensors[count:]))
        weighted = [(context.to(exact) * rows[:, None]).to(kind) for context in tensors[:count]]  # M x (B, d)
        means = [table.to(exact).mean(dim=0) for table in tensors[count:]] if target.smoothing else None  # M x (d,)
        grads_context = [torch.zeros_like(context, dtype=exact) for context in contexts]
        grads_table = table_gradients(tables, ctx.needs_input_grad[1 + count :], exact)
        joint = target.joint_weight if count > 1 else 0.0
        parts = target.weights.new_zeros(count + (joint > 0))
        size = _block_size(len(tables[0]), count + (joint > 0), target)
        for low in range(0, len(rows), size):
            queries = slice(low, low + size)
            block = _Block(target.block(low, low + size), joint, [context[queries] for context in contexts], tables, means)
            parts += block.losses @ rows[queries]
            for tile, gradients in block.gradients():
                for position, gradient in enumerate(gradients):
                    moved = gradient.to(kind)  # (B, C)
                    grads_context[position][queries] += moved @ tables[position][tile.low : tile.high]
                    grad = grads_table[position]
                    if grad is None:
                        continue
                    piece = grad[tile.low : tile.high]  # (C, d)
                    if low == 0:
                        piece.copy_(moved.T @ weighted[position][queries])
                    else:
                        piece += moved.T @ weighted[position][queries]
        ctx.save_for_backward(*(grad.mul_(rows[:, None]) for grad in grads_context), *grads_table)
        ctx.mark_non_differentiable(parts)
        return parts[:count].sum() + joint * parts[count:].sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(None if grad is None else grad * grad_total for grad in ctx.saved_tensors))


def _block_size(num_entities: int, kept: int, target: JointTarget) -> int:
    """Queries of a block, so that `kept` scores of each candidate fit the budget."""
    each = kept * num_entities * target.weights.element_size()
    return max(1, min(len(target.weights), target.budget // each))


class _Block:
    """Scores of a block of queries, then their gradients.

    The combined scores are `sum_m share_m (s_m - logsumexp(s_m))`. The share of a branch is its weight a_m, except for the
    *partial* candidates, which lack a modality: there the weights of the others are renormalised. Elsewhere the logsumexps
    shift whole rows, which no softmax sees; they are left out there and added to the partial candidates instead.

    Args:
        target: of these queries.
        joint: factor of the loss on the combined scores; 0 leaves it out.
        contexts: M tensors (B, d).
        tables: M tensors (N, d).
        means: M mean rows (d,) of the tables, for label smoothing; None without it.

    Attributes:
        losses: (M,) or (M + 1,) x (B,) loss of each query, in nats.
    """

    def __init__(
        self, target: JointTarget, joint: float, contexts: Sequence[Tensor], tables: Sequence[Tensor],
        means: Sequence[Tensor] | None,
    ) -> None:
        self.target, self.joint, self.num_entities = target, joint, len(tables[0])
        width = tile_width(len(contexts[0]), self.num_entities, tables[0].device)
        self.tiles = tiles(target.positives, self.num_entities, width)
        self.partial = [partial_columns(target.masks, tile.low, tile.high) if joint else None for tile in self.tiles]  # (c,)
        weights, exact = target.weights, target.weights.dtype
        self.scores: list[list[Tensor]] = []  # per tile M x (B, C)
        self.combined: list[Tensor] = []  # per tile (B, C)
        norms: list[list[Tensor]] = [[] for _ in contexts]
        answers = weights.new_zeros(len(contexts) + (joint > 0), len(weights))  # (M + 1, B) sums over each query's answers
        for tile in self.tiles:
            row = [(context @ table[tile.low : tile.high].T).to(exact) for context, table in zip(contexts, tables, strict=True)]
            for position, scores in enumerate(row):
                norms[position].append(torch.logsumexp(scores, dim=1))
                answers[position].index_add_(0, tile.rows, scores[tile.rows, tile.columns])
            if joint:
                combined = row[0] * weights[:, 0, None]
                for position, scores in enumerate(row[1:], start=1):
                    combined.addcmul_(scores, weights[:, position, None])
                self.combined.append(combined)
            self.scores.append(row)
        self.norms = [torch.logsumexp(torch.stack(column), dim=0) for column in norms]  # M x (B,)
        expected = answers / target.positives.counts
        if means is not None:
            mean = [context.to(exact) @ part for context, part in zip(contexts, means, strict=True)]  # M x (B,)
        if joint:
            self._finish_combined(answers)
            expected[-1] = answers[-1] / target.positives.counts
            if means is not None:
                mean.append(torch.stack([combined.sum(dim=1) for combined in self.combined]).sum(dim=0) / self.num_entities)
        if means is not None:
            expected = (1 - target.smoothing) * expected + target.smoothing * torch.stack(mean)
        self.losses = torch.stack(self.norms) - expected

    def _finish_combined(self, answers: Tensor) -> None:
        """Correct the combined scores of partial candidates and append their normaliser to `norms`.

        Args:
            answers: (M + 1, B); the combined scores of each query's answers are added to its last row.
        """
        weights = self.target.weights
        shift = torch.stack([weights[:, position] * norm for position, norm in enumerate(self.norms)]).sum(dim=0)  # (B,)
        norms = []
        for tile, columns, row, combined in zip(self.tiles, self.partial, self.scores, self.combined, strict=True):
            if columns is not None:
                share = self.target.shares(tile.low, tile.high, columns)  # (M, B, c)
                parts = [part * (scores[:, columns] - norm[:, None])
                         for part, scores, norm in zip(share, row, self.norms, strict=True)]
                combined[:, columns] = torch.stack(parts).sum(dim=0) + shift[:, None]
            norms.append(torch.logsumexp(combined, dim=1))
            answers[-1].index_add_(0, tile.rows, combined[tile.rows, tile.columns])
        self.norms.append(torch.logsumexp(torch.stack(norms), dim=0))

    def gradients(self) -> Iterator[tuple[Tile, list[Tensor]]]:
        """For each tile the M gradients (B, C) of its scores, which they replace, without the weight of each query."""
        weights = self.target.weights
        leaks = self._combined_gradients() if self.joint else None  # (M, B)
        for index, tile in enumerate(self.tiles):
            row = self.scores[index]
            columns = self.partial[index]
            extra = None
            if columns is not None:
                slope = self.combined[index][:, columns] * self.joint  # (B, c)
                extra = (self.target.shares(tile.low, tile.high, columns) - weights.T[:, :, None]) * slope  # (M, B, c)
            for position, scores in enumerate(row):
                gradient = scores.sub_(self.norms[position][:, None]).exp_()  # (B, C) the softmax
                if leaks is not None:
                    gradient *= (1 - self.joint * leaks[position])[:, None]
                self._subtract_target(gradient, tile)
                if self.joint:
                    gradient.addcmul_(self.combined[index], self.joint * weights[:, position, None])
                if extra is not None:
                    gradient[:, columns] += extra[position]
            yield tile, row
            self.scores[index] = []

    def _combined_gradients(self) -> Tensor | None:
        """Turn the combined scores into the gradients of their loss, in place.

        Returns:
            (M, B): what flows back through the branches' logsumexps. It comes from the partial candidates alone; None without
            any.
        """
        weights = self.target.weights
        leaks = None
        for index, tile in enumerate(self.tiles):
            gradient = self.combined[index].sub_(self.norms[-1][:, None]).exp_()  # (B, C)
            self._subtract_target(gradient, tile)
            columns = self.partial[index]
            if columns is not None:
                differing = self.target.shares(tile.low, tile.high, columns) - weights.T[:, :, None]  # (M, B, c)
                leak = (differing * gradient[:, columns]).sum(dim=2)
                leaks = leak if leaks is None else leaks + leak
        return leaks

    def _subtract_target(self, probability: Tensor, tile: Tile) -> None:
        """In place: probability (B, C) less the smoothed target distribution."""
        target = self.target
        if target.smoothing:
            probability -= target.smoothing / self.num_entities
        share = (1 - target.smoothing) / target.positives.counts  # (B,)
        probability[tile.rows, tile.columns] -= share[tile.rows]
