"""1-N losses of all branches by autograd, for scores that are no products of context and candidate (distances), and for losses
of one's own.

Where the memory budget asks for it, the queries are taken in blocks; a block's scores are then computed a second time in the
backward pass instead of being kept (gradient checkpointing).

Shapes: `B` queries, `b` of a block, `N` entities, `M` branches, `d` width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from imf_core.model.losses.dense import binary_loss, binary_loss_of_probabilities, softmax_loss
from imf_core.model.losses.own import OwnLoss
from imf_core.model.losses.target import JointTarget

ScoreAll = Callable[[Sequence[Tensor]], list[Tensor]]  # M contexts (b, d) -> M scores (b, N)
Combine = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]  # as `Imf.combine`
_COPIES = 8  # (B, N) tensors that autograd keeps for a branch: scores, their differences, exponentials and gradients


def bytes_per_query(num_entities: int, num_branches: int, element_size: int = 4) -> int:
    """Memory that the losses of one query take, in bytes.

    Args:
        num_entities: N.
        num_branches: M.
        element_size: bytes of a score.
    """
    return _COPIES * num_branches * num_entities * element_size


def joint_autograd_loss(
    score: ScoreAll, combine: Combine, contexts: Sequence[Tensor], num_entities: int, target: JointTarget, loss: str,
    own: OwnLoss | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of the branches and of their combination; `joint_softmax_loss` and `joint_binary_loss` equal it.

    Args:
        score: scores of all candidates for some queries.
        combine: M scores (b, N), M logsumexps (b,) and weights (b, M) -> combined scores (b, N).
        contexts: M tensors (B, d).
        num_entities: N.
        target: answers and weights.
        loss: `ce` or `bce`.
        own: replaces the loss of the scores, which are still read as `loss` says.

    Returns:
        The differentiable total, and its parts (M,) or (M + 1,), for display: branches, then the combination if it counts.
    """
    queries = len(target.weights)
    each = bytes_per_query(num_entities, len(contexts), target.weights.element_size())
    size = max(1, min(queries, target.budget // each))
    even = torch.full_like(target.positives.counts, 1 / queries)
    row_weights = target.row_weights() if loss == "ce" and own is None else even

    def block_losses(low: int, high: int, *block: Tensor) -> Tensor:
        return _losses(score(block), combine, target.block(low, high), loss, own) * row_weights[low:high].sum()

    if size == queries:
        parts = block_losses(0, queries, *contexts)
    else:
        blocks = []
        for low, high in pairwise([*range(0, queries, size), queries]):
            block = [context[low:high] for context in contexts]
            # Nothing random is drawn between, so the state of the generator need not be kept.
            blocks.append(checkpoint(block_losses, low, high, *block, use_reentrant=False, preserve_rng_state=False))
        parts = torch.stack(blocks).sum(dim=0)
    count = len(contexts)
    return parts[:count].sum() + target.joint_weight * parts[count:].sum(), parts.detach()


def _losses(
    scores: Sequence[Tensor], combine: Combine, target: JointTarget, loss: str, own: OwnLoss | None
) -> Tensor:
    """(M,) or (M + 1,) losses of a block from M scores (b, N), each the mean over its queries."""
    positives, smoothing = target.positives, target.smoothing
    norms = [torch.logsumexp(score, dim=1) for score in scores] if loss == "ce" else []  # M x (b,)
    if own is not None:
        parts = [own(score, positives, smoothing) for score in scores]
    elif loss == "ce":
        parts = [
            softmax_loss(score, positives, smoothing, norm, target.per_triple)
            for score, norm in zip(scores, norms, strict=True)
        ]
    else:
        parts = [binary_loss(score, positives, smoothing) for score in scores]
    if len(scores) > 1 and target.joint_weight > 0:
        combined = combine(scores, norms, target.weights)  # (b, N)
        if own is not None:
            parts.append(own.of_combined(combined, positives, smoothing))
        elif loss == "ce":
            parts.append(softmax_loss(combined, positives, smoothing, None, target.per_triple))
        else:
            parts.append(binary_loss_of_probabilities(combined, positives, smoothing))
    return torch.stack(parts)
