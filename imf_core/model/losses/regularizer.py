"""Penalties on the vectors of the training triples, which stand in for dropout, normalisation and label smoothing.

Shapes: `B` queries, `P` known answers of the batch, `d` entity width, `r` relation width.
"""

from __future__ import annotations

from torch import Tensor

from imf_core.model.losses.target import Positives
from imf_core.model.scoring import Scorer


def penalty(
    kind: str, scorer: Scorer, heads: Tensor, relations: Tensor, contexts: Tensor, tails: Tensor, positives: Positives,
    row_weights: Tensor,
) -> Tensor:
    """Weighted mean over the triples of the batch, in one branch.

    - `n3`: `|h|^3 + |r|^3 + |t|^3`, the nuclear 3-norm of the tensor of scores (Lacroix et al., ICML 2018, arXiv 1806.07297)
    - `dura`: `|c|^2 + |t|^2`; with the inverse query of each triple it is the duality-induced regularizer (Zhang et al.,
      NeurIPS 2020, arXiv 2011.05816)
    - `ivr`: `n3` and `|c|^3`, a penalty on the intermediate variable too (Xiao and Cao, AAAI 2024, arXiv 2309.15816)

    The cubes are of the moduli of `Scorer.square_moduli`, summed over the blocks of a vector.

    Args:
        kind: `n3`, `dura` or `ivr`.
        scorer: of the branch.
        heads, relations, contexts: (B, d), (B, r), (B, d) vectors of the queries.
        tails: (P, d) vectors of the known answers.
        positives: which query each answer belongs to.
        row_weights: (B,) weight of each query; its answers share it equally.

    Returns:
        Scalar, >= 0.
    """
    answer_weights = positives.shares(row_weights)  # (P,)
    if kind == "dura":
        return row_weights @ contexts.square().sum(dim=1) + answer_weights @ tails.square().sum(dim=1)

    def cubes(vectors: Tensor) -> Tensor:
        return scorer.square_moduli(vectors).pow(1.5).sum(dim=1)

    queries = cubes(heads) + cubes(relations) + (cubes(contexts) if kind == "ivr" else 0.0)
    return row_weights @ queries + answer_weights @ cubes(tails)
