"""Fitting the decision weights to held-out triples (model section 5).

The branches overfit their training triples to different degrees, so weights trained there favour the branch that memorises
best. The few weights are therefore fitted, by likelihood, to validation triples, and the validation score is taken
crosswise: each half of the triples is ranked with weights fitted to the other half. Every fit starts from the plain mean, so
that it depends on nothing but the branches and the triples that it is given: the figure is the same whenever it is taken.

Shapes: `T` held-out triples, `Q` held-out queries (2T), `C` cached candidates, `M` branches, `N` entities, `R` relations (2R
with inverses).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.evaluate.competitors import answer_ranks, pick_candidates
from imf_core.evaluate.ranking import Ranked, evaluate_decisions
from imf_core.model.branches import Tables
from imf_core.model.decision import Decision
from imf_core.model.imf import Imf
from imf_core.runtime import WHOLE, MemoryBudget, Shard

_MAX_TRIPLES = 1000  # more hardly move M - 1 numbers
_PER_BRANCH = 24  # strongest wrong answers of each branch
_RANDOM = 24  # random candidates
_TOLERANCE = 1e-7  # of the fitted likelihood, as a share: what float32 tells apart
_ALONE = 8.0  # logit of a branch that decides alone; the others keep a weight of 0.0003, for entities without its modality
_SHRINKAGE = 2.0  # strength of the pull of a relation's logits towards the common ones


@dataclass(frozen=True)
class CachedScores:
    """What the weights are fitted to: for each query its answer and the wrong answers that can outrank it.

    Args:
        values: (Q, C, M) branch values as they enter the decision: log-probabilities (`ce`) or probabilities (`bce`).
        usable: (Q, C, M) 0.0 or 1.0: whether both head and candidate have the branch's modality.
        valid: (Q, C) bool, False for candidates that do not compete (known answers, repeats); column 0 is the answer.
        relations: (Q,) int64, relation ids below 2R.
        fold: (Q,) int64, 0 or 1.
    """

    values: Tensor
    usable: Tensor
    valid: Tensor
    relations: Tensor
    fold: Tensor

    def combined(self, logits: Tensor) -> Tensor:
        """(Q, C) combined values under (1, M) common logits or (2R, M) logits of each relation; differentiable in them."""
        rows = logits[self.relations] if len(logits) > 1 else logits.expand(len(self.relations), -1)  # (Q, M)
        weights = torch.softmax(rows, dim=1)[:, None, :] * self.usable  # (Q, C, M)
        return (weights * self.values).sum(dim=2) / weights.sum(dim=2).clamp_min(1e-6)

    def part(self, queries: Tensor) -> CachedScores:
        """The scores of some queries, given as (q,) int64 positions."""
        return CachedScores(
            self.values[queries], self.usable[queries], self.valid[queries], self.relations[queries], self.fold[queries]
        )

    def without(self, fold: int) -> CachedScores:
        """The scores of the other fold."""
        return self.part(torch.nonzero(self.fold != fold)[:, 0])


def folds(triples: np.ndarray) -> np.ndarray:
    """(T, 3) -> (T,) int64, 0 or 1: a hash of the triple, so the same in every run, on every rank, for every file order."""
    mixed = (triples.astype(np.uint64) * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)).sum(
        axis=1, dtype=np.uint64
    )
    return ((mixed >> np.uint64(33)) & np.uint64(1)).astype(np.int64)


@torch.no_grad()
def cache_scores(
    model: Imf, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, budget: int = 2**29
) -> CachedScores:
    """Score held-out triples in both directions and keep, for each query, the candidates that can outrank the answer.

    Args:
        model: put into evaluation mode.
        graph: of the triples.
        triples: (T, 3) int64; at most 1,000 of them are used, drawn by a fixed seed.
        known: other known answers do not compete.
        budget: bytes that scores may take.
    """
    rng = np.random.default_rng(0)
    if len(triples) > _MAX_TRIPLES:
        triples = triples[np.sort(rng.choice(len(triples), _MAX_TRIPLES, replace=False))]
    heads, relations, targets = np.ascontiguousarray(with_inverses(triples, graph.num_relations).T)
    # The strongest candidates need all (block, N) scores at once; the block follows from the budget.
    each = 4 * graph.num_entities * (3 * len(model.branches) + 2)  # bytes of a query: scores, values, copies for sorting
    block = max(1, min(256, budget // each))
    tables = model.eval().tables()
    parts = [
        _cache_block(
            model, tables, heads[low : low + block], relations[low : low + block], targets[low : low + block], known, rng
        )
        for low in range(0, len(heads), block)
    ]
    values, usable, valid = (torch.cat([part[position] for part in parts]) for position in range(3))
    return CachedScores(values, usable, valid, torch.from_numpy(relations), torch.from_numpy(np.tile(folds(triples), 2)))


def _cache_block(
    model: Imf,
    tables: Tables,
    heads: np.ndarray,
    relations: np.ndarray,
    targets: np.ndarray,
    known: KnownAnswers,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """`values`, `usable` and `valid` of `CachedScores` for the queries heads (Q,), relations (Q,) with answers targets (Q,)."""
    device = model.structure.device
    head, target = torch.from_numpy(heads).to(device), torch.from_numpy(targets).to(device)
    raw = model.branch_scores(tables, model.contexts(tables, head, torch.from_numpy(relations).to(device)))
    values = [torch.log_softmax(score, dim=1) if model.loss_kind == "ce" else score.sigmoid() for score in raw]
    drawn = torch.from_numpy(rng.integers(0, model.num_entities, (len(heads), _RANDOM))).to(device)
    candidates, valid = pick_candidates(values, target, known.lookup(heads, relations), _PER_BRANCH, drawn)
    picked = torch.stack([value.gather(1, candidates) for value in values], dim=2)  # (Q, C, M)
    usable = torch.ones_like(picked)
    for position, mask in enumerate(map(model.mask, model.branches)):
        if mask is not None:
            usable[:, :, position] = (mask[head][:, None] & mask[candidates]).to(picked.dtype)
    return picked.cpu(), usable.cpu(), valid.cpu()


def fit_logits(cached: CachedScores, loss: str, rows: int) -> Tensor:
    """Logits under which the held-out answers are most likely among their competitors; zeros where there is no query.

    Args:
        cached: queries to fit.
        loss: `ce` or `bce`: the branches are combined as log-probabilities or as probabilities.
        rows: 1 for common logits, 2R for logits of each relation, which are pulled towards the common ones.

    Returns:
        (rows, M) logits, each row with mean 0.
    """
    branches = cached.values.shape[2]
    if not len(cached.relations):
        return torch.zeros(rows, branches)
    blocked = torch.zeros(cached.valid.shape).masked_fill(~cached.valid, -torch.inf)

    def logits(parameters: Tensor) -> Tensor:
        """(rows, M), of the common logits (1, M) and, where each relation has its own, their offsets (2R, M) below them."""
        return parameters[:1] + parameters[1:] if rows > 1 else parameters

    @torch.enable_grad()
    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean surprise at the answers, and its gradient, at the parameters of `logits`, flat."""
        parameters = torch.from_numpy(point).float().view(-1, branches).requires_grad_()
        combined = cached.combined(logits(parameters))  # (Q, C)
        scores = combined if loss == "ce" else combined.clamp_min(1e-12).log()
        surprise = -torch.log_softmax(scores + blocked, dim=1)[:, 0]
        # A weak pull towards the plain mean keeps the weights finite where one branch is perfect.
        penalty = 0.5 * (parameters[:1] ** 2).sum() + _SHRINKAGE * (parameters[1:] ** 2).sum()
        value = (surprise.sum() + penalty) / len(surprise)
        (gradient,) = torch.autograd.grad(value, parameters)
        return float(value.detach()), gradient.double().numpy().ravel()

    start = np.zeros((1 + rows if rows > 1 else 1) * branches)
    # No torch.optim: it loads torch's compiler with the first optimizer, two seconds wherever nothing is trained.
    point = minimize(objective, start, jac=True, method="L-BFGS-B", options={"ftol": _TOLERANCE, "gtol": 1e-5}).x
    parameters = torch.from_numpy(point).float().view(-1, branches)
    fitted = logits(parameters)
    return _best_by_mrr(cached, fitted - fitted.mean(dim=1, keepdim=True), parameters[:1])


