"""What a predictor is asked, and what it answers.

A *known* fact is a triple of the training or validation split, as the checkpoint holds them; test is never read.

Shapes: `B` questions of a block, `N` entities, `k` answers to a question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch

from imf_core.config_base import nearest
from imf_core.data.graph.graph import KnownAnswers
from imf_core.errors import ConfigError


class Known(StrEnum):
    """What becomes of answers that are known facts."""

    DROP = "drop"
    MARK = "mark"
    ONLY = "only"

    @classmethod
    def of(cls, value: str) -> Known:
        """The choice of a name.

        Raises:
            ConfigError: there is no such choice.
        """
        if value not in list(cls):
            remedy = f"choose one of: {', '.join(cls)}"
            raise ConfigError(f"known is {value!r}{nearest(value, map(str, cls))}", remedy=remedy, key="known", value=value)
        return cls(value)


def left_out_line(count: int, remedy: str = "--known mark") -> str:
    """What is said of known facts that were left out; empty if there are none."""
    if not count:
        return ""
    return f"{count:,} known fact{'s' * (count > 1)} left out; {remedy} shows {'them' if count > 1 else 'it'}"


@dataclass(frozen=True)
class Answer:
    """One proposed entity.

    Args:
        entity: its name.
        score: its share, 0..1, whether known facts are left out or not (`ce`: softmax of the combined scores over all entities;
            `bce`: mixture of sigmoids).
        branch_scores: its share by each branch alone, 0..1.
        weights: decision weight of each branch for this query; they sum to 1.
        known: it makes a known fact.
    """

    entity: str
    score: float
    branch_scores: dict[str, float]
    weights: dict[str, float]
    known: bool = False


@dataclass(frozen=True)
class ScoredTriple:
    """A triple as the model sees it.

    Args:
        head, relation, tail: names.
        score: log-odds of its share in the surer of its two questions, see `imf_core.evaluate.certainty`.
        tail_rank, head_rank: of the tail among all tails, of the head among all heads; 1 is best, other known facts do not
            compete, ties count with their mean rank: as in an evaluation, which takes the mean over both.
        probability: that it is a fact, see `Calibration`; None where validation is too small to say.
        known: it is a known fact.
    """

    head: str
    relation: str
    tail: str
    score: float
    tail_rank: float
    head_rank: float
    probability: float | None
    known: bool


@dataclass(frozen=True)
class Picks:
    """Chosen entities of a block of questions.

    Args:
        entities: (B, k) int64 ids.
        known: (B, k) bool, they make known facts.
        kept: (B, k) bool, False where a question has fewer answers.
    """

    entities: torch.Tensor
    known: torch.Tensor
    kept: torch.Tensor


@dataclass(frozen=True)
class Question:
    """(head, relation, ?) or (?, relation, tail): exactly one of head and tail is None."""

    head: str | None
    relation: str
    tail: str | None


Choice = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Picks]  # heads (B,), relations (B,), combined (B, N) -> picks


def best_answers(
    facts: KnownAnswers, loops: np.ndarray, choice: Known, k: int, heads: torch.Tensor, relations: torch.Tensor,
    combined: torch.Tensor,
) -> Picks:
    """The k best answers of each question among those that the choice admits.

    Args:
        facts: the known ones.
        loops: (2R,) bool, relations with a self-loop in training.
        choice: what becomes of known facts.
        k: answers to each question.
        heads, relations: (B,) int64 given entities and relations below 2R.
        combined: (B, N) scores.
    """
    rows, answers = facts.lookup(heads.numpy(), relations.numpy())
    is_known = torch.zeros_like(combined, dtype=torch.bool)  # (B, N)
    is_known[torch.from_numpy(rows), torch.from_numpy(answers)] = True
    is_old = is_known
    if choice is Known.DROP and (alone := torch.from_numpy(~loops[relations.numpy()])).any():
        is_old = is_known.clone()
        is_old[alone, heads[alone]] = True
    admitted = {Known.DROP: ~is_old, Known.MARK: None, Known.ONLY: is_known}[choice]
    ranked = combined if admitted is None else combined.masked_fill(~admitted, -torch.inf)
    best = torch.topk(ranked, min(k, combined.shape[1]), dim=1).indices  # (B, k)
    kept = torch.ones_like(best, dtype=torch.bool) if admitted is None else admitted.gather(1, best)
    return Picks(best, is_known.gather(1, best), kept)
