"""Ensembles: several checkpoints that answer as one.

An ensemble is a folder: `ensemble.json` has the weights and the validation figures, `members/1`, `members/2` ... are complete
checkpoints. Commands that ask or rank with a checkpoint take such a folder too.

Shapes: `B` questions of a block, `N` entities, `K` members, `k` answers to a question.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat

from imf_core.answers import Answer, Choice
from imf_core.checkpoint.checkpoint import FACTS_FILE, Checkpoint, load_checkpoint
from imf_core.checkpoint.described import RESTORE, checked, read_json
from imf_core.checkpoint.hub import local_folder
from imf_core.config_train import TrainConfig
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, counted_triples
from imf_core.ensemble.teacher import preferences_of, teach, whole, with_branches
from imf_core.errors import CheckpointError, ConfigError, VocabularyError
from imf_core.evaluate.calibrate import rank_by_fold
from imf_core.evaluate.pooled import PooledScores, evaluate_pooled, pooled_by_fold
from imf_core.evaluate.ranking import Ranked, evaluate_decisions
from imf_core.evaluate.redecide import fold_decisions
from imf_core.evaluate.test_once import OWN
from imf_core.files.atomic import atomic_folder, atomic_write_text
from imf_core.files.json_files import Stored, shortened
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.model.losses.distillation import SoftTargets, Teacher
from imf_core.model.losses.preference import Preferences
from imf_core.predict import BUDGET, MOST, Predictor
from imf_core.runtime import MemoryBudget

ENSEMBLE_FILE = "ensemble.json"
FORMAT = 2  # 1 was the arithmetic mean


class DescribedMember(Stored):
    """A member of an ensemble."""

    folder: str
    weight: Annotated[FiniteFloat, Field(gt=0)]


class DescribedEnsemble(Stored):
    """What `ensemble.json` holds."""

    members: Annotated[list[DescribedMember], Field(min_length=1)]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Ensemble:
    """Checkpoints of the same entities and relations, and their weights.

        Ensemble.load("results/pool").predictor().tails("LATIN SMALL LETTER E WITH ACUTE", "canonical_base", k=5)

    Args:
        members: K checkpoints.
        weights: K numbers above 0 that sum to 1.
        metrics: validation figures of the ensemble.
        path: its folder.
    """

    members: tuple[Checkpoint, ...]
    weights: tuple[float, ...]
    metrics: dict[str, Any]
    path: Path

    @classmethod
    def load(cls, folder: Path | str) -> Ensemble:
        """As `load_ensemble`."""
        return load_ensemble(folder)

    def predictor(self, data: str | None = None) -> EnsemblePredictor:
        """Answers by name; `data` as of `Predictor.load`."""
        return EnsemblePredictor(self, data)

    def rank(
        self, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget | None = None, *,
        counted: np.ndarray | None = None,
    ) -> Ranked:
        """Filtered ranking of triples, see `evaluate_pooled`."""
        models = [member.model for member in self.members]
        return evaluate_pooled(models, self.weights, graph, triples, known, memory, counted=counted)


class EnsemblePredictor(Predictor):
    """A `Predictor` that scores by the geometric mean of the members' probabilities.

    An answer's `branch_scores` and `weights` are those of the members, which are named `1`, `2` ... as in the folder.
    """

    def __init__(self, ensemble: Ensemble, data: str | None = None) -> None:
        self.ensemble, self.data = ensemble, data
        graph = next((member.graph for member in ensemble.members if member.graph is not None), None)
        self.checkpoint = replace(ensemble.members[0], path=ensemble.path, graph=graph)  # its names are those of all
        self.loss = "ce"  # the pooled scores are a distribution
        self._pooled = PooledScores([member.model for member in ensemble.members], ensemble.weights, BUDGET)
        self.scores = self._pooled

    def about(self) -> dict[str, Any]:
        """See `Predictor.about`; the members are the branches."""
        members, weights = self.ensemble.members, self.ensemble.weights
        return {
            "branches": [str(index + 1) for index in range(len(members))], "weights": list(weights),
            "parameters": sum(member.model.num_parameters for member in members), "figures": self.ensemble.metrics,
        }

    def embeddings(self, branch: str) -> np.ndarray:
        """Refused: each member has vectors of its own.

        Raises:
            ConfigError: always.
        """
        members = self.ensemble.path / "members"
        raise ConfigError(
            "an ensemble has no vectors of its own", remedy=f"export those of a member: {members / '1'}", value=branch
        )

    @property
    def _size(self) -> int:
        return min(self.scores.block, MOST)

    @torch.no_grad()
    def _block(self, heads: torch.Tensor, relations: torch.Tensor, choose: Choice) -> list[list[Answer]]:
        """See `Predictor._block`."""
        numbers = [str(index + 1) for index in range(len(self.ensemble.members))]
        shares = dict(zip(numbers, self.ensemble.weights, strict=True))
        members = next(self._pooled.each(heads, relations, len(heads)))  # K x (B, N)
        pooled = self._pooled.pool(members)  # (B, N)
        picks = choose(heads, relations, pooled)
        parts = torch.stack([member.gather(1, picks.entities) for member in members], dim=2).exp()  # (B, k, K)
        return self._named(picks, pooled.gather(1, picks.entities).exp(), parts, [shares] * len(heads))


def is_ensemble(path: Path | str) -> bool:
    """Whether a folder holds an ensemble."""
    return os.path.isfile(Path(path) / ENSEMBLE_FILE)  # of a name that is too long, Path would raise


def open_predictor(path: Path | str, data: str | None = None) -> Predictor:
    """The predictor of a checkpoint or an ensemble, in a folder or on the hub; arguments and errors as of `Predictor.load`."""
    path = local_folder(path)
    return EnsemblePredictor(load_ensemble(path), data) if is_ensemble(path) else Predictor.load(path, data)


def open_model(path: Path | str) -> Checkpoint | Ensemble:
    """Load a checkpoint or an ensemble, from a folder or the hub; errors as of `open_predictor`."""
    path = local_folder(path)
    return load_ensemble(path) if is_ensemble(path) else load_checkpoint(path)


def names_of(model: Checkpoint | Ensemble) -> Checkpoint:
    """The checkpoint itself, or the first member: its names and settings represent all."""
    return model.members[0] if isinstance(model, Ensemble) else model


def strongest(model: Checkpoint | Ensemble) -> Checkpoint:
    """The checkpoint itself, or the member with the largest weight."""
    if not isinstance(model, Ensemble):
        return model
    return max(zip(model.weights, model.members, strict=True), key=lambda pair: pair[0])[1]


def rank_split(
    model: Checkpoint | Ensemble, graph: KnowledgeGraph, split: str, triples: np.ndarray, known: KnownAnswers,
    others: Mapping[str, Decision] | None = None,
) -> dict[str, Ranked]:
    """Filtered ranking of a split by a checkpoint or an ensemble, with the memory budget of its settings.

    Validation is ranked crosswise: each half with decision weights that were fitted to the other half, as while training.

    Args:
        model: what ranks.
        graph: of the split.
        split, triples, known: `valid` or `test`, and what `open_split` gives.
        others: further decisions of a checkpoint, by name.

    Returns:
        Under the model's own decision, `own`, and under the others.
    """
    memory = MemoryBudget.of(names_of(model).config.train.memory_budget_mb)
    counted = counted_triples(graph, split, triples)
    if isinstance(model, Ensemble):
        if split == "valid":
            models, by_fold = [member.model for member in model.members], members_by_fold(model.members, graph, memory)
            return {OWN: pooled_by_fold(models, model.weights, graph, known, by_fold, memory)}
        return {OWN: model.rank(graph, triples, known, memory, counted=counted)}
    own = model.model.decision
    pair = fold_decisions(model.model, graph, model.metrics, memory) if split == "valid" else (own, own)
    decisions = [{OWN: decision, **(others or {})} for decision in pair]
    if split == "valid":
        return rank_by_fold(model.model, graph, triples, known, decisions, counted=counted, memory=memory)
    return evaluate_decisions(model.model, graph, triples, known, decisions[0], counted=counted, memory=memory)


def members_by_fold(
    members: Sequence[Checkpoint], graph: KnowledgeGraph, memory: MemoryBudget
) -> tuple[tuple[Decision, ...], ...]:
    """For fold 0 and 1 of validation the decisions of the K members, see `fold_decisions`."""
    return tuple(zip(*(fold_decisions(member.model, graph, member.metrics, memory) for member in members), strict=True))


def answers_of(
    model: Checkpoint | Ensemble, graph: KnowledgeGraph, train: TrainConfig, student: Imf
) -> SoftTargets | Teacher:
    """The strongest answers of a checkpoint or an ensemble to a graph's training queries, see `teach` and `with_branches`, or
    itself as a teacher that is asked in each step, see `whole`.

    Args:
        model: the teacher.
        graph: of the student's training triples.
        train: `distil_answers` and `distil_terms`.
        student: the model that is taught.
    """
    models, weights, memory = _members(model)
    if train.distil_answers == "distribution":
        return replace(whole(models, weights, graph, memory=memory), terms=train.distil_terms)
    soft = teach(models, weights, graph, memory=memory, unknown=train.distil_answers == "unknown")
    if train.distil_terms == "branches":
        soft = with_branches(soft, models, weights, graph, student)
    return replace(soft, terms=train.distil_terms)


def preferences_among(model: Checkpoint | Ensemble, graph: KnowledgeGraph) -> Preferences:
    """The preferences of a checkpoint or an ensemble among a graph's hard negatives, see `preferences_of`."""
    models, weights, memory = _members(model)
    return preferences_of(models, weights, graph, memory)


