"""Binary cross entropies of all branches and of their combination, forward and backward in one pass over tiles of entities.

The gradient of a binary cross entropy is known as soon as the score is: each tile is scored, turned into its gradient in
place and multiplied with the tables at once. Autograd would keep several `(B, N)` tensors a branch for it.

Shapes: `B` queries, `N` entities, `M` branches, `d` width, `C` candidates of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from imf_core.model.losses.dense import LEAST_PROBABILITY
from imf_core.model.losses.target import JointTarget
from imf_core.model.losses.tiles import Tile, table_gradients, tile_width, tiles

_CERTAIN = 15.0  # scores up to this: a product of four (1 - sigmoid) is a normal number in fp32


def joint_binary_loss(contexts: Sequence[Tensor], tables: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
    """Sum of the branches' binary cross entropies and of that of their combination, each a mean over the B x N decisions.

    Equals `binary_loss` of each `c_m @ E_m^T`, plus `joint_weight` times `binary_loss_of_probabilities` of their weighted mean
    (`Imf.combine`). Arguments and result as of `joint_softmax_loss`.
    """
    total, parts = _JointBinary.apply(target, *contexts, *tables)
    return total, parts


class _JointBinary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, target: JointTarget, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """M contexts (B, d), then M tables (N, d) -> total and parts; the gradients are formed here, `backward` scales them."""
        count = len(tensors) // 2
        exact = target.weights.dtype
        kind = target.product_dtype(exact)
        contexts, tables = ([tensor.to(kind) for tensor in part] for part in (tensors[:count], tensors[count:]))
        queries, entities = len(contexts[0]), len(tables[0])
        joint = target.joint_weight if count > 1 else 0.0
        sums = target.weights.new_zeros(count + (joint > 0))
        grads_context = [torch.zeros_like(context, dtype=exact) for context in contexts]
        grads_table = table_gradients(tables, ctx.needs_input_grad[1 + count :], exact)
        for tile in tiles(target.positives, entities, tile_width(queries, entities, contexts[0].device)):
            pieces = [table[tile.low : tile.high] for table in tables]  # M x (C, d)
            probabilities = []
            for position, (context, piece) in enumerate(zip(contexts, pieces, strict=True)):
                scores = (context @ piece.T).to(exact)  # (B, C)
                answers = scores[tile.rows, tile.columns].sum()
                probability, softplus = _sigmoid(scores)
                sums[position] += softplus - (1 - target.smoothing) * answers
                probabilities.append(probability)
            slopes = None
            if joint:
                loss, slopes = _combined_loss(probabilities, tile, target, joint, entities)
                sums[-1] += loss
            for position, (probability, piece) in enumerate(zip(probabilities, pieces, strict=True)):
                gradient = probability  # (B, C), becomes the gradient of the tile's scores in place
                gradient[tile.rows, tile.columns] -= 1 - target.smoothing
                if slopes is not None:
                    gradient += slopes[position]
                gradient = gradient.to(kind)
                if kind == exact:
                    grads_context[position].addmm_(gradient, piece)
                else:
                    grads_context[position] += gradient @ piece
                grad = grads_table[position]
                if grad is None:
                    continue
                part = grad[tile.low : tile.high]  # (C, d)
                if kind == exact:
                    torch.mm(gradient.T, contexts[position], out=part)
                else:
                    part.copy_(gradient.T @ contexts[position])
        if target.smoothing:  # every label is 1 / N larger, for all entities alike: a product of sums
            for position, (context, table) in enumerate(zip(tensors[:count], tensors[count:], strict=True)):
                mean_entity, over_queries = table.to(exact).mean(dim=0), context.to(exact).sum(dim=0)  # (d,), (d,)
                sums[position] -= mean_entity @ over_queries
                grads_context[position] -= mean_entity
                if (grad := grads_table[position]) is not None:
                    grad -= over_queries / entities
        ctx.scale = 1.0 / (queries * entities)
        parts = sums * ctx.scale
        ctx.save_for_backward(*grads_context, *grads_table)
        ctx.mark_non_differentiable(parts)
        return parts[:count].sum() + joint * parts[count:].sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        factor = grad_total * ctx.scale
        return (None, *(None if grad is None else grad * factor for grad in ctx.saved_tensors))


def _sigmoid(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid in place of the scores (B, C), and the scalar sum of their softplus, `-log(1 - sigmoid)`.

    The logarithm is taken of products of four: element by element it costs more than the matrix product.
    """
    plain = scores.device.type != "cpu" or scores.shape[1] < 4 or float(scores.amax()) > _CERTAIN
    if plain:
        total = functional.softplus(scores).sum()
        return scores.sigmoid_(), total
    probability = scores.sigmoid_()
    no = 1 - probability
    quarter = no.shape[1] // 4
    product = no[:, :quarter] * no[:, quarter : 2 * quarter]  # (B, C // 4)
    product *= no[:, 2 * quarter : 3 * quarter]
    product *= no[:, 3 * quarter : 4 * quarter]
    total = -product.log_().sum()
    if no.shape[1] > 4 * quarter:
        total -= no[:, 4 * quarter :].log().sum()
    return probability, total


def _combined_loss(
    probabilities: Sequence[Tensor], tile: Tile, target: JointTarget, joint: float, num_entities: int
) -> tuple[Tensor, list[Tensor]]:
    """Loss of the weighted mean of the branches' probabilities in a tile.

    Args:
        probabilities: M tensors (B, C).
        tile: its candidates.
        target: answers and weights.
        joint: factor of this loss.
        num_entities: N.

    Returns:
        The loss summed over the tile, and its gradients `joint * dL/ds_m`, M tensors (B, C).
    """
    if any(mask is not None for mask in target.masks):
        share: Sequence[Tensor] = list(target.shares(tile.low, tile.high))  # M x (B, C)
    else:
        share = [target.weights[:, position, None] for position in range(len(probabilities))]  # M x (B, 1)
    combined = torch.stack([probability * part for probability, part in zip(probabilities, share, strict=True)]).sum(dim=0)
    clipped = combined.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)  # (B, C)
    log_no = torch.log1p(-clipped)
    gap = log_no - clipped.log()
    loss = (1 - target.smoothing) * gap[tile.rows, tile.columns].sum() - log_no.sum()
    label = torch.zeros_like(clipped)
    label[tile.rows, tile.columns] = 1 - target.smoothing
    if target.smoothing:
        loss = loss + gap.sum() / num_entities
        label += 1.0 / num_entities
    slope = (clipped - label) / (clipped * (1 - clipped)) * (combined == clipped) * joint  # 0 where it was clipped
    return loss, [slope * part * (probability * (1 - probability))
                  for probability, part in zip(probabilities, share, strict=True)]
