"""The wrong answers that can outrank an answer, and the rank of the answer among them.

Decision weights and ensembles are fitted to held-out queries many times over. For that it is enough to keep, of each query, the
answer and the candidates that some branch or model scores highest: its competitors.

Shapes: `Q` held-out queries, `N` entities, `C` candidates kept for each query, the answer in column 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pick_candidates(
    values: Sequence[Tensor], target: Tensor, known: tuple[np.ndarray, np.ndarray], count: int, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The answer, the strongest wrong answers by each branch or model, and some random ones.

    Args:
        values: K tensors (Q, N) of scores, higher is more plausible.
        target: (Q,) int64, the answer.
        known: rows and columns of the known answers, from `KnownAnswers.lookup`; they are no competitors.
        count: wrong answers to take of each tensor; at most N are taken.
        drawn: (Q, c) int64, further candidates.

    Returns:
        (Q, C) int64 entity ids, and (Q, C) bool: False for candidates that do not compete (known answers, repeats).
    """
    competes = _competing(values[0], target, known)
    width = min(count, values[0].shape[1])
    strongest = [value.masked_fill(~competes, -torch.inf).topk(width, dim=1).indices for value in values]  # K x (Q, width)
    candidates = torch.cat([target[:, None], *strongest, *([] if drawn is None else [drawn])], dim=1)
    valid = competes.gather(1, candidates) & ~_repeated(candidates)
    valid[:, 0] = True
    return candidates, valid


def answer_ranks(values: Tensor, competes: Tensor) -> Tensor:
    """Realistic rank of each answer among its candidates: the mean of the best and the worst rank among its ties.

    Args:
        values: (Q, C) or (Q, C, E) scores of the candidates, in E variants; the answer in column 0.
        competes: (Q, C - 1) or (Q, C - 1, 1) bool, which of the other candidates compete.

    Returns:
        (Q,) or (Q, E) float32 ranks, 1 is best; whole or half numbers.
    """
    answer, others = values[:, :1], values[:, 1:]
    return 1 + ((others > answer) & competes).sum(dim=1) + 0.5 * ((others == answer) & competes).sum(dim=1)


def _competing(scores: Tensor, target: Tensor, known: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """(Q, N) bool: the candidates that are wrong answers; `scores` (Q, N) gives shape and device."""
    competes = torch.ones_like(scores, dtype=torch.bool)
    competes[tuple(torch.from_numpy(part).to(scores.device) for part in known)] = False
    competes[torch.arange(len(target), device=scores.device), target] = False
    return competes


def _repeated(candidates: Tensor) -> Tensor:
    """(Q, C) bool: an equal candidate stands further left."""
    order = candidates.argsort(dim=1, stable=True)
    ordered = candidates.gather(1, order)
    again = torch.zeros_like(candidates, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)