def _members(model: Checkpoint | Ensemble) -> tuple[list[Imf], tuple[float, ...], MemoryBudget]:
    members = model.members if isinstance(model, Ensemble) else (model,)
    weights = model.weights if isinstance(model, Ensemble) else (1.0,)
    memory = MemoryBudget.of(members[0].config.train.memory_budget_mb)
    return [member.model for member in members], weights, memory


def same_names(members: Sequence[Checkpoint]) -> None:
    """Refuse checkpoints of different entities or relations, or in another order: their scores cannot be combined.

    Raises:
        VocabularyError: names the two checkpoints.
    """
    for member in members[1:]:
        for kind in ("entities", "relations"):
            first, other = getattr(members[0], kind).names, getattr(member, kind).names
            if first != other:
                raise VocabularyError(
                    f"{member.path} has other {kind} than {members[0].path} ({len(other):,}, {len(first):,}, or reordered)",
                    remedy="pool checkpoints that were trained on the same graph",
                )


def save_ensemble(folder: Path, members: Sequence[Path], weights: Sequence[float], metrics: Mapping[str, Any]) -> None:
    """Copy the members into one folder, with their weights.

    Args:
        folder: replaced if it exists.
        members: K checkpoint folders.
        weights: K numbers above 0.
        metrics: any JSON values.
    """
    total = float(sum(weights))
    description = {
        "format": FORMAT, "metrics": dict(metrics),
        "members": [
            {"folder": f"members/{number}", "weight": weight / total, "from": str(source.resolve())}
            for number, (source, weight) in enumerate(zip(members, weights, strict=True), 1)
        ],
    }
    with atomic_folder(folder) as fresh:
        for number, source in enumerate(members, 1):
            member = fresh / "members" / str(number)
            member.mkdir(parents=True)
            for name in ("model.safetensors", "config.json", "vocabulary.json"):
                shutil.copyfile(source / name, member / name)
            if (source / FACTS_FILE).exists():
                shutil.copyfile(source / FACTS_FILE, member / FACTS_FILE)
        (fresh / ENSEMBLE_FILE).write_text(json.dumps(description, indent=1), encoding="utf-8")


