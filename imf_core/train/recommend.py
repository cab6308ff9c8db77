"""Training of the recommender: as `fit` for link prediction, with BPR and top-k metrics. No Ray, no MLflow.

The random numbers of an epoch depend on (seed, epoch, rank) alone, so a run that resumes after epoch 3 draws in epoch 4
what the unbroken run would have drawn. Each step encodes the whole graph once, whatever it draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from imf_core.config_recommend import RecommendConfig
from imf_core.data.interactions import Interactions, Owned
from imf_core.data.recommend_data import RecommendData
from imf_core.errors import DataError, DivergedError
from imf_core.model.recommender import Recommender, build_recommender
from imf_core.train.batches import Shard
from imf_core.train.checkpoint import load_training_state, save_training_state
from imf_core.train.fit import Saving
from imf_core.train.memory import MemoryBudget, keep_freed_memory
from imf_core.train.negatives import TrainingPairs
from imf_core.train.optimizers import Optimizers
from imf_core.train.progress import EpochReport, RunProgress
from imf_core.train.topk import Popularity, TopKMetrics, VectorScorer, evaluate_top_k

OnEpoch = Callable[[EpochReport[TopKMetrics]], None]


@dataclass(frozen=True)
class RecommendResult:
    """Outcome of `fit_recommender`; the model then holds the weights of the best epoch.

    Args:
        best_mrr, best_epoch: best validation MRR and its epoch.
        metrics: validation metrics of the best epoch.
        epochs: epochs trained.
        reason: why it ended.
        curve: (epoch, validation MRR) of each evaluation.
        notes: what happened on the way.
    """

    best_mrr: float
    best_epoch: int
    metrics: TopKMetrics
    epochs: int
    reason: str
    curve: tuple[tuple[int, float], ...]
    notes: tuple[str, ...] = ()


def build_model(config: RecommendConfig, data: RecommendData) -> Recommender:
    """The model of a configuration, initialised from its seed.

    Raises:
        DataError: a configured modality is missing in the data, or there is none at all and the fusion needs one.
    """
    found = data.interactions
    modalities = data.select(config.model.modalities)
    if config.model.fusion != "id" and not modalities:
        raise DataError(
            f"{found.source}: the items have no features to fuse (model.fusion={config.model.fusion})",
            remedy="add modalities/X.safetensors, descriptions.tsv or images/, or set model.fusion=id",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build_recommender(config.model, found.num_users, found.num_items, modalities, found.train)


def fit_recommender(
    model: Recommender,
    data: RecommendData,
    config: RecommendConfig,
    on_epoch: OnEpoch | None = None,
    *,
    shard: Shard = Shard(),  # noqa: B008
    saving: Saving | None = None,
    device: torch.device | None = None,
) -> RecommendResult:
    """Train until the validation MRR stops rising, and leave the best epoch's weights in the model.

    Args:
        model: from `build_model`, or a loaded checkpoint to continue.
        data: interactions (train and valid are read; test is not reachable from here) and features.
        config: its `train` part rules the loop.
        on_epoch: called after each evaluation, on every rank; an exception it raises ends the run. A resumed run first
            repeats the last report that was saved, so that each epoch is reported at least once.
        shard: this process's part; with `world` > 1 a process group must exist and the gradients are averaged (DDP).
        saving: keep the training state, and resume from it if there is one.
        device: where to train; default: a GPU if there is one, else the CPU.

    Returns:
        The best validation result.

    Raises:
        DataError: nothing to train or to validate on.
        DivergedError: a loss or score became non-finite.
        ResourceError: the evaluation does not fit the memory, however little of it scores may take.
    """
    settings, found = config.train, data.interactions
    if not len(found.valid):
        raise DataError(
            f"{found.source}: no user has enough interactions (8) to set one aside for validation",
            remedy="give valid.tsv: the best epoch is chosen on it",
        )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    keep_freed_memory()
    memory = MemoryBudget.of(settings.memory_budget_mb, device)
    pairs = TrainingPairs(found)
    steps = pairs.num_steps(settings.batch_size, shard.world)
    early = shard.world == 1 and device.type == "cpu"
    optimizers = Optimizers(model, "adam", settings.lr, settings.weight_decay, early=early)
    run: RunProgress[TopKMetrics] = RunProgress()
    if saving is not None and (saving.folder / "progress.json").exists():
        run = RunProgress.from_json(*load_training_state(saving.folder, model, optimizers), TopKMetrics.unpack)
        if on_epoch is not None and run.last is not None:
            on_epoch(run.last)  # the interrupted process may have saved it and not delivered it
    trained: nn.Module = model
    if shard.world > 1:
        trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    last_save = time.monotonic()
    with closing(optimizers):
        while run.reason is None:
            started = time.monotonic()
            stop = min(run.epoch + settings.eval_every, settings.max_epochs)
            total = 0.0
            for epoch in range(run.epoch + 1, stop + 1):
                total += _train_epoch(trained, pairs, config, epoch, shard, optimizers, device)
            loss = total / (steps * (stop - run.epoch))
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the training loss is {loss} in epoch {stop}", remedy="lower train.lr", epoch=stop, quantity="loss"
                )
            metrics = _reduced(validate(model, found, memory, shard), shard, device)
            run.record(stop, metrics, model)
            seconds = time.monotonic() - started
            run.last = EpochReport(stop, loss, {"total": loss}, metrics, run.best_mrr, run.best_epoch, seconds)
            over = run.end(settings.patience, settings.max_epochs)
            if saving is not None and shard.rank == 0 and (over or time.monotonic() - last_save >= saving.seconds):
                save_training_state(saving.folder, model, optimizers, run.to_json(), run.best_state)
                last_save = time.monotonic()
            if on_epoch is not None:
                on_epoch(run.last)
    assert run.best_metrics is not None and run.reason is not None
    if run.best_state is not None:
        model.load_state_dict(run.best_state, strict=False)
    model.eval()
    notes = list(memory.notes)
    if pairs.left_out:
        notes.append(f"{pairs.left_out:,} training interactions of users who have every item were left out: nothing to prefer")
    return RecommendResult(
        run.best_mrr, run.best_epoch, run.best_metrics, run.epoch, run.reason, tuple(run.curve), tuple(notes)
    )


def validate(
    model: Recommender, data: Interactions, memory: MemoryBudget, shard: Shard = Shard()  # noqa: B008
) -> TopKMetrics:
    """Metrics on the validation interactions; what training holds is not recommended."""
    return evaluate_recommender(model, data, data.valid, (data.train,), memory, shard)


def evaluate_recommender(
    model: Recommender, data: Interactions, relevant: np.ndarray, known: tuple[np.ndarray, ...], memory: MemoryBudget,
    shard: Shard = Shard(),  # noqa: B008
) -> TopKMetrics:
    """Metrics of a model.

    Args:
        model: it is set to evaluation mode.
        data: users and items.
        relevant: (P, 2) held-out interactions.
        known: (P, 2) each: interactions that are not recommended.
        memory: for scores.
        shard: this process's users.

    Raises:
        DivergedError: a score is not finite.
    """
    model.eval()
    with torch.no_grad():
        scorer = VectorScorer(*model.vectors())
    return _evaluated(scorer, data, relevant, known, memory, shard)


def popularity_baseline(data: Interactions, relevant: np.ndarray, known: tuple[np.ndarray, ...]) -> TopKMetrics:
    """Metrics of recommending what most users have in train, without a model: it should beat this."""
    return _evaluated(Popularity(data.train, data.num_items), data, relevant, known, MemoryBudget(2**28), Shard())


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
    """One pass over the interactions; returns the sum of the steps' losses on this rank."""
    settings = config.train
    torch.manual_seed(int(np.random.SeedSequence((settings.seed, epoch, shard.rank)).generate_state(1)[0]))
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


def _reduced(metrics: TopKMetrics, shard: Shard, device: torch.device) -> TopKMetrics:
    """Sum over the ranks."""
    if shard.world == 1:
        return metrics
    vector = torch.from_numpy(metrics.vector()).to(device)
    dist.all_reduce(vector)
    return metrics.with_vector(vector.cpu().numpy())
