"""The training loop of every task: epochs, evaluations, best weights, early stopping, saving and resuming.

The caller passes functions that train an epoch and evaluate. No Ray, no MLflow: progress is reported to `on_epoch`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
import torch.distributed as dist

from imf_core.errors import CheckpointError, DivergedError, Ended
from imf_core.runtime import Shard
from imf_core.train.optimizers import Optimizers
from imf_core.train.pace import WATCH
from imf_core.train.progress import EpochReport, M, RunProgress, TrainedModule
from imf_core.train.state import read_training_state, restore_training_state, save_training_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saving:
    """Where and how often the training state is saved: after an epoch, evaluated or not.

    Args:
        folder: of the state; a state that is there already is resumed.
        seconds: least time between two saves.
        fresh: begin anew all the same.
    """

    folder: Path
    seconds: float = 20.0
    fresh: bool = False


@dataclass(frozen=True)
class FitResult(Generic[M]):
    """Result of a training run; the model then holds the weights of the best epoch.

    Args:
        best_mrr, best_epoch: best validation MRR, 0..1, and its epoch.
        metrics: validation metrics of the best epoch.
        epochs: epochs trained.
        reason: why it ended: `max_epochs`, `no better validation MRR for <patience> evaluations`, or the signal that ended it.
        curve: (epoch, validation MRR) of each evaluation.
        notes: events that the user should know of, such as memory that ran out.
    """

    best_mrr: float
    best_epoch: int
    metrics: M
    epochs: int
    reason: str
    curve: tuple[tuple[int, float], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: RunProgress[M], notes: Iterable[str]) -> FitResult[M]:
        """The result of a run that has ended."""
        assert run.best_metrics is not None and run.reason is not None
        return cls(run.best_mrr, run.best_epoch, run.best_metrics, run.epoch, run.reason, tuple(run.curve), tuple(notes))


@dataclass(frozen=True)
class Loop(Generic[M]):
    """Length of a training run, and where it reports and saves.

    Args:
        max_epochs, patience, eval_every: as in `TrainConfig`.
        shard: rank of this process among those that train the model together.
        on_epoch: called after each evaluation, on every rank; an exception it raises ends the run. A resumed run first repeats
            the last saved report, so that each epoch is reported at least once.
        saving: save the training state, and resume from it if there is one; None: do neither.
    """

    max_epochs: int
    patience: int
    eval_every: int
    shard: Shard
    on_epoch: Callable[[EpochReport[M]], None] | None
    saving: Saving | None

    def begin(self, model: TrainedModule, optimizers: Optimizers, unpack: Callable[[Any], M]) -> RunProgress[M]:
        """Start a run, or restore a saved one. One whose state is damaged starts anew, which is logged.

        Args:
            model, optimizers: filled from the saved state, if there is one.
            unpack: the inverse of `Metrics.pack`.

        Raises:
            CheckpointError: the saved state is of another model.
        """
        if self.saving is None or self.saving.fresh or not self.saving.folder.exists():
            return RunProgress()
        try:
            progress, tensors, best = read_training_state(self.saving.folder)
            run = RunProgress.from_json(progress, best, unpack)
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            problem = error.problem if isinstance(error, CheckpointError) else f"progress.json: {error!r}"
            logger.warning("the training state %s is damaged (%s): training begins anew", self.saving.folder, problem)
            return RunProgress()
        restore_training_state(self.saving.folder, tensors, model, optimizers)
        if self.on_epoch is not None and run.last is not None:
            self.on_epoch(run.last)  # the interrupted process may have saved the report without delivering it
        run.continue_to(self.max_epochs)
        if run.curve:
            run.end(self.patience, self.max_epochs)  # it may have been saved with more epochs ahead than there are now
        return run

    def run(
        self, run: RunProgress[M], model: TrainedModule, optimizers: Optimizers, epoch: Callable[[int], dict[str, float]],
        steps: int, validate: Callable[[], M], advance: Callable[[RunProgress[M]], None] = lambda run: None,
    ) -> None:
        """Train until the validation MRR stops rising, `max_epochs` is reached or a signal ends it; then load the best weights.

        Args:
            run: from `begin`.
            model, optimizers: updated by `epoch`, saved.
            epoch: trains an epoch, whose number counts from 1; returns the sum of each loss over its steps, with `total`.
            steps: number of steps of an epoch.
            validate: evaluates the model's current weights.
            advance: shows the progress.

        Raises:
            DivergedError: the loss became non-finite.
            Ended: by a signal before the first evaluation.
        """
        saved = time.monotonic()
        if (watch := WATCH.get()) is not None:
            watch.begin(steps)
        try:
            while run.reason is None:
                started = time.monotonic()
                run.trained(epoch(run.epoch + 1))
                if not math.isfinite(run.sums["total"]):
                    raise DivergedError(
                        f"the training loss is {run.sums['total'] / steps} in epoch {run.epoch}", remedy="lower train.lr",
                        epoch=run.epoch, quantity="loss",
                    )
                due = run.epoch == min(run.evaluated + self.eval_every, self.max_epochs)
                if due:
                    self._evaluate(run, model, optimizers, steps, validate, started)
                else:
                    run.seconds += time.monotonic() - started
                over, saving = run.end(self.patience, self.max_epochs), self.saving
                if saving is not None and self.shard.rank == 0 and (over or time.monotonic() - saved >= saving.seconds):
                    save_training_state(saving.folder, model, optimizers, run.to_json(), run.best_state)
                    saved = time.monotonic()
                advance(run)
                if due and self.on_epoch is not None:
                    assert run.last is not None
                    self.on_epoch(run.last)
        except Ended as ended:
            if run.best_state is None:
                raise
            run.reason = run.reason or f"ended by {ended} after {run.epoch} epochs"
        if run.best_state is not None:
            model.load_state_dict(run.best_state, strict=False)

    @staticmethod
    def _evaluate(
        run: RunProgress[M], model: TrainedModule, optimizers: Optimizers, steps: int, validate: Callable[[], M], started: float
    ) -> None:
        """Evaluate and report the epochs since the last report; the latest of them began at `started` (monotonic clock)."""
        losses = {name: value / (steps * (run.epoch - run.evaluated)) for name, value in run.sums.items()}
        with optimizers.averaged():
            metrics = validate()
            run.record(metrics, model)
        seconds = run.seconds + time.monotonic() - started
        run.sums, run.seconds = {}, 0.0
        run.last = EpochReport(run.epoch, losses["total"], losses, metrics, run.best_mrr, run.best_epoch, seconds)


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed torch for an epoch. Its random numbers depend on these three alone, so a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]))


def reduced(metrics: M, shard: Shard, device: torch.device) -> M:
    """Sum the metrics over all processes; `device` is where their collective operations run."""
    if shard.world == 1:
        return metrics
    vector = torch.from_numpy(metrics.vector()).to(device)
    dist.all_reduce(vector)
    return metrics.with_vector(vector.cpu().numpy())