def add_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Add figures to those that an ensemble's folder holds.

    Raises:
        CheckpointError: the folder is no ensemble.
    """
    file = folder / ENSEMBLE_FILE
    content = read_json(file)
    checked(file, DescribedEnsemble, content)
    atomic_write_text(file, json.dumps({**content, "metrics": {**content["metrics"], **figures}}, indent=1))


def load_ensemble(folder: Path | str) -> Ensemble:
    """Read an ensemble's folder, or one on the hub: `hf://OWNER/NAME`.

    Raises:
        CheckpointError: a part is missing or damaged, or the format is another one.
        VocabularyError: the members are of different graphs.
    """
    folder = local_folder(folder)
    file = folder / ENSEMBLE_FILE
    content = read_json(file)
    version = content.get("format")
    if version != FORMAT:
        remedy = "make it again: imf ensemble" if version in (1, None) else "update imf-search"
        raise CheckpointError(f"{file} has format {shortened(version)}, this version reads {FORMAT}", remedy=remedy)
    description = checked(file, DescribedEnsemble, content)
    listed = [(folder / member.folder, member.weight) for member in description.members]
    total = sum(weight for _, weight in listed)
    if not np.isfinite(total):
        raise CheckpointError(f"{file} is damaged: the weights sum to {total}", remedy=RESTORE)
    try:
        outside = [path for path, _ in listed if not path.resolve().is_relative_to(folder.resolve())]
    except (OSError, ValueError, RuntimeError) as error:  # no name of a folder
        raise CheckpointError(f"{file} is damaged: a member's folder: {error}", remedy=RESTORE) from error
    if outside:
        raise CheckpointError(f"{file} names a member outside its folder: {outside[0]}", remedy="make the ensemble again")
    members = tuple(load_checkpoint(path) for path, _ in listed)
    same_names(members)
    return Ensemble(members, tuple(weight / total for _, weight in listed), description.metrics, folder)
