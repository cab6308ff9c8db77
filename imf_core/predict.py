"""Answering by name with a trained checkpoint.

Shapes: `B` questions of a block, `N` entities, `R` relations, `M` branches, `d` entity width, `k` answers to a question, `T`
triples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from imf_core.answers import Answer, Choice, Known, Picks, Question, ScoredTriple, best_answers
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, load_checkpoint
from imf_core.data.graph.domains import Domains
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, with_inverses
from imf_core.errors import CheckpointError, ConfigError, ImfError
from imf_core.evaluate.certainty import Calibration, answer_log_shares, calibrate_probability, surer
from imf_core.evaluate.pooled import PooledScores
from imf_core.evaluate.ranking import ModelScores, rank
from imf_core.model.grouped import KeptMatrices
from imf_core.prepare.link_data import graph_of

MOST, BUDGET = 256, 2**28  # most questions of a block; bytes that their scores may take
_KEPT = 2**26  # bytes of the matrices of the relations that were asked for last


class Predictor:
    """Proposes tails or heads by name.

        Predictor.load("results/demo/best").tails("LATIN SMALL LETTER E WITH ACUTE", "canonical_base", k=5)
    """

    def __init__(self, checkpoint: Checkpoint, data: str | None = None) -> None:
        self.checkpoint, self.data = checkpoint, data
        self.loss = checkpoint.model.loss_kind  # how `scores` are to be read
        scores = ModelScores(checkpoint.model, BUDGET)
        self._tables, self.scores = scores.tables, cast(ModelScores | PooledScores, scores)
        self._kept = KeptMatrices(_KEPT)

    @classmethod
    def load(cls, path: Path | str, data: str | None = None) -> Predictor:
        """Load a checkpoint folder.

        Args:
            path: the folder, or `hf://OWNER/NAME` on the hub.
            data: graph folder to take the known facts from; None: those that the checkpoint holds.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        return cls(load_checkpoint(path), data)

    @cached_property
    def graph(self) -> KnowledgeGraph:
        """The known facts: those of the given data, else the checkpoint's own, else those of the folder it was trained on.

        Raises:
            CheckpointError: the checkpoint holds none and that folder cannot be used, or the data has other names.
            DataError: the given data cannot be read.
        """
        loaded = self.checkpoint
        if self.data is None and loaded.graph is not None:
            return loaded.graph
        settings = loaded.config.data
        try:
            graph = graph_of(settings if self.data is None else settings.elsewhere(self.data))
            check_vocabulary(loaded.description, graph.entities, graph.relations, loaded.path)
        except ImfError as error:
            if self.data is not None:
                raise
            raise CheckpointError(
                f"{loaded.path} was saved without its facts, so known answers cannot be told from new ones, and the folder it "
                f"was trained on cannot be used: {error.problem}",
                remedy="name the folder with its graph (--data DIR; data=DIR in Python), or train it again",
            ) from error
        return graph

    @cached_property
    def known(self) -> KnownAnswers:
        """The known facts by question; errors as of `graph`."""
        return self.graph.known()

    @cached_property
    def loops(self) -> np.ndarray:
        """(2R,) bool: training holds a self-loop of the relation; errors as of `graph`."""
        train, found = self.graph.train, np.zeros(self.graph.num_relations, dtype=bool)
        found[train[train[:, 0] == train[:, 2], 1]] = True
        return np.tile(found, 2)

    @cached_property
    def domains(self) -> Domains:
        """Which questions make sense; errors as of `graph`."""
        return Domains.of(self.graph)

    @cached_property
    def calibration(self) -> Calibration | None:
        """How scores become probabilities: fitted to validation when first asked for; None where that is too small."""
        return calibrate_probability(lambda triples: self.score_ids(triples)[0], self.graph, self.known)

    def tails(self, head: str, relation: str, k: int = 10, known: str = "drop") -> list[Answer]:
        """The k most plausible tails of (head, relation, ?); arguments and errors as of `answers`."""
        return next(self.answers([Question(head, relation, None)], k, known))

    def heads(self, tail: str, relation: str, k: int = 10, known: str = "drop") -> list[Answer]:
        """The k most plausible heads of (?, relation, tail); arguments and errors as of `answers`."""
        return next(self.answers([Question(None, relation, tail)], k, known))

    def answers(self, questions: Sequence[Question], k: int = 10, known: str = "drop") -> Iterator[list[Answer]]:
        """The k most plausible answers to each question, in the order of the questions; scored block by block.

        Args:
            questions: by name.
            k: answers to each, at least 1; there may be fewer.
            known: known facts are left out (`drop`), stand among the others with their mark (`mark`), or stand alone (`only`).
                `drop` leaves out the given entity, too, unless training holds a self-loop of the relation.

        Raises:
            VocabularyError: unknown name, raised before anything is scored; the nearest known one is proposed.
            ImfError: k below 1, or a question that leaves both ends open or none.
            ConfigError: another word for `known`.
            CheckpointError: the known facts are not at hand, see `graph`.
        """
        if k < 1:
            raise ImfError(f"k must be at least 1, found {k}", remedy="ask for one answer or more", value=k)
        choice, (heads, relations) = Known.of(known), self._asked(questions)
        facts, loops = self.known, self.loops

        def best(heads: torch.Tensor, relations: torch.Tensor, combined: torch.Tensor) -> Picks:
            return best_answers(facts, loops, choice, k, heads, relations, combined)

        return (
            answers
            for part in self._parts(len(questions))
            for answers in self._block(heads[part], relations[part], best)
        )

    def num_known(self, questions: Sequence[Question]) -> list[int]:
        """Number of known answers to each question; errors as of `answers`."""
        heads, relations = self._asked(questions)
        rows, _ = self.known.lookup(heads.numpy(), relations.numpy())
        counts: list[int] = np.bincount(rows, minlength=len(questions)).tolist()
        return counts

    def score(self, triples: Sequence[tuple[str, str, str]]) -> list[ScoredTriple]:
        """Scores, ranks and probabilities of triples.

        Args:
            triples: names of head, relation, tail.

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
            CheckpointError: the known facts are not at hand, see `graph`.
        """
        if not triples:
            return []
        rows = np.array([self.triple_ids(*triple) for triple in triples])
        scores, _ = self.score_ids(rows)
        heads, relations, targets = with_inverses(rows, self.graph.num_relations).T
        tail_ranks, head_ranks = rank(
            self.scores, heads, relations, targets, self.known, block=self.scores.block
        )[0].reshape(2, -1).tolist()
        calibration = self.calibration
        chances = [None] * len(rows) if calibration is None else calibration.probability(scores).tolist()
        asked, answers = self.known.lookup(rows[:, 0], rows[:, 1])
        facts = np.zeros(len(rows), dtype=bool)
        facts[asked[answers == rows[asked, 2]]] = True
        columns = zip(triples, scores.tolist(), tail_ranks, head_ranks, chances, facts.tolist(), strict=True)
        return [ScoredTriple(*triple, *values) for triple, *values in columns]

    def triple_ids(self, head: str, relation: str, tail: str) -> tuple[int, int, int]:
        """Ids of a triple.

        Raises:
            VocabularyError: unknown name; the nearest known one is proposed.
        """
        entities = self.checkpoint.entities
        return entities.id(head), self.checkpoint.relations.id(relation), entities.id(tail)

    def score_ids(self, triples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores (T,) of triples (T, 3) of ids, and (T,) bool: the tail's question is the surer one; see `surer`."""
        heads, relations, targets = with_inverses(triples, self.graph.num_relations).T
        shares = answer_log_shares(self.scores, self.loss, heads, relations, targets, self.scores.block)
        return surer(shares, triples, self.domains)

    def explain(self, heads: np.ndarray, relations: np.ndarray, targets: np.ndarray) -> list[Answer]:
        """What each branch says to given answers.

        Args:
            heads, relations, targets: (T,) ids, relations below 2R.
        """
        explained = []
        for part in self._parts(len(heads)):
            picks = _given(torch.from_numpy(targets[part])[:, None])
            block = self._block(torch.from_numpy(heads[part]), torch.from_numpy(relations[part]), picks)
            explained += [answer for (answer,) in block]
        return explained

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
            "branches": list(model.branches), "modalities": list(model.all_modalities), "dimension": loaded.config.model.dim,
            "parameters": model.num_parameters, "figures": loaded.metrics,
        }

    @property
    def _size(self) -> int:
        """Questions of a block: all branches of all candidates are in memory."""
        model = self.checkpoint.model
        return max(1, min(MOST, BUDGET // (4 * model.num_entities * (2 * len(model.branches) + 2))))

    def _parts(self, count: int) -> list[slice]:
        """The blocks of so many questions."""
        return [slice(low, low + self._size) for low in range(0, count, self._size)]

    def _asked(self, questions: Sequence[Question]) -> tuple[torch.Tensor, torch.Tensor]:
        """Given entities and relations of questions, (B,) int64 each, see `ids`."""
        rows = torch.tensor([self.ids(question) for question in questions], dtype=torch.long).view(-1, 2)
        return rows[:, 0].contiguous(), rows[:, 1].contiguous()

    @torch.no_grad()
    def _block(self, heads: torch.Tensor, relations: torch.Tensor, choose: Choice) -> list[list[Answer]]:
        """Answers to a block of questions: given entities (B,) and relations (B,) below 2R."""
        model = self.checkpoint.model
        contexts = model.contexts(self._tables, heads, relations, self._kept)
        scores = model.branch_scores(self._tables, contexts)  # M x (B, N)
        norms = [torch.logsumexp(score, dim=1) for score in scores]  # M x (B,)
        weights = model.decision_weights(heads, relations)  # (B, M)
        combined = model.combine(scores, norms, weights)  # (B, N)
        total = torch.logsumexp(combined, dim=1, keepdim=True) if model.loss_kind == "ce" else None
        picks = choose(heads, relations, combined)
        best = picks.entities
        raw, picked = combined.gather(1, best), [score.gather(1, best) for score in scores]
        if total is not None:
            probabilities, alone = (raw - total).exp(), [
                (score - norm[:, None]).exp() for score, norm in zip(picked, norms, strict=True)
            ]
        else:
            probabilities, alone = raw, [score.sigmoid() for score in picked]
        shares = [dict(zip(model.branches, row, strict=True)) for row in weights.tolist()]
        return self._named(picks, probabilities, torch.stack(alone, dim=2), shares)

    def _named(
        self, picks: Picks, probabilities: torch.Tensor, parts: torch.Tensor, weights: Sequence[dict[str, float]]
    ) -> list[list[Answer]]:
        """Answers (B, k) with their probabilities (B, k), those of the branches (B, k, M) and weights of the branches."""
        names = self.checkpoint.entities.names
        tables = (picks.entities, probabilities, parts, picks.known, picks.kept)
        return [
            [
                Answer(names[entity], probability, dict(zip(shares, part, strict=True)), shares, known)
                for entity, probability, part, known, kept in zip(*columns, strict=True)
                if kept
            ]
            for *columns, shares in zip(*(table.tolist() for table in tables), weights, strict=True)
        ]


def _given(entities: torch.Tensor) -> Choice:
    """Chooses these entities (B, k), known facts or not."""
    picks = Picks(entities, torch.zeros_like(entities, dtype=torch.bool), torch.ones_like(entities, dtype=torch.bool))
    return lambda *_: picks