def _best_by_mrr(cached: CachedScores, fitted: Tensor, common: Tensor) -> Tensor:
    """Likelihood is not MRR: the best by MRR of the fitted logits (rows, M), sharper and flatter ones, the common ones (1, M)
    and each branch alone; zeros, the plain mean, unless they gain more than two standard errors over it.
    """
    rows, branches = fitted.shape
    alone = [_ALONE * torch.eye(branches)[[position]].expand(rows, -1) for position in range(branches)]
    best = torch.zeros_like(fitted)
    plain, most = _reciprocal_ranks(cached, best), 0.0
    for logits in (*(factor * fitted for factor in (1.0, 0.5, 2.0, 4.0)), common.expand(rows, -1), *alone):
        gains = _reciprocal_ranks(cached, logits) - plain  # (Q,)
        gain, error = float(gains.mean()), float(gains.std(correction=0)) / len(gains) ** 0.5
        if gain > max(most, 2 * error):  # what is chosen from so many by less is chance, and loses on other queries
            best, most = logits.clone(), gain
    return best


def cached_mrr(cached: CachedScores, logits: Tensor) -> float:
    """MRR of the answers among their cached competitors, 0..1.

    Args:
        cached: Q queries.
        logits: (1, M) or (2R, M).
    """
    return float(_reciprocal_ranks(cached, logits).mean())


