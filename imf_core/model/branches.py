"""The branches of a model: which view each scores, with which settings, and their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from imf_core.config import FUSED, STRUCTURE, ModelConfig
from imf_core.model.scoring import scorer_class


@dataclass(frozen=True)
class Tables:
    """Vectors in each branch, by its name: entities (N, d) or (n, d), relations (2R, r)."""

    entities: dict[str, Tensor]
    relations: dict[str, Tensor]


@dataclass(frozen=True)
class Branch:
    """One of the predictions that a model combines.

    Args:
        name: of the branch.
        view: whose entity vectors it scores: structure, a modality, or fused.
        settings: width, relation model, dropout of this branch.
        penalty: factor on `train.regularizer_weight`, >= 0.
        optimizer: of its vectors, `adam` or `adagrad`; None: as `train.optimizer`.
        further: one of `model.all_heads`, with vectors of its own.
        compares: it scores the features of its modality as they are, at their own width.
    """

    name: str
    view: str
    settings: ModelConfig
    penalty: float = 1.0
    optimizer: str | None = None
    further: bool = False
    compares: bool = False


def branches_of(config: ModelConfig, modalities: Sequence[str]) -> tuple[Branch, ...]:
    """Structure, each modality in use, fused (if there is a modality and a fusion), then further heads whose view is in use.
    A modality that only heads score has no branch before those, and no part in the fused one.

    Args:
        config: of the model.
        modalities: names of those in use.
    """
    views = (STRUCTURE, *plain_views(config, modalities))
    plain = [Branch(view, view, config) for view in (*views, *((FUSED,) if len(views) > 1 and config.fusion != "none" else ()))]
    heads = [
        Branch(
            head.branch, head.view, settings := config.of_head(head), head.penalty, head.optimizer, further=True,
            compares=head.view != STRUCTURE and scorer_class(settings).reads_features,
        )
        for head in config.all_heads if head.view in (STRUCTURE, *modalities)
    ]
    return (*plain, *heads)


def with_widths(branches: Sequence[Branch], widths: Mapping[str, int]) -> list[Branch]:
    """The branches, those that compare features as they are at the width f of their modality.

    Args:
        branches: of a model.
        widths: f by modality.
    """
    return [
        replace(branch, settings=branch.settings.model_copy(update={"dim": widths[branch.view]}))
        if branch.compares else branch
        for branch in branches
    ]


def plain_views(config: ModelConfig, modalities: Sequence[str]) -> tuple[str, ...]:
    """Those of the modalities that have a branch of their own and are fused: not those that only heads score."""
    return tuple(name for name in modalities if name not in config.heads_only)
