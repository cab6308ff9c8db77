"""IMF: project -> fuse -> score per modality -> decide (WWW 2023, arXiv 2303.10816, section 2).

Shapes: `B` queries, `N` entities, `R` relations (2R with inverses), `M` branches (structure, each modality, fused),
`d` entity width, `r` relation width, `f` width of a modality's frozen features, `C` candidates of a chunk.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from imf_core.config import FUSED, STRUCTURE, ModelConfig, TrainConfig
from imf_core.data.modality import Modality
from imf_core.model.decision import Decision, combine, present_weights
from imf_core.model.fusion import TuckerFusion
from imf_core.model.initial import start_from
from imf_core.model.joint_binary import joint_binary_loss
from imf_core.model.joint_softmax import joint_softmax_loss
from imf_core.model.losses import Positives, binary_loss, binary_loss_of_probabilities, contrastive_loss, softmax_loss
from imf_core.model.scoring import Scorer, build_scorer, relation_width
from imf_core.model.target import JointTarget


@dataclass(frozen=True)
class Tables:
    """Vectors of all nodes in each branch: entities (N, d) and relations (2R, r)."""

    entities: dict[str, Tensor]
    relations: dict[str, Tensor]


class ModalityTable(nn.Module):
    """A modality's frozen features, projected to d (model section 1).

    Args:
        modality: features and presence mask of the N entities.
        width: d.
        policy: what stands in for a missing row: `learned` (one trained vector), `mean` (of the present ones), `neutral`
            (1 in the fusion's product; zero elsewhere).
        finetune: train the projected table itself instead of the projection (the published code's choice).
    """

    def __init__(self, modality: Modality, width: int, policy: str, finetune: bool) -> None:
        super().__init__()
        self.policy = policy
        mask = torch.from_numpy(modality.mask.copy())
        self.complete = bool(mask.all())
        self.register_buffer("mask", mask)
        self.mask: Tensor
        features = _shared_tensor(modality.standardised())
        projection = nn.Linear(modality.width, width)
        nn.init.normal_(projection.weight, std=(modality.width * width) ** -0.5)  # rows of unit length: first scores of order 1
        nn.init.zeros_(projection.bias)
        self.projection: nn.Linear | None = None
        self.features: Tensor | None
        self.table: nn.Parameter | None = None
        if finetune:
            with torch.no_grad():
                self.table = nn.Parameter(projection(features))
            self.register_buffer("features", None)
        else:
            self.projection = projection
            self.register_buffer("features", features)
        self.missing = nn.Parameter(torch.randn(width) * 0.1) if policy == "learned" and not self.complete else None

    def forward(self) -> Tensor:
        """(N, d): projected features, missing rows filled after the policy."""
        if self.projection is not None:
            projected: Tensor = self.projection(self.features)
        else:
            assert self.table is not None
            projected = self.table
        if self.complete:
            return projected
        filler: Tensor
        if self.missing is not None:
            filler = self.missing
        elif self.policy == "mean":
            weight = self.mask.to(projected.dtype)
            filler = (weight @ projected) / weight.sum()
        else:
            filler = torch.zeros((), dtype=projected.dtype, device=projected.device)
        return torch.where(self.mask[:, None], projected, filler)


def _shared_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the array's own memory, read-only or not: features are never written to, and may be a file all trials map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


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
            self.fuse_entities = TuckerFusion(width, len(views), config.fusion_rank, config.dropout_fusion)
            self.fuse_relations = TuckerFusion(narrow, len(views), config.fusion_rank, config.dropout_fusion)
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

    def tables(self) -> Tables:
        """Compute the vectors of all nodes; once a training step, once an evaluation."""
        entities = {STRUCTURE: self.structure, **{name: table() for name, table in self.features.items()}}
        relations = {name: self.relations[name] for name in entities}
        if self.modality_names:
            neutral = self.config.missing == "neutral"
            masks = [self.mask(view) if neutral else None for view in entities]
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
        return [
            self._scorer(branch).context(tables.entities[branch][heads], tables.relations[branch], relations)
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

    def forward(self, heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig) -> dict[str, Tensor]:
        """Loss of a batch (model section 4).

        Args:
            heads, relations: (B,) ids.
            positives: known answers of the batch.
            train: label smoothing.

        Returns:
            `total` and its parts (`structure`, ..., `joint`, `contrastive`), scalars in nats.
        """
        with torch.autocast(heads.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            tables = self.tables()
            contexts = [context.float() for context in self.contexts(tables, heads, relations)]
        if self.scores_are_products:
            parts = self._fused_parts(tables, contexts, heads, relations, positives, train)
        else:
            parts = self._plain_parts(self.branch_scores(tables, contexts), heads, relations, positives, train)
        if self.modality_names and self.config.contrastive_weight > 0:
            parts["contrastive"] = self._contrastive(tables, heads.unique())
            parts["total"] = parts["total"] + self.config.contrastive_weight * parts["contrastive"]
        return parts

    def _fused_parts(
        self,
        tables: Tables,
        contexts: Sequence[Tensor],
        heads: Tensor,
        relations: Tensor,
        positives: Positives,
        train: TrainConfig,
    ) -> dict[str, Tensor]:
        """Losses of the branches and the decision in one pass (the scores are products of context and table)."""
        target = JointTarget(
            positives, train.label_smoothing, train.weighting == "triple", self.config.joint_weight,
            self.decision_weights(heads, relations), [self.mask(branch) for branch in self.branches], train.precision,
            train.memory_budget_mb * 2**20,
        )
        joint_loss = joint_softmax_loss if self.loss_kind == "ce" else joint_binary_loss
        total, values = joint_loss(contexts, [tables.entities[branch] for branch in self.branches], target)
        names = (*self.branches, "joint")
        return {"total": total, **dict(zip(names, values, strict=False))}

    def _plain_parts(
        self, scores: Sequence[Tensor], heads: Tensor, relations: Tensor, positives: Positives, train: TrainConfig
    ) -> dict[str, Tensor]:
        """Losses by autograd, for distances; the one-pass form is tested against it."""
        parts: dict[str, Tensor] = {}
        log_norms: list[Tensor] = []
        for branch, score in zip(self.branches, scores, strict=True):
            if self.loss_kind == "ce":
                log_norms.append(torch.logsumexp(score, dim=1))
                parts[branch] = softmax_loss(
                    score, positives, train.label_smoothing, log_norms[-1], train.weighting == "triple"
                )
            else:
                parts[branch] = binary_loss(score, positives, train.label_smoothing)
        total = torch.stack(list(parts.values())).sum()
        if len(scores) > 1 and self.config.joint_weight > 0:
            decided = self.decide(scores, log_norms, self.decision_weights(heads, relations))
            if self.loss_kind == "ce":
                parts["joint"] = softmax_loss(decided, positives, train.label_smoothing, None, train.weighting == "triple")
            else:
                parts["joint"] = binary_loss_of_probabilities(decided, positives, train.label_smoothing)
            total = total + self.config.joint_weight * parts["joint"]
        return {"total": total, **parts}

    def _contrastive(self, tables: Tables, nodes: Tensor) -> Tensor:
        """Mean InfoNCE over the pairs of modalities, each over the nodes (B,) that have both."""
        losses = []
        for first, second in combinations((STRUCTURE, *self.modality_names), 2):
            both = nodes
            for mask in (self.mask(first), self.mask(second)):
                if mask is not None:
                    both = both[mask[both]]
            if len(both) > 1:
                losses.append(
                    contrastive_loss(tables.entities[first][both], tables.entities[second][both], self.config.temperature)
                )
        return torch.stack(losses).mean() if losses else self.structure.new_zeros(())

    def _scorer(self, branch: str) -> Scorer:
        scorer = self.scorers[branch]
        assert isinstance(scorer, Scorer)
        return scorer
