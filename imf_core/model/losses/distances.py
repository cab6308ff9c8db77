"""1-N losses of all branches by autograd, for scores that are no products: distances. Where the budget asks for it, the queries
are taken in blocks; a block's scores are then computed once more in the backward pass instead of being kept.

Shapes: `B` queries, `N` entities, `M` branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from imf_core.model.losses.plain_forms import binary_loss, binary_loss_of_probabilities, softmax_loss
from imf_core.model.losses.target import JointTarget

ScoreAll = Callable[[Sequence[Tensor]], list[Tensor]]  # M contexts (b, d) -> M scores (b, N)
Decide = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]  # as `Imf.decide`
_TIMES = 10  # (B, N) tables that autograd keeps of a branch: scores, their differences, exponentials and gradients


def bytes_of_query(num_entities: int, num_branches: int, element_size: int = 4) -> int:
    """What the losses of one query take."""
    return _TIMES * num_branches * num_entities * element_size


def plain_losses(
    score: ScoreAll, decide: Decide, contexts: Sequence[Tensor], num_entities: int, target: JointTarget, loss: str
) -> tuple[Tensor, Tensor]:
    """Sum of the branches' losses and of the decision's; what `joint_softmax_loss` and `joint_binary_loss` equal.

    Args:
        score: all candidates for some queries.
        decide: scores, logsumexps and weights (b, M) -> decided (b, N).
        contexts: M tensors (B, d).
        num_entities: N.
        target: answers and weights.
        loss: `ce` or `bce`.

    Returns:
        The differentiable total, and its parts, for display: M branches, then the decision if it counts.
    """
    queries = len(target.weights)
    each = bytes_of_query(num_entities, len(contexts), target.weights.element_size())
    size = max(1, min(queries, target.budget // each))
    shares = target.row_weights() if loss == "ce" else torch.full_like(target.positives.counts, 1 / queries)

    def of(low: int, high: int, *block: Tensor) -> Tensor:
        part = target.block(low, high)
        return _losses(score(block), decide, part, loss) * shares[low:high].sum()

    if size == queries:
        parts = of(0, queries, *contexts)
    else:
        made = []
        for low, high in pairwise([*range(0, queries, size), queries]):
            block = [context[low:high] for context in contexts]
            made.append(checkpoint(of, low, high, *block, use_reentrant=False, preserve_rng_state=False))  # nothing is drawn
        parts = torch.stack(made).sum(dim=0)
    count = len(contexts)
    return parts[:count].sum() + target.joint_weight * parts[count:].sum(), parts.detach()


def _losses(scores: Sequence[Tensor], decide: Decide, target: JointTarget, loss: str) -> Tensor:
    """(M,) or (M + 1,) losses of a block, each the mean over its queries."""
    positives, smoothing = target.positives, target.smoothing
    norms = [torch.logsumexp(score, dim=1) for score in scores] if loss == "ce" else []
    if loss == "ce":
        own = zip(scores, norms, strict=True)
        parts = [softmax_loss(score, positives, smoothing, norm, target.per_triple) for score, norm in own]
    else:
        parts = [binary_loss(score, positives, smoothing) for score in scores]
    if len(scores) > 1 and target.joint_weight > 0:
        decided = decide(scores, norms, target.weights)
        if loss == "ce":
            parts.append(softmax_loss(decided, positives, smoothing, None, target.per_triple))
        else:
            parts.append(binary_loss_of_probabilities(decided, positives, smoothing))
    return torch.stack(parts)
