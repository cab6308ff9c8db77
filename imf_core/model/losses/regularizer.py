"""Penalties on the vectors of the training triples, which stand in for dropout, normalisation and label smoothing.

Shapes: `B` queries, `P` known answers of the batch, `d` entity width, `r` relation width.
"""

from __future__ import annotations

from torch import Tensor

from imf_core.model.losses.target import Positives
from imf_core.model.scoring import Scorer


def n3(
    scorer: Scorer, heads: Tensor, relations: Tensor, contexts: Tensor, tails: Tensor, positives: Positives, row_weights: Tensor
) -> Tensor:
    """`|h|^3 + |r|^3 + |t|^3`, the nuclear 3-norm of the tensor of scores (Lacroix et al., ICML 2018, arXiv 1806.07297).

    A weighted mean over the triples of the batch, in one branch. The cubes are of the moduli of `Scorer.square_moduli`, summed
    over the blocks of a vector. A regularizer of one's own has these arguments too, and its settings last.

    Args:
        scorer: of the branch.
        heads, relations, contexts: (B, d), (B, r), (B, d) vectors of the queries.
        tails: (P, d) vectors of the known answers.
        positives: which query each answer belongs to.
        row_weights: (B,) weight of each query; its answers share it equally.

    Returns:
        Scalar, >= 0.
    """
    queries = _cubes(scorer, heads) + _cubes(scorer, relations)
    return row_weights @ queries + positives.shares(row_weights) @ _cubes(scorer, tails)


def dura(
    scorer: Scorer, heads: Tensor, relations: Tensor, contexts: Tensor, tails: Tensor, positives: Positives, row_weights: Tensor
) -> Tensor:
    """`|c|^2 + |t|^2`; with the inverse query of each triple it is the duality-induced regularizer (Zhang et al., NeurIPS 2020,
    arXiv 2011.05816).

    Arguments and result as of `n3`.
    """
    return row_weights @ contexts.square().sum(dim=1) + positives.shares(row_weights) @ tails.square().sum(dim=1)


def ivr(
    scorer: Scorer, heads: Tensor, relations: Tensor, contexts: Tensor, tails: Tensor, positives: Positives, row_weights: Tensor
) -> Tensor:
    """`n3` and `|c|^3`, a penalty on the intermediate variable too (Xiao and Cao, AAAI 2024, arXiv 2309.15816).

    Arguments and result as of `n3`.
    """
    queries = _cubes(scorer, heads) + _cubes(scorer, relations) + _cubes(scorer, contexts)
    return row_weights @ queries + positives.shares(row_weights) @ _cubes(scorer, tails)


def _cubes(scorer: Scorer, vectors: Tensor) -> Tensor:
    return scorer.square_moduli(vectors).pow(1.5).sum(dim=1)
