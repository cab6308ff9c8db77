"""Training queries and their order: it depends on seed and epoch only, and is divided among the processes.

Shapes: `Q` distinct training queries, `R` that an epoch asks (more where answers are divided), `P` known answers of a batch,
`B` queries of a process's batch, `S` answers of a teacher.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, expand_ranges
from imf_core.errors import DataError
from imf_core.model.losses.distillation import SoftTargets
from imf_core.model.losses.target import Positives
from imf_core.model.static.plan import Plan
from imf_core.runtime import WHOLE, Shard
from imf_core.train.step.packing import packed, unpacked


@dataclass(frozen=True)
class QueryBatch:
    """Queries of one process and their answers.

    Args:
        heads, relations: (B,) int64 ids.
        positives: the P known answers.
        weight: share of this process's mean loss in the global mean, times the number of processes: with it, averaging the
            processes' gradients gives the gradient of the whole batch although the parts differ in size.
        soft: a teacher's answers (B, S); None without a teacher.
        plan: for a static step; the known answers are padded then. None: the step works branch by branch.
    """

    heads: Tensor
    relations: Tensor
    positives: Positives
    weight: float
    soft: SoftTargets | None = None
    plan: Plan | None = None

    def to(self, device: torch.device) -> QueryBatch:
        """The batch on another device; one copy for each kind of number, asynchronous, from page-locked memory."""
        if device.type == "cpu":
            return self
        return unpacked(self, [buffer.pin_memory().to(device, non_blocking=True) for buffer in packed(self)])


class TrainingQueries:
    """The distinct queries of the training triples, both directions.

    Args:
        graph: only its training triples are read.
        teacher: its answers (Q, S) to these queries, in the same order; None without a teacher.
        answers_per_query: answers that come together at most: a query with more is asked several times an epoch, each time with
            others of its answers, in parts of nearly the same size; None: all of them.
    """

    def __init__(
        self, graph: KnowledgeGraph, teacher: SoftTargets | None = None, answers_per_query: int | None = None
    ) -> None:
        self.teacher = teacher
        self.index: KnownAnswers = graph.known(graph.train)
        self.heads, self.relations = self.index.queries()
        self.num_entities = graph.num_entities
        counts = np.diff(self.index.offsets)
        parts = np.ones_like(counts) if answers_per_query is None else -(-counts // answers_per_query)
        self._query = np.repeat(np.arange(len(counts)), parts)  # (R,)
        part, of = np.arange(len(self._query)) - np.repeat(np.cumsum(parts) - parts, parts), parts[self._query]
        starts, whole = self.index.offsets[self._query], counts[self._query]
        self._starts, self._stops = starts + part * whole // of, starts + (part + 1) * whole // of  # (R,) of the answers

    def __len__(self) -> int:
        return len(self._query)

    def num_steps(self, batch_size: int, world: int = 1) -> int:
        """Steps of an epoch; every process has at least two queries in each, as BatchNorm needs.

        Args:
            batch_size: queries of a step, over all processes.
            world: number of processes.

        Raises:
            DataError: too few queries for the number of processes.
        """
        smallest = 2 * world
        if len(self) < smallest:
            raise DataError(
                f"{len(self)} training queries are too few for {world} worker(s): "
                "batch normalisation needs two queries a worker",
                remedy="add training triples" if world == 1 else "use fewer workers",
            )
        return max(1, min(-(-len(self) // batch_size), len(self) // smallest))

    def epoch(
        self, batch_size: int, seed: int, epoch: int, shard: Shard = WHOLE, per_triple: bool = False, together: int = 1
    ) -> Iterator[QueryBatch]:
        """This process's batches of an epoch. Over all processes each answer occurs exactly once, in equally many steps.

        The ordered queries are cut into steps, and each step into processes, of sizes that differ by at most one: there is no
        short last batch.

        Args:
            batch_size: queries of a step, over all processes.
            seed, epoch: the order depends on these alone.
            shard: this process.
            per_triple: weigh the processes by their number of answers instead of queries.
            together: queries of a relation that follow one another, see `shuffled`.
        """
        rng = np.random.default_rng((seed, epoch))
        order, counts = shuffled(self.relations[self._query], together, rng), self._stops - self._starts
        answers = self.index.answers if len(self) == len(self.heads) else self._answers_in_any_order(rng)
        for step in np.array_split(order, self.num_steps(batch_size, shard.world)):
            part = np.array_split(step, shard.world)[shard.rank]
            share = counts[part].sum() / counts[step].sum() if per_triple else len(part) / len(step)
            yield self._batch(part, answers, float(share) * shard.world)

    def _answers_in_any_order(self, rng: np.random.Generator) -> np.ndarray:
        """The answers of all queries, those of each one shuffled."""
        offsets = self.index.offsets
        query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        return self.index.answers[np.lexsort((rng.random(len(query)), query))]

    def _batch(self, asked: np.ndarray, answers: np.ndarray, weight: float) -> QueryBatch:
        """The batch of (B,) positions among the R queries of an epoch."""
        starts, stops, queries = self._starts[asked], self._stops[asked], self._query[asked]
        rows, tails = expand_ranges(starts, stops, answers)  # (P,), (P,)
        counts = torch.from_numpy((stops - starts).astype(np.float32))
        positives = Positives(torch.from_numpy(rows), torch.from_numpy(tails), counts)
        soft = None if self.teacher is None else self.teacher.rows(torch.from_numpy(queries))
        heads, relations = torch.from_numpy(self.heads[queries]), torch.from_numpy(self.relations[queries])
        return QueryBatch(heads, relations, positives, weight, soft)


def shuffled(relations: np.ndarray, together: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the queries in runs of one relation.

    A relation's queries are shuffled and cut into runs, at an offset drawn for each relation in each epoch, and the runs of all
    relations are shuffled. Each query still occurs once and is equally likely in each batch, so a batch's gradient is still
    unbiased. Its variance grows, since queries of one relation are more alike than others.

    Args:
        relations: (Q,) int64, relation of each query.
        together: longest run, at least 1; 1 is a plain permutation.
        rng: random numbers.

    Returns:
        (Q,) int64 positions.
    """
    order = rng.permutation(len(relations))
    if together <= 1:
        return order
    order = order[np.argsort(relations[order], kind="stable")]
    ordered = relations[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    counts = np.diff(np.append(starts, len(ordered)))
    shift = rng.integers(together, size=len(starts))
    position = np.arange(len(ordered)) - np.repeat(starts - shift, counts)  # within the relation, from a random offset on
    cut = np.concatenate(([True], (ordered[1:] != ordered[:-1]) | (position[1:] // together != position[:-1] // together)))
    run = np.cumsum(cut) - 1  # (Q,) number of each query's run
    return order[np.argsort(rng.permutation(run[-1] + 1)[run], kind="stable")]


def fitting_run(width: int, relation_width: int, candidates: int) -> int:
    """The shortest run of `shuffled` for which the matrices of the relations cost no more than the scores.

    A matrix takes `6 r d^2` operations in a step, the scores of a query `6 C d`, in each branch.

    Args:
        width: d.
        relation_width: r.
        candidates: C, of a query.
    """
    return max(1, -(-relation_width * width // candidates))
