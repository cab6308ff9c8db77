"""Decision weights tuned again on cached validation scores: thousands of evaluations in seconds, without any training.

`imf_core.evaluate.calibrate` fits weights by likelihood in every epoch of a model that learns them. Here the MRR itself is
searched, for a model of any decision mode and for each relation; that costs seconds, so it is done for the winner only. Weights
are fitted crosswise: each half of the validation triples is judged by weights fitted to the other half, so that what is gained
by fitting the validation set is not counted.

`python -m tune.report.decisions STUDY` shows what every trial of a study would gain.

Shapes: `Q` queries, `C` cached candidates, `M` branches, `E` proposed weights, `R` relations (inverse ones count apart).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.evaluate.cached_scores import DecisionCache, cache_decision
from imf_core.evaluate.calibrate import CachedScores, folds
from imf_core.evaluate.ranking import evaluate_decisions
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget

TRAINED, COMMON, RELATION = "trained", "common", "relation"
EVALUATIONS = 2000
_LEAST = 3e-4  # as in `Decision`: who lacks the other branches' modalities is decided by this one
_SHRINKAGE = 30.0  # queries' worth of trust in what is good for all relations, against what is good for one
_CELLS = 2**23  # numbers that are compared at a time


@dataclass(frozen=True)
class Weights:
    """Weights fitted to cached queries.

    Args:
        common: (M,) the best for all relations.
        relation: (R, M) the best for each, drawn towards `common` where a relation has few queries.
    """

    common: Tensor
    relation: Tensor

    def decision(self, kind: str, branches: tuple[str, ...]) -> Decision:
        """As part of a model: `fixed` for `common`, `relation` for `relation`."""
        if kind == COMMON:
            return Decision("fixed", branches, 0, dict(zip(branches, self.common.tolist(), strict=True)))
        made = Decision("relation", branches, len(self.relation))
        assert made.logits is not None
        made.logits.copy_(self.relation.log())
        return made


def proposals(branches: int, count: int, generator: np.random.Generator, around: Tensor | None = None) -> Tensor:
    """(E, M) weights on the simplex: its corners, its middle and draws from all of it; or draws around a point.

    Args:
        branches: M.
        count: E, more than M.
        generator: of the draws.
        around: (M,) a point; the draws are closer to it the later they come.
    """
    if around is None:
        flat = generator.dirichlet(np.ones(branches), (count - branches - 1) // 2)
        sharp = generator.dirichlet(np.full(branches, 0.3), count - branches - 1 - len(flat))
        found = np.concatenate([np.eye(branches), np.full((1, branches), 1 / branches), flat, sharp])
    else:
        spread = np.geomspace(1.0, 0.05, count)[:, None]
        logits = np.log(around.numpy())[None] + spread * generator.standard_normal((count, branches))
        found = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = np.maximum(found / found.sum(axis=1, keepdims=True), _LEAST)
    return torch.from_numpy(found / found.sum(axis=1, keepdims=True)).float()


@torch.no_grad()
def reciprocal_ranks(scores: CachedScores, weights: Tensor) -> Tensor:
    """(E, Q) reciprocal realistic rank of each answer among its cached competitors, under each of (E, M) weights."""
    queries, candidates, branches = scores.values.shape
    value = (scores.values * scores.usable).reshape(-1, branches)
    partial = bool((scores.usable < 1).any())
    usable = scores.usable.reshape(-1, branches)
    competes = scores.valid[:, 1:, None]
    found = []
    for part in weights.split(max(1, _CELLS // (queries * candidates))):
        decided = value @ part.T
        if partial:
            decided /= (usable @ part.T).clamp_min(1e-6)
        table = decided.reshape(queries, candidates, len(part))
        own, others = table[:, :1], table[:, 1:]
        ahead = ((others > own) & competes).sum(dim=1) + 0.5 * ((others == own) & competes).sum(dim=1)
        found.append((1 / (1 + ahead)).T)
    return torch.cat(found)


def fit_weights(scores: CachedScores, relations: int, evaluations: int = EVALUATIONS, seed: int = 0) -> Weights:
    """Weights with the best MRR among the cached competitors.

    Half of the evaluations are spread over the simplex, half lie around the best of them. A relation then takes, of all that
    were evaluated, the weights with the best mean over its own queries and 30 more that behave like the average relation's.

    Args:
        scores: cached queries; none of them is judged by what is fitted here.
        relations: R.
        evaluations: E.
        seed: of the proposals.
    """
    generator = np.random.default_rng(seed)
    branches = scores.values.shape[2]
    first = proposals(branches, evaluations // 2, generator)
    ranks = reciprocal_ranks(scores, first)
    near = proposals(branches, evaluations - len(first), generator, first[ranks.mean(dim=1).argmax()])
    tried, ranks = torch.cat([first, near]), torch.cat([ranks, reciprocal_ranks(scores, near)])
    mean = ranks.mean(dim=1)
    common = tried[mean.argmax()]
    sums = torch.zeros(len(tried), relations).index_add_(1, scores.relations, ranks)
    counts = torch.bincount(scores.relations, minlength=relations)
    shrunk = (sums + _SHRINKAGE * mean[:, None]) / (counts + _SHRINKAGE)
    return Weights(common, tried[shrunk.argmax(dim=0)])


def held_back(cache: DecisionCache, relations: int, evaluations: int = EVALUATIONS) -> dict[str, float]:
    """MRR among the cached competitors by kind of weights, each query judged by weights fitted to the other half."""
    totals = dict.fromkeys((TRAINED, COMMON, RELATION), 0.0)
    for fold, trained in enumerate(cache.crosswise):
        own, other = (cache.scores.part(torch.nonzero(cache.scores.fold == number)[:, 0]) for number in (fold, 1 - fold))
        if not (len(own.relations) and len(other.relations)):
            continue
        fitted = fit_weights(other, relations, evaluations)
        totals[TRAINED] += float(_of_each(own, torch.softmax(trained, dim=1)).sum())
        totals[COMMON] += float(_of_each(own, fitted.common[None]).sum())
        totals[RELATION] += float(_of_each(own, fitted.relation).sum())
    return {kind: total / len(cache.scores.relations) for kind, total in totals.items()}


def _of_each(scores: CachedScores, weights: Tensor) -> Tensor:
    """(Q,) reciprocal ranks under (1, M) common weights or (R, M) weights of each relation."""
    combined = scores.decided(weights.clamp_min(1e-12).log())
    own, others, competes = combined[:, :1], combined[:, 1:], scores.valid[:, 1:]
    return 1 / (1 + ((others > own) & competes).sum(dim=1) + 0.5 * ((others == own) & competes).sum(dim=1))


@dataclass(frozen=True)
class Redecided:
    """What a trained model decides by in the end.

    Args:
        kept: `trained`, `common` or `relation`: the kind with the best held-back MRR; equal ones: the first.
        mrr: filtered validation MRR by kind, among all entities, each triple ranked by weights that did not see it.
        trained, tuned: mean weight of each branch over the validation queries, before and of the better of the other two.
        decision: what the model gets, fitted to all of validation; None: it keeps its own.
        kinds: the decision of each kind, fitted to all of validation.
    """

    kept: str
    mrr: Mapping[str, float]
    trained: Mapping[str, float]
    tuned: Mapping[str, float]
    decision: Decision | None
    kinds: Mapping[str, Decision]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint's metrics."""
        return {
            "kept": self.kept, "held_back_mrr": dict(self.mrr), "trained_weights": dict(self.trained),
            "tuned_weights": dict(self.tuned), "weights": {kind: _rows(made) for kind, made in self.kinds.items()},
        }

    def apply(self, model: Imf, config: Config) -> Config:
        """Give the model its decision; returns the settings that go with it."""
        if self.decision is None:
            return config
        model.decision = self.decision.to(model.structure.device)
        weights = None
        if self.decision.mode == "fixed":
            weights = dict(zip(self.decision.branches, self.decision.constant.tolist(), strict=True))
        return config.updated({"model.decision": self.decision.mode, "model.decision_weights": weights})


