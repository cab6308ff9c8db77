"""Relation models: how a relation turns a head into the vector that its tails are compared with.

All score a candidate by the dot product of context and candidate, `s = c @ E^T`, except `transe`: the negative L1 distance.

Shapes: `B` queries, `C` candidates, `P` pairs, `R` relations (2R with inverses), `U` distinct relations of a batch, `d` entity
width, `r` relation width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imf_core.config import ModelConfig
from imf_core.errors import ConfigError
from imf_core.model.dropout import Dropout
from imf_core.model.grouped import Grouping, Groups, compute_dtype, grouped_products, kept_products
from imf_core.parts.registry import named

_SHARPNESS = 20.0  # score of equal parts at a weight of 1: a temperature of .05, as in contrastive learning


class Scorer(nn.Module):
    """Base: `context` makes a vector (B, d) from head and relation, `score` compares it with candidates (C, d).

    A scorer of one's own that is no dot product of the two says so by `is_product = False`, and overrides `score` and
    `score_pairs`. `@staticmethod check_settings(config)` may raise ValueError for settings that do not go together.

    Attributes:
        relation_width: r.
        reads_features: whether a head of it compares the frozen features of its modality as they are, at their own width,
            rather than vectors of its own.
        is_product: whether a score is the dot product of context and candidate, so that fused kernels may form it.
        builds_matrices: whether a (d, d) matrix is built for each relation of a batch.
    """

    relation_width: int
    reads_features: ClassVar[bool] = False
    is_product: ClassVar[bool] = True
    builds_matrices: ClassVar[bool] = False

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """The scorer of a branch.

        Args:
            config: its width `dim` and everything else of the model.
            settings: those of the part, if it has some.
        """
        return cls(config, *settings)

    @classmethod
    def relation_width_of(cls, config: ModelConfig, *settings: Any) -> int:
        """The width r of the relation vectors that `of` will need; arguments as of `of`."""
        return config.dim

    def square_moduli(self, vectors: Tensor) -> Tensor:
        """(n, d or r) vectors of entities, relations or contexts -> (n, blocks) squared lengths of the blocks that the scorer
        multiplies as one: single numbers here.
        """
        return vectors.square()

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

    def relation_scores(self, heads: Tensor, tails: Tensor, relation_table: Tensor) -> Tensor:
        """Scores of all relations between heads and tails, without normalisation of the context: (P, d), (P, d) and
        (2R, r) -> (P, 2R). Here: one relation after the other, in whatever time that takes.
        """
        each = torch.arange(len(relation_table), device=heads.device)
        columns = [
            self.score_pairs(self.context(heads, relation_table, relation.expand(len(heads))), tails) for relation in each
        ]
        return torch.stack(columns, dim=1)


class Contextual(Scorer):
    """Contextual relational model of IMF: the relation builds the matrix that transforms the head (section 2.3; TuckER,
    arXiv 1901.09590).

        c = drop(BN(drop(BN(e_h)) @ drop(W x_1 e_r)))

    The matrix is built once for each *distinct* relation of the batch; the queries of a relation share it and its dropout.

    Args:
        width: d.
        relation_width: r.
        dropouts: probabilities 0 <= p < 1 for head, relation matrix and context.
        norm: `batch` or `none`.
    """

    builds_matrices = True

    def __init__(
        self, width: int, relation_width: int, dropouts: tuple[float, float, float], norm: str = "batch"
    ) -> None:
        super().__init__()
        self.width, self.relation_width = width, relation_width
        self.core = nn.Parameter(torch.empty(relation_width, width, width).uniform_(-1.0, 1.0))
        self.norm_head, self.norm_context = _norm(norm, width), _norm(norm, width)
        self.drop_head, self.drop_relation, self.drop_context = (Dropout(p) for p in dropouts)

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """See `Scorer.of`."""
        return cls(config.dim, config.relation_dim, dropouts_of(config), config.norm)

    @classmethod
    def relation_width_of(cls, config: ModelConfig, *settings: Any) -> int:
        """See `Scorer.relation_width_of`."""
        return config.relation_dim

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        grouping = grouping or Grouping(relations)
        dropped = self.drop_relation.draw_for((len(grouping.distinct), self.width * self.width), heads.device)
        ordered = self.drop_head(self.norm_head(heads))[grouping.order]  # (B, d)
        groups = Groups(grouping, dropped, compute_dtype(self.core))
        if grouping.kept is not None and grouping.kept.hold(len(grouping.distinct), self.core):
            products = kept_products(ordered, relation_table, self.core, groups)  # (B, d)
        else:
            products = grouped_products(ordered, relation_table[grouping.distinct], self.core, groups)
        return self.drop_context(self.norm_context(products[grouping.back]))

    def relation_scores(self, heads: Tensor, tails: Tensor, relation_table: Tensor) -> Tensor:
        """See `Scorer.relation_scores`."""
        heads = self.drop_head(self.norm_head(heads))
        products = (heads @ self.core).transpose(0, 1) @ tails[..., None]  # (P, r, 1)
        return products[..., 0] @ relation_table.T


class TransE(Scorer):
    """`s = gamma - |e_h + e_r - e_t|_1` (Bordes et al., NIPS 2013); arguments as of `Contextual`."""

    is_product = False

    def __init__(self, width: int, dropouts: tuple[float, float, float]) -> None:
        super().__init__()
        self.relation_width = width
        self.margin = nn.Parameter(torch.tensor(6.0))
        self.drop_head, self.drop_context = Dropout(dropouts[0]), Dropout(dropouts[2])

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """See `Scorer.of`."""
        return cls(config.dim, dropouts_of(config))

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        return self.drop_context(self.drop_head(heads) + relation_table[relations])

    def score(self, context: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score`."""
        return self.margin - torch.cdist(context, candidates, p=1.0)

    def score_parameters(self) -> list[Tensor]:
        """See `Scorer.score_parameters`."""
        return [self.margin]

    def relation_scores(self, heads: Tensor, tails: Tensor, relation_table: Tensor) -> Tensor:
        """See `Scorer.relation_scores`."""
        return self.margin - torch.cdist(tails - heads, relation_table, p=1.0)

    def score_pairs(self, context: Tensor, candidates: Tensor) -> Tensor:
        """See `Scorer.score_pairs`."""
        return self.margin - (context - candidates).abs().sum(dim=1)


