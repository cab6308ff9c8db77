"""Softmax losses of all branches and of their decision, forward and backward in one go over tiles of entities.

Autograd through `logsumexp`, the weighting and a second `logsumexp` reads and writes the `(B, N)` scores about forty times
a branch, which costs more than the matrix products. Here the scores are kept once, in tiles, and become their gradient in
place: the gradient of a softmax loss is known once its normaliser is. Where even that is more than the budget allows, the
queries are taken in blocks, one after the other.

Shapes: `B` queries (of a block), `N` entities, `M` branches, `d` width, `C` candidates of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imf_core.model.losses.target import JointTarget, Tile, partial_columns, shares, tile_width, tiles


def joint_softmax_loss(contexts: Sequence[Tensor], tables: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
    """Sum of the branches' softmax losses and of the decision's.

    Equals `softmax_loss` of each `c_m @ E_m^T`, plus `joint_weight` times that of `decide` over them.

    Args:
        contexts: M tensors (B, d).
        tables: M tensors (N, d).
        target: answers and weights.

    Returns:
        The differentiable total, and the M + 1 parts (branches, then the decision), for display.
    """
    total, parts = _JointSoftmax.apply(target, *contexts, *tables)
    return total, parts


class _JointSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: JointTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts, then tables -> total and parts; the gradients are formed here and only scaled in `backward`."""
        count = len(tensors) // 2
        exact = target.weights.dtype
        kind = target.kind(exact)
        rows = target.row_weights()
        contexts, tables = ([tensor.to(kind) for tensor in part] for part in (tensors[:count], tensors[count:]))
        weighted = [(context.to(exact) * rows[:, None]).to(kind) for context in tensors[:count]]
        means = [table.to(exact).mean(dim=0) for table in tensors[count:]] if target.smoothing else None
        grads_context = [torch.zeros_like(context, dtype=exact) for context in contexts]
        grads_table = [torch.empty_like(table, dtype=exact) for table in tables]
        joint = target.joint_weight if count > 1 else 0.0
        parts = target.weights.new_zeros(count + (joint > 0))
        size = _block_size(len(tables[0]), count + (joint > 0), target)
        for low in range(0, len(rows), size):
            place = slice(low, low + size)
            block = _Block(target.block(low, low + size), joint, [context[place] for context in contexts], tables, means)
            parts += block.losses @ rows[place]
            for tile, gradients in block.gradients():
                for position, gradient in enumerate(gradients):
                    moved = gradient.to(kind)
                    grads_context[position][place] += moved @ tables[position][tile.low : tile.high]
                    piece = grads_table[position][tile.low : tile.high]
                    if low == 0:
                        piece.copy_(moved.T @ weighted[position][place])
                    else:
                        piece += moved.T @ weighted[position][place]
        ctx.save_for_backward(*(grad.mul_(rows[:, None]) for grad in grads_context), *grads_table)
        ctx.mark_non_differentiable(parts)
        return parts[:count].sum() + joint * parts[count:].sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(grad * grad_total for grad in ctx.saved_tensors))


