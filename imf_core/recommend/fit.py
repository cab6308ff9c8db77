"""Training the recommender: as `imf_core.train.fit`, with BPR and top-k metrics.

Shapes: `P` interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import torch
from torch import nn

from imf_core.errors import DataError
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.interactions import Interactions, Owned
from imf_core.recommend.data.prepare import RecommendData
from imf_core.recommend.model import Recommender, build_recommender
from imf_core.recommend.negatives import TrainingPairs
from imf_core.recommend.topk import Popularity, TopKMetrics, VectorScorer, evaluate_top_k
from imf_core.runtime import WHOLE, MemoryBudget, Shard, default_device, keep_freed_memory
from imf_core.train.loop import FitResult, Loop, Saving, reduced, seed_epoch
from imf_core.train.optimizers import Optimizers
from imf_core.train.progress import EpochReport

OnEpoch = Callable[[EpochReport[TopKMetrics]], None]


def build_model(config: RecommendConfig, data: RecommendData) -> Recommender:
    """The model of a configuration, initialised with its seed.

    Raises:
        DataError: a configured modality is missing in the data, or there is none at all and the fusion needs one.
    """
    interactions = data.interactions
    modalities = data.select(config.model.modalities)
    if config.model.fusion != "id" and not modalities:
        raise DataError(
            f"{interactions.source}: the items have no features to fuse (model.fusion={config.model.fusion})",
            remedy="add modalities/X.safetensors, descriptions.tsv or images/, or set model.fusion=id",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build_recommender(
            config.model, interactions.num_users, interactions.num_items, modalities, interactions.train
        )


def fit_recommender(
    model: Recommender,
    data: RecommendData,
    config: RecommendConfig,
    on_epoch: OnEpoch | None = None,
    *,
    shard: Shard = WHOLE,
    saving: Saving | None = None,
    device: torch.device | None = None,
) -> FitResult[TopKMetrics]:
    """Train until the validation MRR stops rising, and leave the best epoch's weights in the model.

    Args:
        model: from `build_model`, or a loaded checkpoint to continue.
        data: interactions (train and valid are read; test is not reachable from here) and features.
        config: settings of the run.
        on_epoch, shard, saving, device: see `imf_core.train.fit.fit`.

    Returns:
        The best validation result.

    Raises:
        DataError: there is nothing to train or to validate on.
        DivergedError: a loss or score became non-finite.
        ResourceError: the evaluation does not fit the memory even with the smallest budget for scores.
    """
    settings, interactions = config.train, data.interactions
    if not len(interactions.valid):
        raise DataError(
            f"{interactions.source}: no user has enough interactions (8) to set one aside for validation",
            remedy="give valid.tsv: the best epoch is chosen on it",
        )
    device = device or default_device()
    model.to(device)
    keep_freed_memory()
    memory = MemoryBudget.of(settings.memory_budget_mb, device)
    pairs = TrainingPairs(interactions)
    steps = pairs.num_steps(settings.batch_size, shard.world)
    early = shard.world == 1 and device.type == "cpu"
    optimizers = Optimizers(model, "adam", settings.lr, settings.weight_decay, early=early)
    loop = Loop(settings.max_epochs, settings.patience, settings.eval_every, shard, on_epoch, saving)
    run = loop.begin(model, optimizers, TopKMetrics.unpack)
    trained: nn.Module = model
    if shard.world > 1:
        trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    with closing(optimizers):
        loop.run(
            run, model, optimizers,
            lambda epoch: {"total": _train_epoch(trained, pairs, config, epoch, shard, optimizers, device)}, steps,
            lambda: reduced(validate(model, interactions, memory, shard), shard, device),
        )
    model.eval()
    notes = list(memory.notes)
    if pairs.left_out:
        notes.append(f"{pairs.left_out:,} training interactions of users who have every item were left out: nothing to prefer")
    return FitResult.of(run, notes)


def validate(
    model: Recommender, data: Interactions, memory: MemoryBudget, shard: Shard = WHOLE
) -> TopKMetrics:
    """Metrics on the validation interactions; items of the user's training interactions are not recommended."""
    return evaluate_recommender(model, data, data.valid, (data.train,), memory, shard)


def evaluate_recommender(
    model: Recommender, data: Interactions, relevant: np.ndarray, known: tuple[np.ndarray, ...], memory: MemoryBudget,
    shard: Shard = WHOLE,
) -> TopKMetrics:
    """Metrics of a model.

    Args:
        model: put into evaluation mode.
        data: users and items.
        relevant: (P, 2) int64 user and item ids, held-out interactions.
        known: arrays (P, 2) of interactions that are not recommended.
        memory: for scores.
        shard: this process; it evaluates every `world`-th user.

    Raises:
        DivergedError: a score is not finite.
    """
    model.eval()
    with torch.no_grad():
        scorer = VectorScorer(*model.vectors())
    return _evaluated(scorer, data, relevant, known, memory, shard)


def popularity_baseline(data: Interactions, relevant: np.ndarray, known: tuple[np.ndarray, ...]) -> TopKMetrics:
    """Metrics of recommending the most popular training items, which a model should beat; arguments as of
    `evaluate_recommender`.
    """
    return _evaluated(Popularity(data.train, data.num_items), data, relevant, known, MemoryBudget(2**28), WHOLE)


def _evaluated(
    scorer: VectorScorer | Popularity, data: Interactions, relevant: np.ndarray, known: tuple[np.ndarray, ...],
    memory: MemoryBudget, shard: Shard,
) -> TopKMetrics:
    size = data.num_users, data.num_items
    wanted, hidden = Owned.build([relevant], *size), Owned.build(known, *size)
    return memory.within(lambda budget: evaluate_top_k(scorer, wanted, hidden, budget=budget, shard=shard))


def _train_epoch(
    trained: nn.Module, pairs: TrainingPairs, config: RecommendConfig, epoch: int, shard: Shard, optimizers: Optimizers,
    device: torch.device,
) -> float:
    """One pass over this process's interactions; each step encodes the whole graph. Arguments as of
    `imf_core.train.epoch.train_epoch`; returns the sum of the steps' losses, nats.
    """
    settings = config.train
    seed_epoch(settings.seed, epoch, shard.rank)
    trained.train()
    total = torch.zeros((), device=device)
    batches = pairs.epoch(settings.batch_size, settings.num_negatives, settings.seed, epoch, shard)
    for users, positives, negatives, weight in batches:
        loss = trained(users.to(device), positives.to(device), negatives.to(device))
        optimizers.zero_grad()
        (loss * weight).backward()
        optimizers.step()
        total += loss.detach()
    return float(total)