class DistMult(Scorer):
    """`s = <e_h, e_r, e_t>` (Yang et al., ICLR 2015); arguments as of `Contextual`."""

    def __init__(self, width: int, dropouts: tuple[float, float, float], norm: str = "batch") -> None:
        super().__init__()
        self.relation_width = width
        self.norm_head, self.norm_context = _norm(norm, width), _norm(norm, width)
        self.drop_head, self.drop_context = Dropout(dropouts[0]), Dropout(dropouts[2])

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """See `Scorer.of`."""
        return cls(config.dim, dropouts_of(config), config.norm)

    def context(self, heads: Tensor, relation_table: Tensor, relations: Tensor, grouping: Grouping | None = None) -> Tensor:
        """See `Scorer.context`."""
        heads = self.drop_head(self.norm_head(heads))
        return self.drop_context(self.norm_context(self.combine(heads, relation_table[relations])))

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Multiply heads (..., d) with relation vectors (..., d) -> (..., d)."""
        return heads * relations

    def relation_scores(self, heads: Tensor, tails: Tensor, relation_table: Tensor) -> Tensor:
        """See `Scorer.relation_scores`."""
        return self.pair(self.drop_head(self.norm_head(heads)), tails) @ relation_table.T

    def pair(self, heads: Tensor, tails: Tensor) -> Tensor:
        """(P, d), (P, d) -> (P, d): what a relation vector is multiplied with to give the score of a triple."""
        return heads * tails


class ComplEx(DistMult):
    """`s = Re <e_h, e_r, conj(e_t)>` (Trouillon et al., ICML 2016); first half of a vector: real part, second half: imaginary
    part, so d is even.
    """

    def square_moduli(self, vectors: Tensor) -> Tensor:
        """See `Scorer.square_moduli`: (n, d / 2), of complex numbers."""
        real, imaginary = vectors.chunk(2, dim=1)
        return real.square() + imaginary.square()

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `DistMult.combine`."""
        (real, imaginary), (rel_real, rel_imaginary) = heads.chunk(2, dim=-1), relations.chunk(2, dim=-1)  # (..., d / 2) each
        return torch.cat([real * rel_real - imaginary * rel_imaginary, real * rel_imaginary + imaginary * rel_real], dim=-1)

    def pair(self, heads: Tensor, tails: Tensor) -> Tensor:
        """See `DistMult.pair`."""
        (real, imaginary), (tail_real, tail_imaginary) = heads.chunk(2, dim=1), tails.chunk(2, dim=1)
        return torch.cat([real * tail_real + imaginary * tail_imaginary, real * tail_imaginary - imaginary * tail_real], dim=1)


