"""One pass over the training queries; a step that runs out of memory is undone and repeated with a smaller budget."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imf_core.config import Config, TrainConfig
from imf_core.model.scoring import scorer_class
from imf_core.runtime import MemoryBudget, Shard
from imf_core.train.batches import QueryBatch, TrainingQueries, fitting_run
from imf_core.train.loop import seed_epoch
from imf_core.train.optimizers import Optimizers


def relation_run(config: Config, num_entities: int) -> int:
    """Queries of a relation that follow one another in training: `train.relation_run`, or `fitting_run` of N entities."""
    settings, model = config.train, config.model
    kinds = [model, *map(model.of_head, model.heads)]
    candidates = min(num_entities, settings.num_negatives or num_entities)
    runs = [fitting_run(kind.dim, kind.relation_dim, candidates) for kind in kinds if scorer_class(kind).builds_matrices]
    return settings.relation_run or max(runs, default=1)


def train_epoch(
    trained: nn.Module,
    queries: TrainingQueries,
    config: Config,
    epoch: int,
    shard: Shard,
    optimizers: Optimizers,
    device: torch.device,
    memory: MemoryBudget,
) -> dict[str, float]:
    """One pass over this process's queries.

    Args:
        trained: the model, or the model in DDP.
        queries: of the training triples.
        config: settings of the run.
        epoch: counted from 1; with seed and rank it determines all random numbers.
        shard: this process.
        optimizers: update the model.
        device: of the model.
        memory: for scores.

    Returns:
        Sum of each loss over the steps, by name, nats.

    Raises:
        ResourceError: a step does not fit the memory.
    """
    settings = config.train
    seed_epoch(settings.seed, epoch, shard.rank)
    optimizers.scale_lr(settings.lr_decay ** (epoch - 1))
    trained.train()
    sums: dict[str, Tensor] = {}
    per_triple = settings.loss == "ce" and settings.weighting == "triple"
    together = relation_run(config, queries.num_entities)
    for batch in queries.epoch(settings.batch_size, settings.seed, epoch, shard, per_triple, together):
        step = _Step(trained, batch.to(device), settings, optimizers, shard.world)
        parts = memory.within(step.run, step.undo)
        optimizers.average_sparse(shard.world)
        optimizers.step()
        for name, value in parts.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    return {name: float(value) for name, value in sums.items()}


class _Step:
    """Forward and backward pass of a batch. It can be repeated: `undo` restores BatchNorm statistics and random state."""

    def __init__(
        self, trained: nn.Module, batch: QueryBatch, settings: TrainConfig, optimizers: Optimizers, world: int
    ) -> None:
        self.trained, self.batch, self.settings, self.optimizers, self.world = trained, batch, settings, optimizers, world
        self.statistics = [buffer for name, buffer in trained.named_buffers() if "running_" in name or "num_batches" in name]
        self.before = [buffer.clone() for buffer in self.statistics]
        self.on_gpu = batch.heads.device.type == "cuda"
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state() if self.on_gpu else None
        self.backward = False

    def run(self, budget: int) -> dict[str, Tensor]:
        """Compute losses and gradients; large parameters are already updated, see `Optimizers`.

        Args:
            budget: bytes that scores may take.

        Returns:
            Losses by name, scalars in nats.
        """
        settings = self.settings
        if settings.memory_budget_mb != budget >> 20:
            settings = settings.model_copy(update={"memory_budget_mb": budget >> 20})
        parts: dict[str, Tensor] = self.trained(
            self.batch.heads, self.batch.relations, self.batch.positives, settings, self.batch.soft
        )
        self.optimizers.zero_grad()
        self.backward = True
        (parts["total"] * self.batch.weight).backward()
        return parts

    def undo(self) -> bool:
        """Restore random state and statistics. Returns False if it is too late: a parameter was updated already, or other
        processes wait for gradients.
        """
        if self.backward and (self.world > 1 or self.optimizers.stepped):
            return False
        self.optimizers.zero_grad()
        for buffer, before in zip(self.statistics, self.before, strict=True):
            buffer.copy_(before)
        torch.set_rng_state(self.random[0])
        if self.random[1] is not None:
            torch.cuda.set_rng_state(self.random[1])
        return True