def _block_size(num_entities: int, kept: int, target: JointTarget) -> int:
    """Queries of a block, so that `kept` scores of each candidate fit the budget."""
    each = kept * num_entities * target.weights.element_size()
    return max(1, min(len(target.weights), target.budget // each))


class _Block:
    """Scores of a block of queries, then their gradients.

    The decided scores are `sum_m share_m (s_m - logsumexp(s_m))`. The share of a branch is its weight a_m, except for the
    *partial* candidates, which lack a modality: there the weights of the others are renormalised. Elsewhere the logsumexps
    shift whole rows, which no softmax sees; they are left out there and added back here.
    """

    def __init__(
        self, target: JointTarget, joint: float, contexts: Sequence[Tensor], tables: Sequence[Tensor],
        means: Sequence[Tensor] | None,
    ) -> None:
        self.target, self.joint, self.num_entities = target, joint, len(tables[0])
        width = tile_width(len(contexts[0]), self.num_entities, tables[0].device)
        self.tiles = tiles(target.positives, self.num_entities, width)
        self.partial = [partial_columns(target.masks, tile.low, tile.high) if joint else None for tile in self.tiles]
        weights, exact = target.weights, target.weights.dtype
        self.scores: list[list[Tensor]] = []
        self.decided: list[Tensor] = []
        norms: list[list[Tensor]] = [[] for _ in contexts]
        answers = weights.new_zeros(len(contexts) + (joint > 0), len(weights))
        for tile in self.tiles:
            row = [(context @ table[tile.low : tile.high].T).to(exact) for context, table in zip(contexts, tables, strict=True)]
            for position, scores in enumerate(row):
                norms[position].append(torch.logsumexp(scores, dim=1))
                answers[position].index_add_(0, tile.rows, scores[tile.rows, tile.columns])
            if joint:
                decided = row[0] * weights[:, 0, None]
                for position, scores in enumerate(row[1:], start=1):
                    decided.addcmul_(scores, weights[:, position, None])
                self.decided.append(decided)
            self.scores.append(row)
        self.norms = [torch.logsumexp(torch.stack(column), dim=0) for column in norms]
        expected = answers / target.positives.counts
        if means is not None:
            mean = [context.to(exact) @ part for context, part in zip(contexts, means, strict=True)]
        if joint:
            self._decide(answers)
            expected[-1] = answers[-1] / target.positives.counts
            if means is not None:
                mean.append(torch.stack([decided.sum(dim=1) for decided in self.decided]).sum(dim=0) / self.num_entities)
        if means is not None:
            expected = (1 - target.smoothing) * expected + target.smoothing * torch.stack(mean)
        self.losses = torch.stack(self.norms) - expected

    def _decide(self, answers: Tensor) -> None:
        """Finish the decided scores and their normaliser; adds those of the answers to the last row of `answers`."""
        weights = self.target.weights
        shift = torch.stack([weights[:, position] * norm for position, norm in enumerate(self.norms)]).sum(dim=0)
        norms = []
        for tile, columns, row, decided in zip(self.tiles, self.partial, self.scores, self.decided, strict=True):
            if columns is not None:
                share = shares(self.target, tile.low, tile.high, columns)
                parts = [part * (scores[:, columns] - norm[:, None])
                         for part, scores, norm in zip(share, row, self.norms, strict=True)]
                decided[:, columns] = torch.stack(parts).sum(dim=0) + shift[:, None]
            norms.append(torch.logsumexp(decided, dim=1))
            answers[-1].index_add_(0, tile.rows, decided[tile.rows, tile.columns])
        self.norms.append(torch.logsumexp(torch.stack(norms), dim=0))

    def gradients(self) -> Iterator[tuple[Tile, list[Tensor]]]:
        """For each tile the M gradients (B, C) of its scores, which they replace. A query's weight is not yet in them."""
        weights = self.target.weights
        leaks = self._decision_gradients() if self.joint else None
        for index, tile in enumerate(self.tiles):
            row = self.scores[index]
            columns = self.partial[index]
            extra = None
            if columns is not None:
                slope = self.decided[index][:, columns] * self.joint
                extra = (shares(self.target, tile.low, tile.high, columns) - weights.T[:, :, None]) * slope
            for position, scores in enumerate(row):
                gradient = scores.sub_(self.norms[position][:, None]).exp_()
                if leaks is not None:
                    gradient *= (1 - self.joint * leaks[position])[:, None]
                self._subtract_target(gradient, tile)
                if self.joint:
                    gradient.addcmul_(self.decided[index], self.joint * weights[:, position, None])
                if extra is not None:
                    gradient[:, columns] += extra[position]
            yield tile, row
            self.scores[index] = []

    def _decision_gradients(self) -> Tensor | None:
        """Turn the decided scores into the gradients of their loss; returns what flows back through the branches'
        logsumexps, (M, B): it comes from the partial candidates alone, None without any.
        """
        weights = self.target.weights
        leaks = None
        for index, tile in enumerate(self.tiles):
            gradient = self.decided[index].sub_(self.norms[-1][:, None]).exp_()
            self._subtract_target(gradient, tile)
            columns = self.partial[index]
            if columns is not None:
                differing = shares(self.target, tile.low, tile.high, columns) - weights.T[:, :, None]
                leak = (differing * gradient[:, columns]).sum(dim=2)
                leaks = leak if leaks is None else leaks + leak
        return leaks

    def _subtract_target(self, probability: Tensor, tile: Tile) -> None:
        """In place: probability less the smoothed target distribution."""
        target = self.target
        if target.smoothing:
            probability -= target.smoothing / self.num_entities
        share = (1 - target.smoothing) / target.positives.counts
        probability[tile.rows, tile.columns] -= share[tile.rows]