class BlockTerm(DistMult):
    """Contextual model with a block-diagonal core: `c_b = W x_1 r_b x_2 h_b` for each of the d / P blocks (block-term
    decomposition; TuckER with a sparse core, Xiao and Cao, arXiv 2309.15816). P = 1 is DistMult; ComplEx is P = 2 with a
    certain core.

    Args:
        width: d.
        block: P, divides d.
        dropouts, norm: as of `Contextual`.
    """

    def __init__(self, width: int, block: int, dropouts: tuple[float, float, float], norm: str = "batch") -> None:
        super().__init__(width, dropouts, norm)
        self.block = block
        self.core = nn.Parameter(torch.randn(block * block, block) / block)
        self.drop_relation = Dropout(dropouts[1])

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """See `Scorer.of`."""
        return cls(config.dim, config.block_size, dropouts_of(config), config.norm)

    def square_moduli(self, vectors: Tensor) -> Tensor:
        """See `Scorer.square_moduli`: (n, d / P)."""
        return vectors.square().unflatten(1, (-1, self.block)).sum(dim=2)

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """See `DistMult.combine`."""
        parts = heads.unflatten(1, (-1, self.block)), self.drop_relation(relations).unflatten(1, (-1, self.block))
        outer = parts[1][..., None] * parts[0][..., None, :]  # (B, d / P, P, P)
        return (outer.flatten(2) @ self.core).flatten(1)

    def pair(self, heads: Tensor, tails: Tensor) -> Tensor:
        """See `DistMult.pair`."""
        outer = heads.unflatten(1, (-1, self.block))[..., None] * tails.unflatten(1, (-1, self.block))[..., None, :]
        return (outer.flatten(2) @ self.core.view(self.block, -1).T).flatten(1)


class Similarity(DistMult):
    """Weighs how alike head and tail are, part by part: `s = sum_ab r_ab <e_h,a, e_t,b>`, with P x P weights a relation.

    Vectors are P equal parts, such as the words of an entity's name and those of its description; the weights of a relation
    say which parts of its heads are like which parts of its tails (a definition names what it defines a kind of). On frozen
    features it learns nothing else, so that it holds for entities and words that training lacks. Without norm and dropout.

    Args:
        width: d.
        parts: P, divides d.

    Raises:
        ConfigError: it does not.
    """

    reads_features = True

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, (0.0, 0.0, 0.0), "none")
        if width % parts:
            raise ConfigError(
                f"scoring: similarity compares {parts} equal parts of vectors that are {width} wide",
                remedy="give the number of parts that the features have (words: 3; others: 1)", key="model.parts", value=parts,
            )
        self.parts, self.relation_width = parts, parts * parts

    @classmethod
    def of(cls, config: ModelConfig, *settings: Any) -> Scorer:
        """See `Scorer.of`."""
        return cls(config.dim, config.parts)

    @classmethod
    def relation_width_of(cls, config: ModelConfig, *settings: Any) -> int:
        """See `Scorer.relation_width_of`."""
        return config.parts**2

    def combine(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Heads (..., d), relations (..., P * P) -> (..., d)."""
        parts = heads.unflatten(-1, (self.parts, -1))  # (..., P, d / P)
        weights = relations.unflatten(-1, (self.parts, self.parts)).transpose(-1, -2)  # (..., tail's part, head's part)
        return (weights @ parts).flatten(-2) * (_SHARPNESS / parts.shape[-1])

    def pair(self, heads: Tensor, tails: Tensor) -> Tensor:
        """See `DistMult.pair`; the last width is that of the relation vectors."""
        own, other = (vectors.unflatten(1, (self.parts, -1)) for vectors in (heads, tails))
        return (own @ other.transpose(1, 2)).flatten(1) * (_SHARPNESS / own.shape[-1])


def _norm(kind: str, width: int) -> nn.Module:
    return nn.BatchNorm1d(width) if kind == "batch" else nn.Identity()


def dropouts_of(config: ModelConfig) -> tuple[float, float, float]:
    """Probabilities for head, relation and context."""
    return config.dropout_input, config.dropout_relation, config.dropout_context


def scorer_class(config: ModelConfig) -> type[Scorer]:
    """The relation model named by `config.scoring`: the product's or one's own."""
    kind: type[Scorer] = named("scorer", config.scoring).target
    return kind


def build_scorer(config: ModelConfig) -> Scorer:
    """The relation model named by `config.scoring`."""
    return scorer_class(config).of(*config.arguments(named("scorer", config.scoring)))


def relation_width(config: ModelConfig) -> int:
    """Width of relation vectors under the configured relation model."""
    return scorer_class(config).relation_width_of(*config.arguments(named("scorer", config.scoring)))
