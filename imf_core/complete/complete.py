"""The most certain new facts of a whole graph.

Not all N x 2R questions are asked, but those that make sense by the training facts (`imf_core.data.graph.domains`): an entity
is asked a relation that it has already, or that at least half of those have with which it shares another one. The others, such
as the capital of a person, have no true answer and would fill the list. Where a question has one answer, as a rule, and that
is known, a second one is no new fact. Any entity may be the answer.

Facts of different questions are compared by the log-odds of their share in the surer question that was asked, not by raw
scores, whose zero differs between questions (`imf_core.evaluate.certainty`); the probability rises with it.

In memory are at most four tables of B x N scores (B follows from the predictor's budget of 256 MiB), and the best facts so far.

Shapes: `Q` questions, `B` of a block, `N` entities, `R` relations, `K` facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.errors import ImfError
from imf_core.evaluate.certainty import log_odds, log_shares
from imf_core.predict import Predictor

NEAR = 3  # training facts of each kind beside a new one


@dataclass(frozen=True)
class NewFact:
    """A proposed triple.

    Args:
        head, relation, tail: names.
        score: see `ScoredTriple.score`.
        probability: that it is a fact, see `Calibration`; None where validation is too small to say.
        asked: `tail` or `head`, the end that was sought in the surer question.
        share: of the answer to that question, 0..1.
        branch_shares: the same by each branch alone, 0..1; of an ensemble, by each member.
        weights: of the branches in that question; they sum to 1.
        same_head: training facts of the same head and relation, those with the most similar tails first.
        same_tail: training facts of the same relation and tail, those with the most similar heads first.
    """

    head: str
    relation: str
    tail: str
    score: float
    probability: float | None
    asked: str
    share: float
    branch_shares: dict[str, float]
    weights: dict[str, float]
    same_head: tuple[tuple[str, str, str], ...] = ()
    same_tail: tuple[tuple[str, str, str], ...] = ()

    @property
    def branch(self) -> str:
        """The branch that says so: the one that adds most to the decision."""
        return max(self.weights, key=lambda name: self.weights[name] * self.branch_shares[name])


@dataclass(frozen=True)
class Completion:
    """New facts, the most certain first, and the number of questions that were asked for them."""

    facts: tuple[NewFact, ...]
    questions: int


def complete(predictor: Predictor, top: int = 200, relation: str | None = None, block: int | None = None) -> Completion:
    """The most certain triples that are neither in train nor in validation.

    A self-loop is proposed only for a relation that has one in training, and a second answer only where there are such.

    Args:
        predictor: of a checkpoint or an ensemble.
        top: most facts, at least 1.
        relation: only its facts; None: those of all relations.
        block: questions scored at a time; None: as many as the predictor's budget allows.

    Raises:
        ImfError: `top` below 1.
        VocabularyError: unknown relation.
        CheckpointError: the known facts are not at hand, see `Predictor.graph`.
    """
    if top < 1:
        raise ImfError(f"top must be at least 1, found {top}", remedy="ask for one fact or more", value=top)
    graph = predictor.graph
    entities, relations = predictor.domains.open_questions(predictor.known)
    if relation is not None:
        chosen = relations % graph.num_relations == predictor.checkpoint.relations.id(relation)
        entities, relations = entities[chosen], relations[chosen]
    best: dict[tuple[int, int, int], tuple[float, bool]] = {}
    for is_tail in (True, False):
        part = np.flatnonzero((relations < graph.num_relations) == is_tail)
        part = part[np.argsort(relations[part], kind="stable")]
        for given, asked, answer, share in _surest(predictor, entities[part], relations[part], top, block):
            triple = (given, asked, answer) if is_tail else (answer, asked - graph.num_relations, given)
            best[triple] = max(best.get(triple, (share, is_tail)), (share, is_tail))
    ordered = sorted(best.items(), key=lambda item: (-item[1][0], item[0]))[:top]
    return Completion(_described(predictor, [(triple, *found) for triple, found in ordered]), len(entities))


@torch.no_grad()
def _surest(
    predictor: Predictor, entities: np.ndarray, relations: np.ndarray, top: int, block: int | None
) -> list[tuple[int, int, int, float]]:
    """The `top` new answers of the largest shares to all of Q questions: given entity, relation below 2R, answer, log-share.

    The best facts by their surer question are among those of both directions: a fact has its score from one of them.
    """
    size, scores, taken = block or predictor.scores.block, predictor.scores, _Taken(predictor)
    shares, found = torch.empty(0), torch.empty((0, 2), dtype=torch.long)  # (K,), (K, 2): question and answer
    asked = torch.from_numpy(entities), torch.from_numpy(relations)
    for number, (table,) in enumerate(scores.blocks(*asked, size) if len(entities) else ()):
        part = slice(number * size, number * size + len(table))
        log_shares(table, predictor.loss)
        rows, answers = predictor.known.lookup(entities[part], relations[part])
        table[torch.from_numpy(rows), torch.from_numpy(answers)] = -torch.inf
        alone = np.flatnonzero(~predictor.loops[relations[part]])
        table[torch.from_numpy(alone), torch.from_numpy(entities[part][alone])] = -torch.inf
        taken.hide(table, relations[part])
        values, places = table.flatten().topk(min(top, table.numel()))
        pairs = torch.stack([places // table.shape[1] + part.start, places % table.shape[1]], dim=1)
        shares, kept = torch.cat([shares, values]).topk(min(top, len(shares) + len(values)))
        found = torch.cat([found, pairs])[kept]
    rows, answers = found[torch.isfinite(shares)].T.numpy()
    values = shares[torch.isfinite(shares)].tolist()
    return list(zip(entities[rows].tolist(), relations[rows].tolist(), answers.tolist(), values, strict=True))


class _Taken:
    """Entities that are no new answer, since they have the one that their relation has as a rule."""

    def __init__(self, predictor: Predictor) -> None:
        entities, relations = predictor.known.queries()
        self.width, single = 2 * predictor.graph.num_relations, predictor.domains.single
        self.entities = {
            relation: torch.from_numpy(entities[relations == relation]) for relation in np.flatnonzero(single).tolist()
        }

    def hide(self, table: Tensor, relations: np.ndarray) -> None:
        """Set their scores in (B, N) to -inf; the relations (B,), below 2R, are in order."""
        for relation in np.unique(relations).tolist():
            taken = self.entities.get((relation + self.width // 2) % self.width)
            if taken is not None:
                rows = slice(*np.searchsorted(relations, [relation, relation + 1]).tolist())
                table[rows].index_fill_(1, taken, -torch.inf)


def _described(
    predictor: Predictor, ordered: Sequence[tuple[tuple[int, int, int], float, bool]]
) -> tuple[NewFact, ...]:
    if not ordered:
        return ()
    graph, calibration = predictor.graph, predictor.calibration
    triples = np.array([triple for triple, _, _ in ordered])
    is_tail = np.array([tail for _, _, tail in ordered])
    scores = log_odds(np.array([share for _, share, _ in ordered]))
    chances = [None] * len(scores) if calibration is None else calibration.probability(scores).tolist()
    answers = predictor.explain(
        np.where(is_tail, triples[:, 0], triples[:, 2]), triples[:, 1] + np.where(is_tail, 0, graph.num_relations),
        np.where(is_tail, triples[:, 2], triples[:, 0]),
    )
    near = _Neighbours(graph, predictor.checkpoint.model.structure.detach())
    entities, relations = graph.entities.names, graph.relations.names
    columns = zip(triples.tolist(), scores.tolist(), chances, is_tail.tolist(), answers, strict=True)
    return tuple(
        NewFact(
            entities[head], relations[relation], entities[tail], score, chance, "tail" if sought else "head", answer.score,
            answer.branch_scores, answer.weights, near.of(head, relation, tail, 0), near.of(head, relation, tail, 2),
        )
        for (head, relation, tail), score, chance, sought, answer in columns
    )


class _Neighbours:
    """The training facts nearest to a new one: they share an end and the relation, and their other ends are similar.

    Args:
        graph: its training facts.
        vectors: (N, d) of the entities; similarity is the cosine.
    """

    def __init__(self, graph: KnowledgeGraph, vectors: Tensor) -> None:
        self.graph, self.vectors = graph, vectors
        self.order = {end: np.lexsort((graph.train[:, end], graph.train[:, 1])) for end in (0, 2)}
        self.keys = {end: self._key(graph.train[order, 1], graph.train[order, end]) for end, order in self.order.items()}

    def of(self, head: int, relation: int, tail: int, shared: int) -> tuple[tuple[str, str, str], ...]:
        """At most `NEAR` facts with the same head (`shared` 0) or the same tail (`shared` 2)."""
        end, other = (head, tail) if shared == 0 else (tail, head)
        low, high = (np.searchsorted(self.keys[shared], self._key(relation, end + after)) for after in (0, 1))
        facts = self.graph.train[self.order[shared][low:high]]
        others = self.vectors[torch.from_numpy(facts[:, 2 - shared])]
        closeness = torch.cosine_similarity(others, self.vectors[[other]], dim=1)
        names, relations = self.graph.entities.names, self.graph.relations.names
        nearest = facts[torch.sort(closeness, descending=True, stable=True).indices[:NEAR].numpy()]
        return tuple((names[h], relations[r], names[t]) for h, r, t in nearest.tolist())

    def _key(self, relations: np.ndarray | int, ends: np.ndarray | int) -> np.ndarray | int:
        return relations * self.graph.num_entities + ends
