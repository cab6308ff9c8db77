"""What the branches of a model compute: vectors of entities and relations, contexts of queries, scores, and how they combine.

Shapes: `B` queries, `N` entities, `n` of them that a batch touches, `R` relations (2R with inverses), `M` branches (structure,
each modality, fused), `d` entity width, `r` relation width, `C` candidates (all N or a part).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imf_core.config import FUSED, STRUCTURE, ModelConfig
from imf_core.config_train import TrainConfig
from imf_core.data.features.modality import Modality
from imf_core.model.branches import Tables, branches_of, plain_views, with_widths
from imf_core.model.cold_entities import ColdEntities
from imf_core.model.decision import Decision, combine, present_weights
from imf_core.model.fusion.build import build_fusion
from imf_core.model.grouped import Grouping, KeptMatrices
from imf_core.model.losses.own import reading_of
from imf_core.model.modality_table import ModalityTable, initialise, start_from
from imf_core.model.scoring import Scorer, build_scorer, relation_width


class BranchModel(nn.Module):
    """The model without its losses, which `Imf` adds.

    Its branches are `structure`, then each modality in the given order, then `fused` (if there is a modality and a fusion),
    then the further heads of the configuration whose view is in use.

    Args:
        config: sizes and behaviour.
        num_entities: N.
        num_relations: R, without inverses.
        modalities: the feature modalities in use; may be empty (structure only).
        loss: `ce` or `bce`, or a name that reads scores as one of them; the branches are combined as log-probabilities or as
            probabilities.
        structure_table: (N, w) initial values of the structure branch, see `start_from`; None: random ones.
    """

    def __init__(
        self, config: ModelConfig, num_entities: int, num_relations: int, modalities: Sequence[Modality], loss: str = "ce",
        structure_table: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.config, self.loss_kind = config, reading_of(loss)
        self.num_entities, self.num_relations = num_entities, num_relations
        by_name = {modality.name: modality for modality in modalities}
        self.all_modalities = tuple(by_name)
        self.modality_names = plain_views(config, self.all_modalities)
        views = (STRUCTURE, *self.modality_names)
        widths = {modality.name: modality.width for modality in modalities}
        self.of_branch = {branch.name: branch for branch in with_widths(branches_of(config, self.all_modalities), widths)}
        self.branches = tuple(self.of_branch)
        heads = [branch for branch in self.of_branch.values() if branch.further]
        width, narrow = config.dim, relation_width(config)
        self.structure = nn.Parameter(torch.empty(num_entities, width))
        initialise(self.structure, config.init_scale)
        self.cold_entities: ColdEntities | None = None  # their trained rows are replaced before each evaluation
        if structure_table is not None:
            start_from(self.structure, structure_table)
        table_of = partial(ModalityTable, policy=config.missing, finetune=config.finetune_features)
        self.features = nn.ModuleDict({name: table_of(by_name[name], width) for name in self.modality_names})
        self.relations = nn.ParameterDict()
        for name in (*views, *(head.name for head in heads)):
            settings = self.of_branch[name].settings
            self.relations[name] = nn.Parameter(torch.empty(2 * num_relations, relation_width(settings)))
            initialise(self.relations[name], settings.init_scale)
        self.scorers = nn.ModuleDict({name: build_scorer(branch.settings) for name, branch in self.of_branch.items()})
        if FUSED in self.of_branch:
            self.fuse_entities = build_fusion(config, width, len(views))
            self.fuse_relations = build_fusion(config, narrow, len(views))
        self.head_structure, self.head_features = nn.ParameterDict(), nn.ModuleDict()
        for head in heads:
            if head.view == STRUCTURE:
                own = nn.Parameter(torch.empty(num_entities, head.settings.dim))
                initialise(own, head.settings.init_scale)
                if structure_table is not None:
                    start_from(own, structure_table)
                self.head_structure[head.name] = own
            else:
                own_width = None if head.compares else head.settings.dim
                table = table_of(by_name[head.view], own_width)
                if (first := self._table_of(head.view)) is not None:
                    table.share(first)
                self.head_features[head.name] = table
        self.decision = Decision(config.decision, self.branches, 2 * num_relations, config.decision_weights)

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: the state without frozen features and masks, which come from the data."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.endswith((".features", ".mask"))}

    def mask(self, name: str) -> Tensor | None:
        """(N,) bool: which entities have a modality, or that of a branch; None if all do."""
        table = self._table_of(self.of_branch[name].view if name in self.of_branch else name)
        return None if table is None or table.complete else table.mask

    def _table_of(self, view: str) -> ModalityTable | None:
        """The table that holds a modality's features and mask; None for another view, or before it is there."""
        return next((table for name, table in self.feature_tables.items() if self.of_branch[name].view == view), None)

    def replace_cold_rows(self) -> None:
        """Overwrite the rows of cold entities in the trained entity tables, see `ColdEntities`."""
        if self.cold_entities is None:
            return
        if self.cold_entities.structure:
            for structure in self.structure_tables.values():
                self.cold_entities.replace_rows(structure)
        for table in self.feature_tables.values():
            if table.table is not None:
                self.cold_entities.replace_rows(table.table, None if table.complete else table.mask)

    @property
    def structure_tables(self) -> dict[str, nn.Parameter]:
        """(N, d) trained vectors of each branch that scores structure, by its name."""
        return {STRUCTURE: self.structure, **dict(self.head_structure.items())}

    @property
    def feature_tables(self) -> dict[str, ModalityTable]:
        """Projected features of each branch that scores a modality, by its name."""
        tables = {**dict(self.features.items()), **dict(self.head_features.items())}
        return {name: table for name, table in tables.items() if isinstance(table, ModalityTable)}

    def tables(self, nodes: Tensor | None = None) -> Tables:
        """Compute the vectors of entities and relations; once in a training step, once in an evaluation.

        Args:
            nodes: (n,) int64, distinct entities: only their vectors, in this order; the trained tables then get sparse
                gradients. None: all N.
        """

        def rows(structure: Tensor) -> Tensor:
            return structure if nodes is None else functional.embedding(nodes, structure, sparse=True)

        entities = {STRUCTURE: rows(self.structure), **{name: table(nodes) for name, table in self.features.items()}}
        relations = {name: self.relations[name] for name in entities}
        if FUSED in self.of_branch:
            neutral = self.config.missing == "neutral"
            masks = [rows_of(self.mask(view), nodes) if neutral else None for view in entities]
            entities[FUSED] = self.fuse_entities(list(entities.values()), masks)
            relations[FUSED] = self.fuse_relations(list(relations.values()))
        entities |= {name: rows(structure) for name, structure in self.head_structure.items()}
        entities |= {name: table(nodes) for name, table in self.head_features.items()}
        relations |= {name: self.relations[name] for name in entities if name not in relations}
        return Tables(entities, relations)

    def contexts(
        self, tables: Tables, heads: Tensor, relations: Tensor, kept: KeptMatrices | None = None
    ) -> list[Tensor]:
        """Context vector of each query in each branch: what its candidates are compared with.

        Args:
            tables: from `tables()`.
            heads: (B,) int64, rows of the entity tables.
            relations: (B,) int64, relation ids below 2R.
            kept: matrices of the relations of earlier calls; in evaluation mode, with the same tables.

        Returns:
            M tensors (B, d).
        """
        grouping = Grouping(relations, kept) if self.matrix_width else None
        return [
            self.scorer(branch).context(tables.entities[branch][heads], tables.relations[branch], relations, grouping)
            for branch in self.branches
        ]

    def branch_scores(
        self, tables: Tables, contexts: Sequence[Tensor], low: int | Tensor = 0, high: int | None = None
    ) -> list[Tensor]:
        """Raw scores of some candidates in each branch.

        Args:
            tables: from `tables()`.
            contexts: M tensors (B, d).
            low: first candidate, or the ids (C,) of all candidates.
            high: last candidate + 1; None: N.

        Returns:
            M tensors (B, C), higher is more plausible.
        """
        candidates = low if isinstance(low, Tensor) else slice(low, high)
        rows = Tables({branch: table[candidates] for branch, table in tables.entities.items()}, {})
        return list(self.each_score(rows, contexts))

    def each_score(self, rows: Tables, contexts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Raw scores (B, C) of all C entities in `rows`, one branch after the other."""
        for branch, context in zip(self.branches, contexts, strict=True):
            yield self.scorer(branch).score(context, rows.entities[branch])

    @property
    def scores_are_products(self) -> bool:
        """Whether a score is the dot product of context and candidate; otherwise it is a distance."""
        return all(self.scorer(branch).is_product for branch in self.branches)

    @property
    def matrix_width(self) -> int:
        """Largest d of a branch that builds a (d, d) matrix for each relation; 0 if none does."""
        each = self.of_branch.items()
        return max((branch.settings.dim for name, branch in each if self.scorer(name).builds_matrices), default=0)

    def decision_weights(self, heads: Tensor, relations: Tensor) -> Tensor:
        """(B,) heads, (B,) relations -> (B, M) weights on the simplex, 0 where the head lacks the modality."""
        masks = [None if mask is None else mask[heads] for mask in map(self.mask, self.branches)]
        return present_weights(self.decision.weights(relations), masks)

    def combine(
        self, scores: Sequence[Tensor], log_norms: Sequence[Tensor], weights: Tensor, low: int = 0, high: int | None = None
    ) -> Tensor:
        """Combine the branches' scores of the candidates low..high (model section 5).

        Args:
            scores: M tensors (B, C) of raw branch scores.
            log_norms: M tensors (B,): logsumexp of each branch over **all** entities (unused under `bce`).
            weights: (B, M) from `decision_weights`.
            low, high: candidates, C = high - low; None: up to N.

        Returns:
            (B, C): weighted log-probabilities under `ce`, probabilities under `bce`; higher is more plausible.
        """
        if len(scores) == 1:
            return scores[0] - log_norms[0][:, None] if self.loss_kind == "ce" else scores[0].sigmoid()
        masks = [None if mask is None else mask[low:high] for mask in map(self.mask, self.branches)]
        if self.loss_kind == "bce":
            return combine([score.sigmoid() for score in scores], weights, masks)
        return combine([score - norm[:, None] for score, norm in zip(scores, log_norms, strict=True)], weights, masks)

    @property
    def entity_tables(self) -> dict[str, nn.Parameter]:
        """The trained tables of entity vectors, by the name of their branch."""
        tables = {name: table.table for name, table in self.feature_tables.items() if table.table is not None}
        return {**self.structure_tables, **tables}

    def vectors(self) -> list[nn.Parameter]:
        """The trained tables of entity and relation vectors: whatever is looked up, not multiplied with."""
        return [*self.entity_tables.values(), *self.relations.parameters()]

    def adagrad_parameters(self, train: TrainConfig) -> list[nn.Parameter]:
        """Those of `vectors` that Adagrad updates: all of its branches, but for heads with an optimizer of their own."""
        chosen = {branch.name: (branch.optimizer or train.optimizer) == "adagrad" for branch in self.of_branch.values()}
        return [table for name, table in (*self.entity_tables.items(), *self.relations.items()) if chosen[name]]

    def sparse_parameters(self, train: TrainConfig) -> dict[str, nn.Parameter]:
        """The trained entity tables by name if a step touches only some of their rows; otherwise none."""
        if not train.samples(self.num_entities):
            return {}
        found = {id(table) for table in self.entity_tables.values()}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in found}

    def scorer(self, branch: str) -> Scorer:
        """The relation model of a branch."""
        scorer = self.scorers[branch]
        assert isinstance(scorer, Scorer)
        return scorer


def rows_of(mask: Tensor | None, nodes: Tensor | None) -> Tensor | None:
    """The entries (n,) of a mask (N,) for some entities; all of them without `nodes`."""
    return mask if mask is None or nodes is None else mask[nodes]
