"""How sure a model is of a triple: a score that is comparable across questions, and a probability fitted to validation.

A raw score says nothing across questions: its zero differs from one to the next. The share that an answer has in its question
(softmax; with `bce` the sigmoid) does not. A triple answers two questions, (h, r, ?) and (?, r, t); where one of them has many
true answers they divide the share among them, so the surer question counts. A question that makes no sense (who has Berlin as
a spouse?) divides its share too, and says nothing: it counts only if both are such (`imf_core.data.graph.domains`).

The probability is a logistic function of that score (Platt 1999), fitted to validation triples and as many corrupted ones, as
by Tabacof and Costabello (ICLR 2020).

Shapes: `Q` questions, `B` of a block, `T` triples, `N` entities, `R` relations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from imf_core.data.graph.domains import Domains
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.data.graph.splits import codes
from imf_core.evaluate.calibrate import folds
from imf_core.evaluate.ranking import Scores

LEAST_FACTS = 20  # validation triples that a probability is fitted to, at least
_MOST_FACTS = 2000  # more hardly move two numbers
_BINS = 10  # of the calibration error
_DRAWS = 10  # attempts to corrupt a triple into none of the known ones
_NEAREST = 1e-6  # least distance of a share from 1: float32 has no better one

Score = Callable[[np.ndarray], np.ndarray]  # (T, 3) triples -> (T,) scores


def log_shares(table: Tensor, loss: str) -> Tensor:
    """(B, N) decided scores -> log-probabilities; in place.

    Args:
        table: a block of `Scores`: log-probabilities up to a constant of each row (`ce`), or probabilities (`bce`).
        loss: `ce` or `bce`.
    """
    if loss == "bce":
        return table.clamp_min_(torch.finfo(table.dtype).tiny).log_()
    return table.sub_(torch.logsumexp(table, dim=1, keepdim=True))


def log_odds(log_share: np.ndarray) -> np.ndarray:
    """Log-probabilities -> log-odds, at most 13.8."""
    certain = np.minimum(np.asarray(log_share, dtype=np.float64), -_NEAREST)
    return certain - np.log(-np.expm1(certain))


def shown(probability: float, digits: int) -> float:
    """A probability rounded to so many digits, but to 1 only if it is 1: 0.99996 is no certainty."""
    return probability if probability == 1 else min(round(probability, digits), 1 - 10**-digits)


@torch.no_grad()
def answer_log_shares(
    scores: Scores, loss: str, heads: np.ndarray, relations: np.ndarray, targets: np.ndarray, block: int
) -> np.ndarray:
    """Log-probability of an answer to each question, scored block by block.

    Args:
        scores: of a model or ensemble.
        loss: see `log_shares`.
        heads, relations, targets: (Q,) ids, relations below 2R.
        block: questions scored at a time.

    Returns:
        (Q,) float64.
    """
    found = np.empty(len(heads))
    order = np.argsort(relations, kind="stable")
    asked = torch.from_numpy(heads[order]).to(scores.device), torch.from_numpy(relations[order]).to(scores.device)
    for number, (table,) in enumerate(scores.blocks(*asked, block) if len(order) else ()):
        part = order[number * block : (number + 1) * block]
        answer = torch.from_numpy(targets[part]).to(scores.device)[:, None]  # (B, 1)
        found[part] = log_shares(table, loss).gather(1, answer)[:, 0].cpu().numpy()
    return found


def surer(log_share: np.ndarray, triples: np.ndarray, domains: Domains) -> tuple[np.ndarray, np.ndarray]:
    """The score of triples, log-odds of the surer of their two questions.

    Args:
        log_share: (2T,) of the tails, then of the heads.
        triples: (T, 3).
        domains: which questions make sense.

    Returns:
        (T,) float64 scores, and (T,) bool: the tail's question is the surer one.
    """
    entities, relations, _ = with_inverses(triples, len(domains.single) // 2).T
    counts = domains.make_sense(entities, relations).reshape(2, -1)
    counts |= ~counts.any(axis=0)
    both = np.where(counts, log_odds(log_share).reshape(2, -1), -np.inf)
    return both.max(axis=0), both[0] >= both[1]


@dataclass(frozen=True)
class Calibration:
    """From scores to probabilities, with the reliability that it had on facts it was not fitted to.

    A probability of 0.8 means: among validation facts and as many corrupted ones, four of five triples of this score are facts.

    Args:
        slope: at least 0, so that no higher score has a lower probability.
        offset: log-odds at score 0.
        facts: number of validation triples; there are as many corrupted ones.
        brier: mean squared error, 0..1 (0.25: always one half). Each half of the facts has the function of the other half.
        error: expected calibration error in ten bins, 0..1, over the same predictions.
    """

    slope: float
    offset: float
    facts: int
    brier: float
    error: float

    def probability(self, score: np.ndarray | float) -> np.ndarray:
        """(T,) scores -> (T,) probabilities, 0..1."""
        return np.asarray(expit(self.slope * np.asarray(score) + self.offset))

    def describe(self) -> str:
        """What a probability means and how reliable it is, on a line."""
        return (
            f"probability: that of a fact among {self.facts:,} validation facts and as many corrupted ones; on facts held back "
            f"from the fit its Brier score is {self.brier:.3f}, its calibration error {self.error:.3f}"
        )


def calibrate_probability(score: Score, graph: KnowledgeGraph, known: KnownAnswers) -> Calibration | None:
    """Fit the probability to at most 2,000 validation triples, drawn by a fixed seed, and as many corrupted ones.

    Args:
        score: of triples.
        graph: its validation triples are the facts; test is not read.
        known: facts of train and validation, none of which counts as corrupted.

    Returns:
        None with fewer than `LEAST_FACTS` validation triples, or where half of them cannot be corrupted.
    """
    draw = np.random.default_rng(0)
    facts = graph.valid
    if len(facts) > _MOST_FACTS:
        facts = facts[np.sort(draw.choice(len(facts), _MOST_FACTS, replace=False))]
    wrong, corrupted = corrupt(graph, facts, known, draw)
    facts, wrong = facts[corrupted], wrong[corrupted]
    fold = folds(facts)
    if len(facts) < LEAST_FACTS or len(np.unique(fold)) < 2:
        return None
    scores = score(np.concatenate([facts, wrong]))
    true, fold = np.arange(len(scores)) < len(facts), np.tile(fold, 2)
    held_out = np.empty(len(scores))
    for half in (0, 1):
        slope, offset = _platt(scores[fold != half], true[fold != half])
        held_out[fold == half] = expit(slope * scores[fold == half] + offset)
    return Calibration(*_platt(scores, true), len(facts), *reliability(held_out, true))


def corrupt(
    graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the tail of every other triple and the head of the rest, by the same end of a random training triple of the
    relation: harder to tell from a fact than any entity.

    Args:
        graph: of the triples.
        triples: (T, 3).
        known: no corrupted triple is one of these.
        draw: random numbers.

    Returns:
        (T, 3) triples, and (T,) bool: where it was possible.
    """
    order = np.argsort(graph.train[:, 1], kind="stable")
    donors = graph.train[order]
    low = np.searchsorted(donors[:, 1], triples[:, 1])
    high = np.searchsorted(donors[:, 1], triples[:, 1], side="right")
    end = np.where(np.arange(len(triples)) % 2, 0, 2)
    wrong, pending = triples.copy(), np.arange(len(triples))
    taken = _codes_of(known, graph)
    for attempt in range(2 * _DRAWS):
        chosen = draw.integers(np.where(low < high, low, 0)[pending], np.where(low < high, high, len(donors))[pending])
        drawn = donors[chosen, end[pending]] if attempt < _DRAWS else draw.integers(0, graph.num_entities, len(pending))
        wrong[pending, end[pending]] = drawn
        pending = pending[np.isin(codes(wrong[pending], graph.num_entities, graph.num_relations), taken)]
    possible = np.ones(len(triples), dtype=bool)
    possible[pending] = False
    return wrong, possible