def redecide(model: Imf, graph: KnowledgeGraph, memory: MemoryBudget, evaluations: int = EVALUATIONS) -> Redecided | None:
    """Tune the decision weights of a trained model again; None for a model of one branch.

    Args:
        model: left in evaluation mode, with its own decision.
        graph: train and valid are read.
        memory: for scores.
        evaluations: weights tried for each fold.
    """
    if len(model.branches) < 2:
        return None
    cache, relations = cache_decision(model, graph, memory), 2 * model.num_relations
    scores, known, place = cache.scores, graph.known(), folds(graph.valid)
    kinds, totals = (TRAINED, COMMON, RELATION), dict.fromkeys((TRAINED, COMMON, RELATION), 0.0)
    for fold, logits in enumerate(cache.crosswise):
        others, mine = torch.nonzero(scores.fold != fold)[:, 0], graph.valid[place == fold]
        if not (len(others) and len(mine)):
            continue
        fitted = fit_weights(scores.part(others), relations, evaluations)
        variants = {kind: fitted.decision(kind, cache.branches) for kind in kinds if kind != TRAINED}
        found = evaluate_decisions(model, graph, mine, known, {TRAINED: _as_trained(model, logits), **variants}, memory=memory)
        for kind in kinds:
            totals[kind] += len(mine) * found[kind].metrics.mrr
    mrr = {kind: total / len(graph.valid) for kind, total in totals.items()}
    kept = max(kinds, key=mrr.__getitem__)
    final = fit_weights(scores, relations, evaluations)
    made = {kind: final.decision(kind, cache.branches) for kind in kinds if kind != TRAINED}
    made[TRAINED] = _as_trained(model, cache.final).cpu()
    better = made[max((COMMON, RELATION), key=mrr.__getitem__)]
    means = [
        dict(zip(cache.branches, decision.weights(scores.relations).mean(dim=0).tolist(), strict=True))
        for decision in (made[TRAINED], better)
    ]
    return Redecided(kept, mrr, means[0], means[1], None if kept == TRAINED else better, made)


def decisions_of(found: Mapping[str, Any], branches: tuple[str, ...]) -> dict[str, Decision]:
    """The decision of each kind, from what `Redecided.as_dict` wrote into a checkpoint's metrics."""
    return {kind: _from_rows(rows, branches) for kind, rows in found.get("weights", {}).items()}


def _rows(decision: Decision) -> list[list[float]]:
    """Weights of a decision, a row common to all relations or a row each."""
    rows = decision.constant[None] if decision.logits is None else torch.softmax(decision.logits, dim=1)
    return [[float(weight) for weight in row] for row in rows.tolist()]


def _from_rows(rows: Sequence[Sequence[float]], branches: tuple[str, ...]) -> Decision:
    weights = torch.tensor(rows, dtype=torch.float32)
    made = Decision("relation" if len(weights) > 1 else "learned", branches, len(weights))
    assert made.logits is not None
    made.logits.copy_(weights.clamp_min(torch.finfo(torch.float32).tiny).log())
    return made


def _as_trained(model: Imf, logits: Tensor) -> Decision:
    """The model's own decision with these logits."""
    own = model.decision
    if own.logits is None:
        return own
    made = Decision(own.mode, own.branches, len(own.logits))
    assert made.logits is not None
    made.logits.copy_(logits)
    return made.to(own.logits.device)
