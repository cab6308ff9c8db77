"""Losses beside the model's own while it is trained: they watch a pass and add to its losses; the model knows none of them.

Shapes: `N` entities, `n` of them in a pass, `B` queries, `P` known answers, `H` hard negatives, `M` branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imf_core.config import FUSED, STRUCTURE
from imf_core.config_train import TrainConfig
from imf_core.model.imf import Imf
from imf_core.model.known_facts import watch_nodes
from imf_core.model.losses.distillation import SoftTargets, Teacher, combined_logs, distillation_loss
from imf_core.model.losses.preference import Preferences, preference_loss
from imf_core.model.losses.self_mi import SelfMi, Views
from imf_core.model.losses.target import Positives

_MOST_ANSWERS = 1024  # that a step compares with the class centres

Term = Callable[[Tensor, Tensor, Positives], Tensor]  # of heads (B,), relations (B,) and answers


class Auxiliary:
    """The auxiliary losses of a training; `close` ends them.

    Their trained parameters are the module `auxiliary` of the model meanwhile: optimizers and the training state have them, a
    checkpoint has not.

    Args:
        model: before its optimizers are made; on the device where it is trained.
        train: weights and temperature of the losses.
        preferences: for `train.preference_weight`; None: there are none.
        teacher: for `train.distil_weight`, asked in each step; None: there is none.
    """

    def __init__(
        self, model: Imf, train: TrainConfig, preferences: Preferences | None = None, teacher: Teacher | None = None
    ) -> None:
        self.model = model
        self.terms: dict[str, tuple[float, Term]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        device = model.structure.device
        if train.self_mi_weight > 0 and FUSED in model.of_branch:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(train.seed)
                own = SelfMi(model.config.dim, _views(model), train.self_mi_temperature)
            model.auxiliary = own.to(device)
            self.terms["self_mi"] = train.self_mi_weight, _SelfMiTerm(model, own, self._handles)
        if train.preference_weight > 0 and preferences is not None:
            self.terms["preference"] = train.preference_weight, _PreferenceTerm(model, preferences.to(device))
        if train.distil_weight > 0 and teacher is not None:
            self.terms["distil"] = train.distil_weight, _TeacherTerm(model, teacher.to(device), train)
        if self.terms:
            self._handles.append(model.register_forward_hook(self._add))

    def close(self) -> None:
        """The model is again what it was."""
        for handle in self._handles:
            handle.remove()
        if self.terms and hasattr(self.model, "auxiliary"):
            del self.model.auxiliary

    def _add(self, module: nn.Module, arguments: tuple[Any, ...], parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the losses to those that a pass returned."""
        heads, relations, positives = arguments[:3]
        added = {name: term(heads, relations, positives) for name, (_, term) in self.terms.items()}
        total = parts["total"]
        for name, value in added.items():
            total = total + self.terms[name][0] * value
        return {**parts, **added, "total": total}


class _SelfMiTerm:
    """`SelfMi` of what the entities' operator was given and made in the running pass."""

    def __init__(self, model: Imf, loss: SelfMi, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        self.model, self.loss = model, loss
        self.nodes, watch = watch_nodes(model)
        self.seen: tuple[list[Tensor], Tensor] | None = None
        handles += [watch, model.fuse_entities.register_forward_hook(self._keep)]

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...], fused: Tensor) -> None:
        if self.model.training:
            self.seen = arguments[0], fused

    def __call__(self, heads: Tensor, relations: Tensor, positives: Positives) -> Tensor:
        assert self.seen is not None
        (views, fused), self.seen = self.seen, None
        named = dict(zip(_views(self.model), views, strict=True))
        nodes = self.nodes()

        def of(entities: Tensor) -> Views:
            rows = entities if nodes is None else torch.searchsorted(nodes, entities)
            everyone = torch.ones(len(entities), dtype=torch.bool, device=entities.device)
            masks = {name: self.model.mask(name) for name in named}
            has = {name: everyone if mask is None else mask[entities] for name, mask in masks.items()}
            return Views({name: view[rows] for name, view in named.items()}, fused[rows], has)

        step = -(-len(positives.tails) // _MOST_ANSWERS)
        loss: Tensor = self.loss(of(heads.unique()), of(positives.tails[::step]), relations[positives.rows[::step]])
        return loss


class _PreferenceTerm:
    """`preference_loss` of the model's combined scores of a query's hard negatives."""

    def __init__(self, model: Imf, preferences: Preferences) -> None:
        self.model, self.preferences = model, preferences

    def __call__(self, heads: Tensor, relations: Tensor, positives: Positives) -> Tensor:
        model = self.model
        entities, levels = self.preferences.of(heads, relations)  # (B, H) each
        count = entities.shape[1]
        nodes, rows = torch.cat([heads, entities.flatten()]).unique(return_inverse=True)  # (n,)
        tables = model.tables(nodes)
        contexts = model.contexts(tables, rows[: len(heads)], relations)
        scores = []
        for branch, context in zip(model.branches, contexts, strict=True):
            scorer, vectors = model.scorers[branch], tables.entities[branch][rows[len(heads) :]]
            scores.append(scorer.score_pairs(context.repeat_interleave(count, dim=0), vectors).view(-1, count))  # type: ignore[operator]
        masks = [model.mask(branch) for branch in model.branches]
        usable = [None if mask is None else mask[entities] for mask in masks]
        weights = model.decision_weights(heads, relations).detach()
        return preference_loss(combined_logs(scores, weights, usable, model.loss_kind), levels)


class _TeacherTerm:
    """`distillation_loss` over all entities, on some queries of the batch and as many that no training triple asks."""

    def __init__(self, model: Imf, teacher: Teacher, train: TrainConfig) -> None:
        self.model, self.teacher = model, teacher
        self.count, self.temperature = train.distil_queries // 2, train.distil_temperature

    def __call__(self, heads: Tensor, relations: Tensor, positives: Positives) -> Tensor:
        model, chosen = self.model, torch.randperm(len(heads), device=heads.device)[: self.count]
        asked = zip((heads[chosen], relations[chosen]), self.teacher.unasked(self.count), strict=True)
        heads, relations = map(torch.cat, asked)  # (B,)
        answers = self.teacher.ask(heads, relations).to(heads.device)  # (B, N)
        everyone = torch.arange(answers.shape[1], device=heads.device).expand_as(answers)
        soft = SoftTargets(everyone, answers.exp(), terms=self.teacher.terms)
        tables = model.tables()
        scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
        masks = [model.mask(branch) for branch in model.branches]
        usable = [None if mask is None else mask.expand_as(answers) for mask in masks]
        weights = model.decision_weights(heads, relations).detach()
        return distillation_loss(scores, soft, weights, usable, self.temperature, model.loss_kind)


def _views(model: Imf) -> tuple[str, ...]:
    """The views that the model fuses, in their order."""
    return (STRUCTURE, *model.modality_names)