def reliability(probabilities: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Brier score, and expected calibration error in ten bins of equal width.

    Args:
        probabilities: (T,) 0..1.
        true: (T,) bool.
    """
    brier = float(np.mean((probabilities - true) ** 2))
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, probabilities - true, _BINS)
    return brier, float(np.abs(gaps).sum() / len(true))


def _codes_of(known: KnownAnswers, graph: KnowledgeGraph) -> np.ndarray:
    entities, relations = known.queries()
    rows, answers = known.lookup(entities, relations)
    forward = relations[rows] < graph.num_relations
    triples = np.stack([entities[rows], relations[rows], answers], axis=1)[forward]
    return codes(triples, graph.num_entities, graph.num_relations)


def _platt(scores: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Slope, at least 0, and offset of the likeliest logistic function, with Platt's targets, which stay off 0 and 1."""
    positive = int(true.sum())
    target = np.where(true, (positive + 1) / (positive + 2), 1 / (len(true) - positive + 2))

    def surprise(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * scores + line[1]
        slack = expit(logits) - target
        return float(np.mean(np.logaddexp(0, logits) - target * logits)), np.array([np.mean(slack * scores), np.mean(slack)])

    slope, offset = minimize(surprise, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]).x
    assert math.isfinite(slope) and math.isfinite(offset)
    return float(slope), float(offset)
