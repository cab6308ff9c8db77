"""Answering by name with a trained checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from imf_core.errors import ImfError
from imf_core.train.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True)
class Answer:
    """One proposed entity.

    Args:
        entity: its name.
        score: probability in the decided distribution (`ce`: softmax over all entities; `bce`: mixture of sigmoids), 0..1.
        branch_scores: the same quantity for each branch alone.
        weights: decision weight of each branch for this query; they sum to 1.
    """

    entity: str
    score: float
    branch_scores: dict[str, float]
    weights: dict[str, float]


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
            CheckpointError: missing, damaged, or of another version.
        """
        return cls(load_checkpoint(path))

    def tails(self, head: str, relation: str, k: int = 10) -> list[Answer]:
        """The k most plausible tails of (head, relation, ?).

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
        """
        return self._answers(head, relation, k, inverse=False)

    def heads(self, tail: str, relation: str, k: int = 10) -> list[Answer]:
        """The k most plausible heads of (?, relation, tail).

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
        """
        return self._answers(tail, relation, k, inverse=True)

    @torch.no_grad()
    def _answers(self, entity: str, relation: str, k: int, inverse: bool) -> list[Answer]:
        if k < 1:
            raise ImfError(f"k must be at least 1, found {k}", remedy="ask for one answer or more", value=k)
        model, entities = self.checkpoint.model, self.checkpoint.entities
        head = torch.tensor([entities.id(entity)])
        asked = torch.tensor([self.checkpoint.relations.id(relation) + (model.num_relations if inverse else 0)])
        scores = model.branch_scores(self._tables, model.contexts(self._tables, head, asked))
        norms = [torch.logsumexp(score, dim=1) for score in scores]
        weights = model.decision_weights(head, asked)
        decided = model.decide(scores, norms, weights)[0]
        if model.loss_kind == "ce":
            probability = torch.softmax(decided, dim=0)
            alone = [torch.softmax(score[0], dim=0) for score in scores]
        else:
            probability, alone = decided, [score[0].sigmoid() for score in scores]
        order = torch.topk(decided, min(k, len(entities))).indices.tolist()
        shares = dict(zip(model.branches, weights[0].tolist(), strict=True))
        return [
            Answer(
                entities.names[place], float(probability[place]),
                {branch: float(score[place]) for branch, score in zip(model.branches, alone, strict=True)}, shares,
            )
            for place in order
        ]