@torch.no_grad()
def _reciprocal_ranks(cached: CachedScores, logits: Tensor) -> Tensor:
    """(Q,) 1 / rank of the answers among their cached competitors."""
    return 1 / answer_ranks(cached.combined(logits), cached.valid[:, 1:])


@dataclass(frozen=True)
class Calibration:
    """Decision logits fitted to held-out triples, (1, M) or (2R, M) each.

    Args:
        crosswise: for fold 0 and 1 the logits fitted to the *other* fold: with these the fold is ranked.
        final: fitted to both folds: the model keeps them.
    """

    crosswise: Sequence[Tensor]
    final: Tensor


def calibrate(
    model: Imf, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget | None = None
) -> Calibration | None:
    """Fit the decision logits of a model that learns them; None for the other modes.

    Args:
        model: put into evaluation mode; its logits are not changed.
        graph, triples, known: see `cache_scores`.
        memory: for scores; None: a share of the free memory.

    Raises:
        ResourceError: not even one query at a time fits the memory.
    """
    current = model.decision.logits
    if current is None:
        return None
    memory = memory or MemoryBudget.of(None, model.structure.device)
    cached = memory.within(lambda budget: cache_scores(model, graph, triples, known, budget))
    crosswise = crosswise_logits(cached, model.loss_kind, len(current))
    return Calibration(crosswise, fit_logits(cached, model.loss_kind, len(current)))


def crosswise_logits(cached: CachedScores, loss: str, rows: int) -> tuple[Tensor, Tensor]:
    """For fold 0 and 1 the logits fitted to the other fold; arguments as of `fit_logits`."""
    first, second = (fit_logits(cached.without(fold), loss, rows) for fold in (0, 1))
    return first, second


def rank_by_fold(
    model: Imf, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, by_fold: Sequence[Mapping[str, Decision]], *,
    counted: np.ndarray | None = None, memory: MemoryBudget | None = None, shard: Shard = WHOLE,
) -> dict[str, Ranked]:
    """Rank validation triples, each fold under decisions of its own; other arguments and errors as of `evaluate_decisions`.

    Args:
        triples: (T, 3), of validation.
        by_fold: for fold 0 and 1 the decisions by name, the same names.
    """
    fold_of = folds(triples)
    if by_fold[0] == by_fold[1]:
        return evaluate_decisions(model, graph, triples, known, by_fold[0], counted=counted, memory=memory, shard=shard)
    part, fold_of = triples[shard.rank :: shard.world], fold_of[shard.rank :: shard.world]
    counted = None if counted is None else counted[shard.rank :: shard.world]
    ranks = {name: np.empty((2, len(part))) for name in by_fold[0]}
    for fold, decisions in enumerate(by_fold):
        chosen = fold_of == fold
        for name, ranked in evaluate_decisions(model, graph, part[chosen], known, decisions, memory=memory).items():
            ranks[name][:, chosen] = ranked.tail_ranks, ranked.head_ranks
    return {name: Ranked.of(both.reshape(-1), graph, part, counted) for name, both in ranks.items()}
