"""IMF: project -> fuse -> score per modality -> decide (WWW 2023, arXiv 2303.10816, section 2).

Shapes: `B` queries, `N` entities, `R` relations (2R with inverses), `M` branches (structure, each modality, fused),
`d` entity width, `r` relation width, `f` width of a modality's frozen features, `C` candidates of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imf_core.config import FUSED, STRUCTURE, ModelConfig, TrainConfig
from imf_core.data.features.modality import Modality
from imf_core.model.cold_entities import Unlinked
from imf_core.model.decision import Decision, combine, present_weights
from imf_core.model.fusion.build import build_fusion
from imf_core.model.grouped import Grouping
from imf_core.model.losses.binary import joint_binary_loss
from imf_core.model.losses.distances import plain_losses
from imf_core.model.losses.distillation import SoftTargets, soft_loss
from imf_core.model.losses.plain_forms import Positives, contrastive_over_pairs
from imf_core.model.losses.sample import draw_distinct
from imf_core.model.losses.sampled import sampled_losses
from imf_core.model.losses.softmax import joint_softmax_loss
from imf_core.model.losses.target import JointTarget
from imf_core.model.modality_table import ModalityTable, start_from
from imf_core.model.scoring import Scorer, build_scorer, relation_width


@dataclass(frozen=True)
class Tables:
    """Vectors of all nodes in each branch: entities (N, d) and relations (2R, r)."""

    entities: dict[str, Tensor]
    relations: dict[str, Tensor]


class Imf(nn.Module):
    """The model. Its branches are `structure`, then each modality in the given order, then `fused` (if there is a modality).

    Args:
        config: sizes and behaviour.
        num_entities: N.
        num_relations: R, without inverses.
        modalities: the feature modalities in use; may be empty (structure only).
        loss: `ce` or `bce`; decides how the branches are combined.
        structure_table: (N, w) first values of the structure branch, see `start_from`; None: random ones.
    """

    def __init__(
        self, config: ModelConfig, num_entities: int, num_relations: int, modalities: Sequence[Modality], loss: str = "ce",
        structure_table: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.config, self.loss_kind = config, loss
        self.num_entities, self.num_relations = num_entities, num_relations
        self.modality_names = tuple(modality.name for modality in modalities)
        views = (STRUCTURE, *self.modality_names)
        self.branches = (*views, FUSED) if modalities else views
        width, narrow = config.dim, relation_width(config)
        self.structure = nn.Parameter(torch.empty(num_entities, width))
        nn.init.xavier_normal_(self.structure)
        self.unlinked: Unlinked | None = None  # entities whose rows training cannot teach
        if structure_table is not None:
            start_from(self.structure, structure_table)
        self.features = nn.ModuleDict(
            {item.name: ModalityTable(item, width, config.missing, config.finetune_features) for item in modalities}
        )
        self.relations = nn.ParameterDict(
            {view: nn.Parameter(nn.init.xavier_normal_(torch.empty(2 * num_relations, narrow))) for view in views}
        )
        self.scorers = nn.ModuleDict({branch: build_scorer(config) for branch in self.branches})
        if modalities:
            self.fuse_entities = build_fusion(config, width, len(views))
            self.fuse_relations = build_fusion(config, narrow, len(views))
        self.decision = Decision(config.decision, self.branches, 2 * num_relations, config.decision_weights)

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """The state without the frozen features and masks, which the data brings: what changes while training."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.endswith((".features", ".mask"))}

    def mask(self, branch: str) -> Tensor | None:
        """(N,) bool: who has the branch's modality; None where everyone has."""
        if branch not in self.features:
            return None
        table = self.features[branch]
        assert isinstance(table, ModalityTable)
        return None if table.complete else table.mask

    def tables(self, nodes: Tensor | None = None) -> Tables:
        """Compute the vectors of all nodes; once a training step, once an evaluation.

        Args:
            nodes: (n,) distinct entities: only theirs, in this order; the trained tables then get sparse gradients.
        """
        structure = self.structure if nodes is None else functional.embedding(nodes, self.structure, sparse=True)
        entities = {STRUCTURE: structure, **{name: table(nodes) for name, table in self.features.items()}}
        relations = {name: self.relations[name] for name in entities}
        if self.modality_names:
            neutral = self.config.missing == "neutral"
            masks = [_rows(self.mask(view), nodes) if neutral else None for view in entities]
            entities[FUSED] = self.fuse_entities(list(entities.values()), masks)
            relations[FUSED] = self.fuse_relations(list(relations.values()))
        return Tables(entities, relations)

    def contexts(self, tables: Tables, heads: Tensor, relations: Tensor) -> list[Tensor]:
        """Context vector of each query in each branch: M tensors (B, d).

        Args:
            tables: from `tables()`.
            heads: (B,) entity ids.
            relations: (B,) relation ids below 2R.
        """
        grouping = Grouping(relations) if self.config.scoring == "contextual" else None
        return [
            self._scorer(branch).context(tables.entities[branch][heads], tables.relations[branch], relations, grouping)
            for branch in self.branches
        ]

    def branch_scores(
        self, tables: Tables, contexts: Sequence[Tensor], low: int | Tensor = 0, high: int | None = None
    ) -> list[Tensor]:
        """Raw scores in each branch, M tensors (B, C): of the candidates low..high, or of those whose ids (C,) `low` holds."""
        chosen = low if isinstance(low, Tensor) else slice(low, high)
        rows = Tables({branch: table[chosen] for branch, table in tables.entities.items()}, {})
        return list(self.each_score(rows, contexts))

    def each_score(self, rows: Tables, contexts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Raw scores (B, C) of all candidates in `rows`, one branch after the other."""
        for branch, context in zip(self.branches, contexts, strict=True):
            yield self._scorer(branch).score(context, rows.entities[branch])

    @property
    def scores_are_products(self) -> bool:
        """Whether a score is the product of context and candidate."""
        return self.config.scoring != "transe"

    def decision_weights(self, heads: Tensor, relations: Tensor) -> Tensor:
        """(B, M) weights, 0 where the head lacks the modality."""
        masks = [None if mask is None else mask[heads] for mask in map(self.mask, self.branches)]
        return present_weights(self.decision.weights(relations), masks)

    def decide(
        self, scores: Sequence[Tensor], log_norms: Sequence[Tensor], weights: Tensor, low: int = 0, high: int | None = None
    ) -> Tensor:
        """Combine the branches' scores of the candidates low..high (model section 5).

        Args:
            scores: M tensors (B, C) of raw branch scores.
            log_norms: M tensors (B,): logsumexp of each branch over **all** entities (unused under `bce`).
            weights: (B, M) from `decision_weights`.

        Returns:
            (B, C): weighted log-probabilities under `ce`, probabilities under `bce`; higher is more plausible.
        """
        if len(scores) == 1:
            return scores[0] - log_norms[0][:, None] if self.loss_kind == "ce" else scores[0].sigmoid()
        masks = [None if mask is None else mask[low:high] for mask in map(self.mask, self.branches)]
        if self.loss_kind == "bce":
            return combine([score.sigmoid() for score in scores], weights, masks)
        return combine([score - norm[:, None] for score, norm in zip(scores, log_norms, strict=True)], weights, masks)

    def forward(
        self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig, soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        """Loss of a batch (model section 4).

        Args:
            heads, relations: (B,) ids.
            positives: known answers of the batch.
            train: label smoothing.
            soft: a teacher's answers, where there is one.

        Returns:
            `total` and its parts (`structure`, ..., `joint`, `contrastive`, `distil`), scalars in nats.
        """
        if train.num_negatives is not None and train.num_negatives < self.num_entities:
            return self._sampled_parts(heads, relations, positives, train, train.num_negatives, soft)
        with _autocast(heads.device, train):
            tables = self.tables()
            contexts = [_at_least_float(context) for context in self.contexts(tables, heads, relations)]
        target = JointTarget(
            positives, train.label_smoothing, train.weighting == "triple", self.config.joint_weight,
            self.decision_weights(heads, relations), [self.mask(branch) for branch in self.branches], train.precision,
            (train.memory_budget_mb or 512) * 2**20,
        )
        total, values = (self._fused_losses if self.scores_are_products else self._plain_losses)(tables, contexts, target)
        parts = {"total": total, **dict(zip((*self.branches, "joint"), values, strict=False))}
        if self.modality_names and self.config.contrastive_weight > 0:
            self._add_contrastive(parts, tables, heads.unique(), target.masks)
        if soft is not None and train.distil_weight > 0:
            self._add_distil(parts, tables, contexts, soft, target, train)
        return parts

    def _fused_losses(self, tables: Tables, contexts: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
        """Losses of the branches and the decision in one pass: the scores are products of context and table."""
        joint_loss = joint_softmax_loss if self.loss_kind == "ce" else joint_binary_loss
        return joint_loss(contexts, [tables.entities[branch] for branch in self.branches], target)

    def _plain_losses(self, tables: Tables, contexts: Sequence[Tensor], target: JointTarget) -> tuple[Tensor, Tensor]:
        """The same by autograd, for distances; the one-pass form is tested against it."""

        def score(block: Sequence[Tensor]) -> list[Tensor]:
            return self.branch_scores(tables, block)

        return plain_losses(score, self.decide, contexts, self.num_entities, target, self.loss_kind)

    def _sampled_parts(
        self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig, count: int,
        soft: SoftTargets | None = None,
    ) -> dict[str, Tensor]:
        """As `forward`, estimated from `count` sampled entities: only the vectors of entities that the batch touches exist."""
        drawn = draw_distinct(self.num_entities, count, heads.device)
        taught = heads[:0] if soft is None else soft.answers.flatten()
        nodes, place = torch.cat([heads, positives.tails, drawn, taught]).unique(return_inverse=True)
        own_heads, tails, negatives, answers = place.split([len(heads), len(positives.tails), count, len(taught)])
        with _autocast(heads.device, train):
            tables = self.tables(nodes)
            contexts = [_at_least_float(context) for context in self.contexts(tables, own_heads, relations)]
        masks = [_rows(self.mask(branch), nodes) for branch in self.branches]
        target = JointTarget(
            Positives(positives.rows, tails, positives.counts), train.label_smoothing, train.weighting == "triple",
            self.config.joint_weight, self.decision_weights(heads, relations), masks,
        )

        def block(branch: int, context: Tensor, rows: Tensor) -> Tensor:
            with _autocast(heads.device, train):
                return self._scorer(self.branches[branch]).score(context, rows)

        def pairs(branch: int, context: Tensor, rows: Tensor) -> Tensor:
            return self._scorer(self.branches[branch]).score_pairs(context, rows)

        entities = [tables.entities[branch] for branch in self.branches]
        total, values = sampled_losses(
            contexts, entities, target, "ce" if self.loss_kind == "ce" else "bce", negatives, self.num_entities, block, pairs,
            [parameter for branch in self.branches for parameter in self._scorer(branch).score_parameters()],
        )
        parts = {"total": total, **dict(zip((*self.branches, "joint"), values, strict=False))}
        if self.modality_names and self.config.contrastive_weight > 0:
            self._add_contrastive(parts, tables, own_heads.unique(), masks)
        if soft is not None and train.distil_weight > 0:
            rows = SoftTargets(answers.view_as(soft.answers), soft.probabilities)
            self._add_distil(parts, tables, contexts, rows, target, train)
        return parts

    def _add_contrastive(
        self, parts: dict[str, Tensor], tables: Tables, nodes: Tensor, masks: Sequence[Tensor | None]
    ) -> None:
        """Add the contrastive constraint over the nodes (rows of the tables)."""
        views = [tables.entities[view] for view in (STRUCTURE, *self.modality_names)]
        parts["contrastive"] = contrastive_over_pairs(views, masks[: len(views)], nodes, self.config.temperature)
        parts["total"] = parts["total"] + self.config.contrastive_weight * parts["contrastive"]

    def _add_distil(
        self, parts: dict[str, Tensor], tables: Tables, contexts: Sequence[Tensor], soft: SoftTargets, target: JointTarget,
        train: TrainConfig,
    ) -> None:
        """Add the loss on a teacher's answers, which are rows of the tables."""
        rows, count = soft.answers.flatten(), soft.answers.shape[1]
        scores = [
            self._scorer(branch).score_pairs(
                context.repeat_interleave(count, dim=0), _at_least_float(tables.entities[branch][rows])
            ).view(-1, count)
            for branch, context in zip(self.branches, contexts, strict=True)
        ]
        usable = [None if mask is None else mask[soft.answers] for mask in target.masks]
        parts["distil"] = soft_loss(scores, soft, target.weights.detach(), usable, train.distil_temperature, self.loss_kind)
        parts["total"] = parts["total"] + train.distil_weight * parts["distil"]

    def sparse_parameters(self, train: TrainConfig) -> dict[str, nn.Parameter]:
        """The trained entity tables by name, where a step touches only some of their rows."""
        if train.num_negatives is None or train.num_negatives >= self.num_entities:
            return {}
        own = dict(self.named_parameters())
        wanted = ["structure", *(f"features.{name}.table" for name in self.modality_names)]
        return {name: own[name] for name in wanted if name in own}

    def _scorer(self, branch: str) -> Scorer:
        scorer = self.scorers[branch]
        assert isinstance(scorer, Scorer)
        return scorer


def _rows(mask: Tensor | None, nodes: Tensor | None) -> Tensor | None:
    return mask if mask is None or nodes is None else mask[nodes]


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values


def _autocast(device: torch.device, train: TrainConfig) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")
