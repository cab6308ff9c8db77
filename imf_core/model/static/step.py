"""The losses of a batch with all branches in one launch each: what `Imf.forward` computes branch by branch.

The shapes depend on the plan's sizes alone and nothing is read back, so a GPU can run the step as one captured graph.

Shapes: `B` queries, `N` entities, `R` relations (2R with inverses), `M` branches in groups of `G`, `V` views, `d` entity width,
`c` entities that lack a modality.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imf_core.config import FUSED, STRUCTURE
from imf_core.config_train import TrainConfig
from imf_core.model.branches import Tables
from imf_core.model.decision import kept_weights, partial_columns
from imf_core.model.fusion.base import presence
from imf_core.model.imf import Imf, autocast
from imf_core.model.losses.contrastive import contrastive_over_stack
from imf_core.model.losses.distillation import SoftTargets
from imf_core.model.losses.own import OwnLoss
from imf_core.model.losses.target import JointTarget, Positives
from imf_core.model.scoring import Scorer
from imf_core.model.static.contexts import STACKED, shape_of, stacked_contexts
from imf_core.model.static.losses import StackedTarget, stacked_loss
from imf_core.model.static.plan import Plan, Sizes
from imf_core.parts.registry import named
from imf_core.runtime import is_out_of_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """Branches that are computed together.

    Args:
        names: of the G branches.
        scorers: their relation models.
    """

    names: tuple[str, ...]
    scorers: tuple[Scorer, ...]


class StaticStep(nn.Module):
    """The training step of a model in static shapes.

    Args:
        model: one for which `why_not_static` gives None, on its device.
        settings: of the training.

    Attributes:
        groups: the branches by shape.
        order: (M,) position in `model.branches` of each branch, in the order of the groups; None if that is the same.
        has: (N, M) float, 1 where an entity has the modality of the branch; None if none lacks one.
        columns: (c,) int64, the entities that lack a modality; None if none does.
        usable: (M, c) bool, which branches know them.
        present: (V, N, 1) bool, which entities have each view; None if all have all.
    """

    order: Tensor | None
    has: Tensor | None
    columns: Tensor | None
    usable: Tensor | None
    present: Tensor | None

    def __init__(self, model: Imf, settings: TrainConfig) -> None:
        super().__init__()
        self.model, self.settings = model, settings
        self._compiled: Callable[..., dict[str, Tensor]] | None = None
        by_shape: dict[object, list[str]] = {}
        for name in model.branches:
            by_shape.setdefault(shape_of(model.scorer(name)), []).append(name)
        self.groups = [Group(tuple(names), tuple(map(model.scorer, names))) for names in by_shape.values()]
        self.names = [name for group in self.groups for name in group.names]
        positions = [model.branches.index(name) for name in self.names]
        device = model.structure.device
        order = None if positions == sorted(positions) else torch.tensor(positions, device=device)
        masks = [model.mask(name) for name in self.names]
        columns = partial_columns(masks, 0, model.num_entities)
        has = presence(model.structure, masks)  # (N, M)
        for name, constant in (
            ("order", order), ("columns", columns), ("has", None if has is None else has.float()),
            ("usable", None if has is None else has[columns].T.contiguous()),
            ("present", None if has is None else has.T[: 1 + len(model.modality_names), :, None].contiguous()),
        ):
            self.register_buffer(name, constant, persistent=False)

    def forward(
        self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig, soft: SoftTargets | None = None,
        plan: Plan | None = None,
    ) -> dict[str, Tensor]:
        """Loss of a batch, see `losses`; without a plan branch by branch, as `Imf.forward`."""
        if plan is None:
            parts: dict[str, Tensor] = self.model(heads, relations, positives, train, soft)
            return parts
        if self._compiled is not None:
            try:
                return self._compiled(heads, relations, positives, soft, plan)
            except RuntimeError as error:  # of torch.compile: it raises before anything is computed
                if is_out_of_memory(error):
                    raise
                logger.warning("train.compile: the step cannot be compiled (%s): it goes on without", str(error).split("\n")[0])
                self._compiled = None
        return self.losses(heads, relations, positives, soft, plan)

    def compile_losses(self, backend: str = "inductor") -> None:
        """From now on `losses` is traced by `torch.compile`, once for each size of batch."""
        self._compiled = torch.compile(self.losses, backend=backend, dynamic=False)

    def losses(
        self, heads: Tensor, relations: Tensor, positives: Positives, soft: SoftTargets | None, plan: Plan
    ) -> dict[str, Tensor]:
        """Loss of a batch in static shapes; result as of `Imf.forward`.

        Args:
            heads, relations: (B,) int64 ids.
            positives, plan: of the batch, from `Planner.plan`.
            soft: a teacher's answers to these queries; None without a teacher.
        """
        model, train, config = self.model, self.settings, self.model.config
        with autocast(heads.device, train):
            views, entities, vectors = self._tables()
            contexts = [
                stacked_contexts(group.scorers, table.index_select(1, heads), asked, relations, plan)
                for group, table, asked in zip(self.groups, entities, vectors, strict=True)
            ]
        joint = len(self.names) > 1 and config.joint_weight > 0
        target = StackedTarget(
            plan, train.label_smoothing, config.joint_weight, self._decision_weights(heads, relations) if joint else None,
            self.columns, self.usable, torch.bfloat16 if train.precision == "bf16" else contexts[0].dtype,
        )
        total, values = stacked_loss(model.loss_kind, contexts, entities, target)
        parts = {"total": total, **dict(zip((*self.names, "joint"), values.unbind(), strict=False))}
        if plan.pair_weights.numel():
            parts["contrastive"] = contrastive_over_stack(views, plan.nodes, plan.pair_weights, config.temperature)
            parts["total"] = torch.add(parts["total"], parts["contrastive"], alpha=config.contrastive_weight)
        if soft is not None or train.regularizer != "none":
            self._add_auxiliary(parts, entities, vectors, contexts, (heads, relations), positives, train, soft)
        return parts

    def _tables(self) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Views (V, N, d), then per group the vectors of entities (G, N, d) and of relations (G, 2R, r); as `Imf.tables`."""
        model = self.model
        names = [STRUCTURE, *model.modality_names]
        views, of_views = self._views(), torch.stack([model.relations[name] for name in names])
        entities: dict[str, Tensor] = {}
        relations = dict(model.relations.items())
        if FUSED in model.of_branch:
            nobody, neutral = [None] * len(names), model.config.missing == "neutral"
            entities[FUSED] = model.fuse_entities.fuse_stacked(views, list(map(model.mask, names)) if neutral else nobody)
            relations[FUSED] = model.fuse_relations.fuse_stacked(of_views, nobody)
        entities |= dict(model.head_structure.items())
        entities |= {name: table() for name, table in model.head_features.items()}
        # The first group begins with the views. They are stacked once: so are the gradients that they get from both uses.
        further = [self.groups[0].names[len(names) :], *(group.names for group in self.groups[1:])]
        return views, _with_rows(views, entities, further), _with_rows(of_views, relations, further)

    def _views(self) -> Tensor:
        """(V, N, d): structure and the modalities, missing rows filled."""
        tables = [self.model.feature_tables[name] for name in self.model.modality_names]
        projected = [table.projected() for table in tables]
        views = torch.stack([self.model.structure, *projected])
        if self.present is None:
            return views
        fillers = [table.filler(rows) for table, rows in zip(tables, projected, strict=True)]
        zeros = views.new_zeros(views.shape[2])
        return torch.where(
            self.present, views, torch.stack([zeros, *(zeros if row is None else row for row in fillers)])[:, None]
        )

    def _decision_weights(self, heads: Tensor, relations: Tensor) -> Tensor:
        """(B, M) in the order of the groups; as `Imf.decision_weights`."""
        weights = self.model.decision.weights(relations)
        weights = weights if self.order is None else weights.index_select(1, self.order)
        return weights if self.has is None else kept_weights(weights, self.has.index_select(0, heads).to(weights.dtype))

    def _add_auxiliary(
        self, parts: dict[str, Tensor], entities: Sequence[Tensor], vectors: Sequence[Tensor], contexts: Sequence[Tensor],
        queries: tuple[Tensor, Tensor], positives: Positives, train: TrainConfig, soft: SoftTargets | None,
    ) -> None:
        """See `Imf.add_auxiliary`: branch by branch."""
        by_name = [
            dict(zip(self.names, [row for group in stacked for row in group.unbind()], strict=True))
            for stacked in (entities, vectors, contexts)
        ]
        target = JointTarget(
            positives, train.label_smoothing, train.weighting == "triple", self.model.config.joint_weight,
            self.model.decision_weights(*queries), [self.model.mask(name) for name in self.model.branches],
        )
        ordered = [by_name[2][name] for name in self.model.branches]
        self.model.add_auxiliary(parts, Tables(by_name[0], by_name[1]), ordered, queries, target, train, soft)

    def bytes_needed(self, sizes: Sizes, element_size: int = 4) -> int:
        """Memory that the scores of a step take at most, with their gradients."""
        copies = 2 * len(self.names) + 4 * (self.model.config.joint_weight > 0)
        contrasted = 3 * (len(self.model.modality_names) + 1) ** 2 * sizes.queries**2
        contrasted = contrasted if self.model.config.contrastive_weight > 0 else 0
        return element_size * (copies * sizes.queries * self.model.num_entities + contrasted)


def _with_rows(first: Tensor, tables: Mapping[str, Tensor], names: Sequence[Sequence[str]]) -> list[Tensor]:
    """Per group the tables of its names in one tensor, those of the first group after what `first` has already."""
    stacked = [torch.stack([tables[name] for name in group]) if group else first[:0] for group in names]
    return [torch.cat([first, stacked[0]]) if names[0] else first, *stacked[1:]]


def why_not_static(model: Imf, train: TrainConfig) -> str | None:
    """What keeps a training from static shapes, for a line in the log; None if nothing does."""
    if train.samples(model.num_entities):
        return "train.num_negatives: the entities of a step are drawn anew each time"
    if OwnLoss.of(train) is not None:
        return f"train.loss: {train.loss} is not the product's"
    if train.relation_weight > 0:
        return "train.relation_weight: that loss normalises the heads of all known answers, whose number changes"
    if train.regularizer != "none" and named("regularizer", train.regularizer).own:
        return f"train.regularizer: {train.regularizer} is not the product's"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "a loss or a fusion operator watches the model's own pass"
    for name in model.branches:
        if type(model.scorer(name)) not in STACKED:
            return f"model.scoring: the branch {name} is scored by a relation model that has no stacked form"
    return None
