"""One pass over the training queries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from imf_core.config import Config
from imf_core.model.scoring import scorer_class
from imf_core.runtime import Shard
from imf_core.train.batches import TrainingQueries, fitting_run
from imf_core.train.loop import seed_epoch
from imf_core.train.step.steps import Steps


def relation_run(config: Config, num_entities: int) -> int:
    """Queries of a relation that follow one another in training: `train.relation_run`, or `fitting_run` of N entities."""
    settings, model = config.train, config.model
    kinds = [model, *map(model.of_head, model.all_heads)]
    candidates = min(num_entities, settings.num_negatives or num_entities)
    runs = [fitting_run(kind.dim, kind.relation_dim, candidates) for kind in kinds if scorer_class(kind).builds_matrices]
    return settings.relation_run or max(runs, default=1)


def train_epoch(steps: Steps, queries: TrainingQueries, config: Config, epoch: int, shard: Shard) -> dict[str, float]:
    """One pass over this process's queries.

    Args:
        steps: run the steps.
        queries: of the training triples.
        config: settings of the run.
        epoch: counted from 1; with seed and rank it determines all random numbers.
        shard: this process.

    Returns:
        Sum of each loss over the steps, by name, nats.

    Raises:
        ResourceError: a step does not fit the memory.
    """
    settings = config.train
    seed_epoch(settings.seed, epoch, shard.rank)
    steps.optimizers.scale_lr(settings.lr_decay ** (epoch - 1))
    steps.trained.train()
    sums: dict[tuple[str, ...], Tensor] = {}
    per_triple = settings.loss == "ce" and settings.weighting == "triple"
    together = relation_run(config, queries.num_entities)
    with tensor_float_32(settings.precision == "tf32"):
        for batch in queries.epoch(settings.batch_size, settings.seed, epoch, shard, per_triple, together):
            losses = steps.run(batch)
            if steps.names in sums:
                sums[steps.names] += losses
            else:  # a copy: the next step may overwrite its losses
                sums[steps.names] = losses.clone()
    totals: dict[str, float] = {}
    for names, values in sums.items():
        for name, value in zip(names, values.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value
    return totals


@contextmanager
def tensor_float_32(wanted: bool) -> Iterator[None]:
    """Within the block a GPU multiplies fp32 matrices in TF32 if wanted, with ten bits of mantissa; sums stay in fp32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
