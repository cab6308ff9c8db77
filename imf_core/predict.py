"""Answering by name with a trained checkpoint.

Shapes: `B` questions of a block, `N` entities, `M` branches, `d` entity width, `k` answers to a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imf_core.checkpoint.checkpoint import Checkpoint, load_checkpoint
from imf_core.errors import ConfigError, ImfError

MOST, BUDGET = 256, 2**28  # most questions of a block; bytes that their scores may take


@dataclass(frozen=True)
class Answer:
    """One proposed entity.

    Args:
        entity: its name.
        score: its probability, 0..1 (`ce`: softmax of the combined scores over all entities; `bce`: mixture of sigmoids).
        branch_scores: its probability by each branch alone, 0..1.
        weights: decision weight of each branch for this query; they sum to 1.
    """

    entity: str
    score: float
    branch_scores: dict[str, float]
    weights: dict[str, float]


@dataclass(frozen=True)
class Question:
    """(head, relation, ?) or (?, relation, tail): exactly one of head and tail is None."""

    head: str | None
    relation: str
    tail: str | None


class Predictor:
    """Proposes tails or heads by name.

        Predictor.load("results/demo/best").tails("LATIN SMALL LETTER E WITH ACUTE", "canonical_base", k=5)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        with torch.no_grad():
            self._tables = checkpoint.model.tables()

    @classmethod
    def load(cls, path: Path | str) -> Predictor:
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        return cls(load_checkpoint(path))

    def tails(self, head: str, relation: str, k: int = 10) -> list[Answer]:
        """The k most plausible tails of (head, relation, ?).

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
        """
        return next(self.answers([Question(head, relation, None)], k))

    def heads(self, tail: str, relation: str, k: int = 10) -> list[Answer]:
        """The k most plausible heads of (?, relation, tail); errors as of `tails`."""
        return next(self.answers([Question(None, relation, tail)], k))

    def answers(self, questions: Sequence[Question], k: int = 10) -> Iterator[list[Answer]]:
        """The k most plausible answers to each question, in the order of the questions; scored block by block.

        Raises:
            VocabularyError: unknown name, raised before anything is scored; the nearest known one is proposed.
            ImfError: k below 1, or a question that leaves both ends open or none.
        """
        if k < 1:
            raise ImfError(f"k must be at least 1, found {k}", remedy="ask for one answer or more", value=k)
        known, asked = zip(*map(self.ids, questions), strict=True) if questions else ((), ())
        heads, relations = torch.tensor(known, dtype=torch.long), torch.tensor(asked, dtype=torch.long)
        model = self.checkpoint.model
        block = max(1, min(MOST, BUDGET // (4 * model.num_entities * (2 * len(model.branches) + 2))))
        return (
            answers
            for low in range(0, len(questions), block)
            for answers in self._block(heads[low : low + block], relations[low : low + block], k)
        )

    def ids(self, question: Question) -> tuple[int, int]:
        """Ids of the known entity and of the relation, 0..2R-1: the inverse one if the head is sought.

        Raises:
            VocabularyError: unknown name.
            ImfError: both ends are open, or none.
        """
        if (question.head is None) == (question.tail is None):
            raise ImfError(
                f"({question.head}, {question.relation}, {question.tail}) leaves not exactly one end open",
                remedy="give the head or the tail, and leave the other one open", value=question,
            )
        inverse = question.head is None
        known = self.checkpoint.entities.id(str(question.tail if inverse else question.head))
        relation = self.checkpoint.relations.id(question.relation)
        return known, relation + (self.checkpoint.model.num_relations if inverse else 0)

    def embeddings(self, branch: str) -> np.ndarray:
        """The vectors that a branch scores the entities by.

        Args:
            branch: `structure`, a modality or `fused`.

        Returns:
            (N, d) float32, in the order of the vocabulary.

        Raises:
            ConfigError: the model has no such branch.
        """
        table = self._tables.entities.get(branch)
        if table is None:
            raise ConfigError(
                f"the model has no branch {branch!r}", remedy=f"choose {' or '.join(self._tables.entities)}", key="branch",
                value=branch,
            )
        return table.detach().float().numpy()

    def about(self) -> dict[str, Any]:
        """Branches, sizes and figures of the model, as plain values."""
        loaded, model = self.checkpoint, self.checkpoint.model
        return {
            "branches": list(model.branches), "modalities": list(model.modality_names), "dimension": loaded.config.model.dim,
            "parameters": model.num_parameters, "figures": loaded.metrics,
        }

    @torch.no_grad()
    def _block(self, heads: torch.Tensor, relations: torch.Tensor, k: int) -> list[list[Answer]]:
        """Answers to a block of questions: known entities (B,) and relations (B,) below 2R."""
        model, names = self.checkpoint.model, self.checkpoint.entities.names
        scores = model.branch_scores(self._tables, model.contexts(self._tables, heads, relations))  # M x (B, N)
        norms = [torch.logsumexp(score, dim=1) for score in scores]  # M x (B,)
        weights = model.decision_weights(heads, relations)  # (B, M)
        combined = model.combine(scores, norms, weights)  # (B, N)
        best = torch.topk(combined, min(k, len(names)), dim=1).indices  # (B, k)
        picked = [score.gather(1, best) for score in scores]
        if model.loss_kind == "ce":
            total = torch.logsumexp(combined, dim=1, keepdim=True)
            probabilities = (combined.gather(1, best) - total).exp()
            alone = [(score - norm[:, None]).exp() for score, norm in zip(picked, norms, strict=True)]
        else:
            probabilities, alone = combined.gather(1, best), [score.sigmoid() for score in picked]
        parts = torch.stack(alone, dim=2).tolist()  # (B, k, M)
        return [
            [
                Answer(names[entity], probability, dict(zip(model.branches, part, strict=True)), shares)
                for entity, probability, part in zip(*columns, strict=True)
            ]
            for *columns, shares in zip(
                best.tolist(), probabilities.tolist(), parts,
                [dict(zip(model.branches, row, strict=True)) for row in weights.tolist()], strict=True,
            )
        ]
