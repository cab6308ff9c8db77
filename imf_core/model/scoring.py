"""Relation models: how a relation turns a head into the vector that its tails are compared with.

All score a candidate by the dot product of context and candidate, `s = c @ E^T`, except `transe`: the negative L1 distance.

Shapes: `B` queries, `C` candidates, `P` pairs, `R` relations (2R with inverses), `U` distinct relations of a batch, `d` entity
width, `r` relation width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.model.dropout import Dropout
from imf_core.model.grouped import Grouping, Groups, compute_dtype, grouped_products


class Scorer(nn.Module):
    """Base: `context` makes a vector (B, d) from head and relation, `score` compares it with candidates (C, d)."""

    relation_width: int

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """Context vectors.

        Args:
            heads: (B, d) head vectors.
            relation_table: (2R, r) all relation vectors of this branch.
            relations: (B,) int64 ids below 2R.
            grouping: of these relations, if it is already known.

        Returns:
            (B, d).
        """
        raise NotImplementedError  # abstract

    def score(self, context: Tensor, candidates: Tensor) -> Tensor:
        """(B, d) against (C, d) -> (B, C), higher is more plausible."""
        return context @ candidates.T

    def score_parameters(self) -> list[Tensor]:
        """The trained tensors that `score` itself uses."""
        return []

    def score_pairs(self, context: Tensor, candidates: Tensor) -> Tensor:
        """(P, d) against (P, d), row by row -> (P,)."""
        return (context * candidates).sum(dim=1)


class Contextual(Scorer):
    """Contextual relational model of IMF: the relation builds the matrix that transforms the head (section 2.3; TuckER,
    arXiv 1901.09590).

        c = drop(BN(drop(BN(e_h)) @ drop(W x_1 e_r)))

    The matrix is built once for each *distinct* relation of the batch; the queries of a relation share it and its dropout.

    Args:
        width: d.
        relation_width: r.
        dropouts: probabilities 0 <= p < 1 for head, relation matrix and context.
    """

    def __init__(self, width: int, relation_width: int, dropouts: tuple[float, float, float]) -> None:
        super().__init__()
        self.width, self.relation_width = width, relation_width
        self.core = nn.Parameter(torch.empty(relation_width, width, width).uniform_(-1.0, 1.0))
        self.norm_head = nn.BatchNorm1d(width)
        self.norm_context = nn.BatchNorm1d(width)
        self.drop_head, self.drop_relation, self.drop_context = (Dropout(p) for p in dropouts)

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        grouping = grouping or Grouping(relations)
        dropped = self.drop_relation.draw_for((len(grouping.distinct), self.width * self.width), heads.device)
        ordered = self.drop_head(self.norm_head(heads))[grouping.order]  # (B, d)
        groups = Groups(grouping, dropped, compute_dtype(self.core))
        products = grouped_products(ordered, relation_table[grouping.distinct], self.core, groups)  # (B, d)
        return self.drop_context(self.norm_context(products[grouping.back]))


class TransE(Scorer):
    """`s = gamma - |e_h + e_r - e_t|_1` (Bordes et al., NIPS 2013); arguments as of `Contextual`."""

    def __init__(self, width: int, dropouts: tuple[float, float, float]) -> None:
        super().__init__()
        self.relation_width = width
        self.margin = nn.Parameter(torch.tensor(6.0))
        self.drop_head, self.drop_context = Dropout(dropouts[0]), Dropout(dropouts[2])

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        return self.drop_context(self.drop_head(heads) + relation_table[relations])

    def score(self, context: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score`."""
        return self.margin - torch.cdist(context, candidates, p=1.0)

    def score_parameters(self) -> list[Tensor]:
        """See `Scorer.score_parameters`."""
        return [self.margin]

    def score_pairs(self, context: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score_pairs`."""
        return self.margin - (context - candidates).abs().sum(dim=1)


class DistMult(Scorer):
    """`s = <e_h, e_r, e_t>` (Yang et al., ICLR 2015); arguments as of `Contextual`."""

    def __init__(self, width: int, dropouts: tuple[float, float, float]) -> None:
        super().__init__()
        self.relation_width = width
        self.norm_head = nn.BatchNorm1d(width)
        self.norm_context = nn.BatchNorm1d(width)
        self.drop_head, self.drop_context = Dropout(dropouts[0]), Dropout(dropouts[2])

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        heads = self.drop_head(self.norm_head(heads))
        return self.drop_context(self.norm_context(self.combine(heads, relation_table[relations])))

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Multiply heads (B, d) with relation vectors (B, d) -> (B, d)."""
        return heads * relations


class ComplEx(DistMult):
    """`s = Re <e_h, e_r, conj(e_t)>` (Trouillon et al., ICML 2016); first half of a vector: real part, second half: imaginary
    part, so d is even.
    """

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `DistMult.combine`."""
        (real, imaginary), (rel_real, rel_imaginary) = heads.chunk(2, dim=1), relations.chunk(2, dim=1)  # (B, d / 2) each
        return torch.cat([real * rel_real - imaginary * rel_imaginary, real * rel_imaginary + imaginary * rel_real], dim=1)


def build_scorer(config: ModelConfig) -> Scorer:
    """The relation model named by `config.scoring`."""
    dropouts = (config.dropout_input, config.dropout_relation, config.dropout_context)
    if config.scoring == "contextual":
        return Contextual(config.dim, config.relation_dim, dropouts)
    kind = {"transe": TransE, "distmult": DistMult, "complex": ComplEx}[config.scoring]
    return kind(config.dim, dropouts)


def relation_width(config: ModelConfig) -> int:
    """Width of relation vectors under the configured relation model."""
    return config.relation_dim if config.scoring == "contextual" else config.dim
