"""Training queries and their order: the same for equal seeds, another in each epoch, shared out among the ranks.

Shapes: `Q` distinct training queries, `P` known answers, `B` queries of a rank's batch.
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
from imf_core.runtime import WHOLE, Shard


@dataclass(frozen=True)
class QueryBatch:
    """`B` queries of one rank and their answers.

    Args:
        heads, relations: (B,) int64.
        positives: the known answers.
        weight: share of this rank's mean loss in the global mean, times the number of ranks: with it, averaging the
            ranks' gradients gives the gradient of the whole batch although the parts differ in size.
        soft: a teacher's answers, where there is one.
    """

    heads: Tensor
    relations: Tensor
    positives: Positives
    weight: float
    soft: SoftTargets | None = None

    def to(self, device: torch.device) -> QueryBatch:
        """The batch on another device; copies from page-locked memory, which nothing waits for."""
        if device.type == "cpu":
            return self

        def moved(part: Tensor) -> Tensor:
            return part.pin_memory().to(device, non_blocking=True)

        positives = Positives(moved(self.positives.rows), moved(self.positives.tails), moved(self.positives.counts))
        soft = None if self.soft is None else self.soft.moved(moved)
        return QueryBatch(moved(self.heads), moved(self.relations), positives, self.weight, soft)


class TrainingQueries:
    """The distinct queries of the training triples, both directions.

    Args:
        graph: only its training triples are read.
        teacher: its answers to these queries, (Q, S), in their order.
    """

    def __init__(self, graph: KnowledgeGraph, teacher: SoftTargets | None = None) -> None:
        self.teacher = teacher
        self.index: KnownAnswers = graph.known(graph.train)
        self.heads, self.relations = self.index.queries()
        self._counts = np.diff(self.index.offsets)
        self.num_entities = graph.num_entities

    def __len__(self) -> int:
        return len(self.heads)

    def num_steps(self, batch_size: int, world: int = 1) -> int:
        """Steps of an epoch; every rank has at least two queries in each (BatchNorm needs them).

        Raises:
            DataError: too few queries for the number of workers.
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
        """The rank's batches of an epoch. Over all ranks each query comes exactly once; all ranks have equally many steps.

        The ordered queries are cut into steps, and each step into ranks, of sizes that differ by at most one: there is
        no short last batch.

        Args:
            batch_size: queries of a step, over all ranks.
            seed, epoch: on these alone the order depends.
            shard: this rank.
            per_triple: weigh the ranks by their answers.
            together: queries of a relation that come one after the other, see `shuffled`.
        """
        order = shuffled(self.relations, together, np.random.default_rng((seed, epoch)))
        for step in np.array_split(order, self.num_steps(batch_size, shard.world)):
            mine = np.array_split(step, shard.world)[shard.rank]
            share = self._counts[mine].sum() / self._counts[step].sum() if per_triple else len(mine) / len(step)
            yield self._batch(mine, float(share) * shard.world)

    def _batch(self, chosen: np.ndarray, weight: float) -> QueryBatch:
        starts, stops = self.index.offsets[chosen], self.index.offsets[chosen + 1]
        rows, tails = expand_ranges(starts, stops, self.index.answers)
        positives = Positives(
            torch.from_numpy(rows), torch.from_numpy(tails), torch.from_numpy(self._counts[chosen].astype(np.float32))
        )
        soft = None if self.teacher is None else self.teacher.rows(torch.from_numpy(chosen))
        heads, relations = torch.from_numpy(self.heads[chosen]), torch.from_numpy(self.relations[chosen])
        return QueryBatch(heads, relations, positives, weight, soft)


def shuffled(relations: np.ndarray, together: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the queries in which those of a relation stand `together` at a time.

    A relation's queries are shuffled and cut into runs, at a place drawn anew for each relation in each epoch, and the runs
    of all relations are shuffled. So each query still comes once, and is as likely in one batch as in any other; what a batch
    gives is still an unbiased gradient. Its noise grows: queries of one relation say more alike than others do.

    Args:
        relations: (Q,) relation of each query.
        together: longest run; 1 is a plain permutation.
        rng: what draws.

    Returns:
        (Q,) positions.
    """
    order = rng.permutation(len(relations))
    if together <= 1:
        return order
    order = order[np.argsort(relations[order], kind="stable")]
    own = relations[order]
    starts = np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1])))
    counts = np.diff(np.append(starts, len(own)))
    shift = rng.integers(together, size=len(starts))
    place = np.arange(len(own)) - np.repeat(starts - shift, counts)  # within the relation, from a random place on
    cut = np.concatenate(([True], (own[1:] != own[:-1]) | (place[1:] // together != place[:-1] // together)))
    run = np.cumsum(cut) - 1
    return order[np.argsort(rng.permutation(run[-1] + 1)[run], kind="stable")]


def fitting_run(width: int, relation_width: int, candidates: int) -> int:
    """The shortest run of `shuffled` with which the matrices of the relations cost no more than the scores.

    A matrix takes `6 r d^2` operations in a step, the scores of a query `6 C d`, in each branch.

    Args:
        width: d. relation_width: r. candidates: C, of a query.
    """
    return max(1, -(-relation_width * width // candidates))
