"""Relation prediction: a loss on the relation of each training triple, given head and tail, beside that on its answer.

Chen et al., AKBC 2021 (arXiv 2110.02834): it helps where there are many relations.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from imf_core.model.losses.target import Positives
from imf_core.model.scoring import Scorer


def relation_loss(
    scorer: Scorer, heads: Tensor, relations: Tensor, tails: Tensor, relation_table: Tensor, positives: Positives,
    row_weights: Tensor,
) -> Tensor:
    """Softmax cross entropy of the relations among all 2R, in one branch.

    Args:
        scorer: of the branch.
        heads: (B, d) vectors of the queries' heads.
        relations: (B,) int64 ids.
        tails: (P, d) vectors of the known answers.
        relation_table: (2R, r) all relation vectors.
        positives: which query each answer belongs to.
        row_weights: (B,) weight of each query; its answers share it equally.

    Returns:
        Scalar in nats.
    """
    rows = positives.rows
    scores = scorer.relation_scores(heads[rows], tails, relation_table)  # (P, 2R)
    surprise = functional.cross_entropy(scores, relations[rows], reduction="none")
    return positives.shares(row_weights) @ surprise
