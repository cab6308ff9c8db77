"""IMF: project -> fuse -> score in each branch -> combine the branches (WWW 2023, arXiv 2303.10816, section 2).

Shapes: `B` queries, `N` entities, `n` of them that a batch touches, `R` relations (2R with inverses), `M` branches (structure,
each modality, fused), `d` entity width, `P` known answers of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imf_core.config import STRUCTURE
from imf_core.config_train import TrainConfig
from imf_core.model.branch_model import BranchModel, rows_of
from imf_core.model.branches import Tables
from imf_core.model.losses.autograd import joint_autograd_loss
from imf_core.model.losses.binary import joint_binary_loss
from imf_core.model.losses.contrastive import contrastive_over_pairs
from imf_core.model.losses.distillation import SoftTargets, distillation_loss
from imf_core.model.losses.negatives import draw_negatives
from imf_core.model.losses.own import OwnLoss
from imf_core.model.losses.relation import relation_loss
from imf_core.model.losses.sampled import joint_sampled_loss
from imf_core.model.losses.softmax import joint_softmax_loss
from imf_core.model.losses.target import JointTarget, Positives
from imf_core.parts.registry import Part, named


class Imf(BranchModel):
    """The model, whose forward pass gives the losses of a batch; sizes and branches are those of `BranchModel`."""

    def forward(
        self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig, soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        """Loss of a batch (model section 4).

        Args:
            heads, relations: (B,) int64 ids; relations below 2R.
            positives: the P known answers of the batch.
            train: label smoothing, weighting, precision, memory budget, negatives.
            soft: a teacher's answers to these queries; None without a teacher.

        Returns:
            `total` and its parts (`structure`, ..., `joint`, `contrastive`, `distil`, `penalty`, `relation`), scalars in nats.
        """
        if train.num_negatives is not None and train.num_negatives < self.num_entities:
            return self.sampled_parts(heads, relations, positives, train, train.num_negatives, soft)
        with autocast(heads.device, train):
            tables = self.tables()
            contexts = [_at_least_float(context) for context in self.contexts(tables, heads, relations)]
        target = JointTarget(
            positives, train.label_smoothing, train.weighting == "triple", self.config.joint_weight,
            self.decision_weights(heads, relations), [self.mask(branch) for branch in self.branches], train.precision,
            (train.memory_budget_mb or 512) * 2**20,
        )
        own = OwnLoss.of(train)
        if self.scores_are_products and own is None:
            total, values = self.one_pass_loss(tables, contexts, target)
        else:
            total, values = self.autograd_loss(tables, contexts, target, own)
        parts = {"total": total, **dict(zip((*self.branches, "joint"), values, strict=False))}
        self._add_contrastive(parts, tables, heads, target.masks)
        self.add_auxiliary(parts, tables, contexts, (heads, relations), target, train, soft)
        return parts

    def one_pass_loss(self, tables: Tables, contexts: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
        """Total and parts of the losses over all entities, where scores are products; see `joint_softmax_loss`."""
        joint_loss = joint_softmax_loss if self.loss_kind == "ce" else joint_binary_loss
        return joint_loss(contexts, [tables.entities[branch] for branch in self.branches], target)

    def autograd_loss(
        self, tables: Tables, contexts: Sequence[Tensor], target: JointTarget, own: OwnLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `one_pass_loss`, for any scores; see `joint_autograd_loss`."""

        def score(block: Sequence[Tensor]) -> list[Tensor]:
            return self.branch_scores(tables, block)

        return joint_autograd_loss(score, self.combine, contexts, self.num_entities, target, self.loss_kind, own)

    def sampled_parts(
        self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig, count: int,
        soft: SoftTargets | None = None,
    ) -> dict[str, Tensor]:
        """As `forward`, estimated from `count` sampled entities: only the vectors of the n touched entities are computed."""
        drawn = draw_negatives(self.num_entities, count, heads)  # (k,)
        soft_answers = heads[:0] if soft is None else soft.answers.flatten()
        touched = heads, positives.tails, drawn, soft_answers
        nodes, rows = torch.cat(touched).unique(return_inverse=True)  # (n,)
        head_rows, tails, negatives, answers = rows.split([len(part) for part in touched])
        with autocast(heads.device, train):
            tables = self.tables(nodes)
            contexts = [_at_least_float(context) for context in self.contexts(tables, head_rows, relations)]
        masks = [rows_of(self.mask(branch), nodes) for branch in self.branches]
        target = JointTarget(
            Positives(positives.rows, tails, positives.counts), train.label_smoothing, train.weighting == "triple",
            self.config.joint_weight, self.decision_weights(heads, relations), masks,
        )

        def block(branch: int, context: Tensor, rows: Tensor) -> Tensor:
            with autocast(heads.device, train):
                return self.scorer(self.branches[branch]).score(context, rows)

        def pairs(branch: int, context: Tensor, rows: Tensor) -> Tensor:
            return self.scorer(self.branches[branch]).score_pairs(context, rows)

        entities = [tables.entities[branch] for branch in self.branches]
        total, values = joint_sampled_loss(
            contexts, entities, target, self.loss_kind, negatives, self.num_entities, block, pairs,
            [parameter for branch in self.branches for parameter in self.scorer(branch).score_parameters()],
        )
        parts = {"total": total, **dict(zip((*self.branches, "joint"), values, strict=False))}
        if soft is not None:
            soft = SoftTargets(answers.view_as(soft.answers), soft.probabilities)
        self._add_contrastive(parts, tables, head_rows, target.masks)
        self.add_auxiliary(parts, tables, contexts, (head_rows, relations), target, train, soft)
        return parts

    def _add_contrastive(
        self, parts: dict[str, Tensor], tables: Tables, heads: Tensor, masks: Sequence[Tensor | None]
    ) -> None:
        """Add the contrastive constraint on the views of the heads, rows of the tables."""
        if self.modality_names and self.config.contrastive_weight > 0:
            views = [tables.entities[view] for view in (STRUCTURE, *self.modality_names)]
            parts["contrastive"] = contrastive_over_pairs(views, masks[: len(views)], heads.unique(), self.config.temperature)
            parts["total"] = parts["total"] + self.config.contrastive_weight * parts["contrastive"]

    def add_auxiliary(
        self, parts: dict[str, Tensor], tables: Tables, contexts: Sequence[Tensor], queries: tuple[Tensor, Tensor],
        target: JointTarget, train: TrainConfig, soft: SoftTargets | None,
    ) -> None:
        """Add the losses on a teacher's answers, the norm penalty and the loss on the relations, where they have a weight.

        Args:
            parts: losses by name; `total` grows.
            tables, contexts: of all branches.
            queries: (B,) heads, as rows of the tables, and (B,) relations.
            target: answers and weights.
            train: weights of the losses.
            soft: a teacher's answers, as rows of the tables; None without a teacher.
        """
        weights = {}
        if soft is not None and train.distil_weight > 0:
            parts["distil"] = self._distil(tables, contexts, soft, target, train)
            weights["distil"] = train.distil_weight
        if train.regularizer != "none" and train.regularizer_weight > 0:
            part = named("regularizer", train.regularizer)
            parts["penalty"] = self._over_triples(tables, contexts, queries, target, part, train.arguments(part)[1:])
            weights["penalty"] = train.regularizer_weight
        if train.relation_weight > 0:
            parts["relation"] = self._over_triples(tables, contexts, queries, target)
            weights["relation"] = train.relation_weight
        for name, weight in weights.items():
            parts["total"] = parts["total"] + weight * parts[name]

    def _distil(
        self, tables: Tables, contexts: Sequence[Tensor], soft: SoftTargets, target: JointTarget, train: TrainConfig
    ) -> Tensor:
        """The loss on a teacher's answers (B, S)."""
        rows, count = soft.answers.flatten(), soft.answers.shape[1]
        scores = [
            self.scorer(branch).score_pairs(
                context.repeat_interleave(count, dim=0), _at_least_float(tables.entities[branch][rows])
            ).view(-1, count)  # (B, S)
            for branch, context in zip(self.branches, contexts, strict=True)
        ]
        usable = [None if mask is None else mask[soft.answers] for mask in target.masks]
        return distillation_loss(scores, soft, target.weights.detach(), usable, train.distil_temperature, self.loss_kind)

    def _over_triples(
        self, tables: Tables, contexts: Sequence[Tensor], queries: tuple[Tensor, Tensor], target: JointTarget,
        regularizer: Part | None = None, settings: tuple[Any, ...] = (),
    ) -> Tensor:
        """Sum over the branches of a penalty, or without one of the loss on the relations."""
        (heads, relations), positives, weights, losses = queries, target.positives, target.row_weights(), []
        for (name, branch), context in zip(self.of_branch.items(), contexts, strict=True):
            if regularizer is not None and not branch.penalty:
                continue
            scorer, table = self.scorer(name), _at_least_float(tables.relations[name])  # bf16 where they are fused
            first, answers = (  # (B, d), (P, d)
                _at_least_float(tables.entities[name][rows]) for rows in (heads, positives.tails)
            )
            if regularizer is None:
                losses.append(relation_loss(scorer, first, relations, answers, table, positives, weights))
            else:
                vectors = (first, table[relations], context, answers)
                losses.append(branch.penalty * regularizer.target(scorer, *vectors, positives, weights, *settings))
        return torch.stack(losses).sum() if losses else contexts[0].new_zeros(())


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values


def autocast(device: torch.device, train: TrainConfig) -> torch.autocast:
    """Products in bfloat16 if the training asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")
