"""The progress of a training run: its report after each evaluation, and the counters that a resumed run starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from imf_core.evaluate.metrics import Metrics


class TrainedModule(Protocol):
    """A model that can name the tensors that training changes."""

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """See `torch.nn.Module.load_state_dict`."""


M = TypeVar("M", bound=Metrics)
MAX_EPOCHS = "max_epochs"  # why a run ended that trained all its epochs


@dataclass(frozen=True)
class EpochReport(Generic[M]):
    """The report of an evaluation, passed to `on_epoch`.

    Args:
        epoch: counted from 1.
        train_loss: mean total loss of the steps since the last report, nats.
        losses: mean of each part of the loss, by name, nats.
        metrics: validation metrics of this epoch.
        best_mrr, best_epoch: best validation MRR so far, 0..1, and its epoch.
        seconds: training and evaluation time since the last report.
    """

    epoch: int
    train_loss: float
    losses: dict[str, float]
    metrics: M
    best_mrr: float
    best_epoch: int
    seconds: float

    def flat(self) -> dict[str, float]:
        """All numbers by their metric names, for a scheduler or a tracker."""
        parts = {f"loss_{name}": value for name, value in self.losses.items() if name != "total"}
        return {
            "epoch": self.epoch, **self.metrics.flat(), "best_mrr": self.best_mrr, "best_epoch": self.best_epoch,
            "train_loss": self.train_loss, **parts, "epoch_seconds": self.seconds,
        }


class RunProgress(Generic[M]):
    """Counters, learning curve, best weights and last report of a run, and the losses and time since that report.

    Attributes:
        epoch: epochs trained.
        best_mrr, best_epoch: best validation MRR and its epoch; -1 and 0 before the first evaluation.
        stale: evaluations without a better MRR.
        sums: sum of each loss over the steps since the last report, nats.
        seconds: time since the last report.
        curve: (epoch, validation MRR) of each evaluation.
        best_metrics, best_state: metrics and weights of the best epoch.
        last: the last report.
        reason: why the run ended; None while it goes on.
    """

    def __init__(self) -> None:
        self.epoch, self.best_mrr, self.best_epoch, self.stale = 0, -1.0, 0, 0
        self.sums: dict[str, float] = {}
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.best_metrics: M | None = None
        self.best_state: dict[str, Tensor] | None = None
        self.last: EpochReport[M] | None = None
        self.reason: str | None = None

    @property
    def evaluated(self) -> int:
        """Epoch of the last evaluation; 0 before the first."""
        return self.curve[-1][0] if self.curve else 0

    def trained(self, losses: Mapping[str, float]) -> None:
        """Count an epoch.

        Args:
            losses: sum of each loss over the epoch's steps, nats.
        """
        self.epoch += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def record(self, metrics: M, model: TrainedModule) -> None:
        """Add an evaluation; if it is the best so far, the model's weights are copied."""
        self.curve.append((self.epoch, metrics.mrr))
        if metrics.mrr > self.best_mrr:
            state = {name: tensor.detach().clone() for name, tensor in model.trained_state().items()}
            # All at once: a signal may end the run at any line, and figures and weights must be of one epoch.
            self.best_state, self.best_metrics, self.best_mrr, self.best_epoch = state, metrics, metrics.mrr, self.epoch
            self.stale = 0
        else:
            self.stale += 1

    def end(self, patience: int, max_epochs: int) -> bool:
        """Whether the run is over; sets `reason`."""
        if self.stale >= patience:
            self.reason = f"no better validation MRR for {patience} evaluations"
        elif self.epoch >= max_epochs:
            self.reason = MAX_EPOCHS
        return self.reason is not None

    def continue_to(self, max_epochs: int) -> None:
        """A run that was over for want of epochs goes on if it may train more now: nothing in it depends on their number."""
        if self.reason == MAX_EPOCHS and self.epoch < max_epochs:
            self.reason = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        values: dict[str, Any] = {
            "epoch": self.epoch, "best_mrr": self.best_mrr, "best_epoch": self.best_epoch, "stale": self.stale,
            "curve": self.curve, "reason": self.reason, "sums": self.sums, "seconds": self.seconds,
        }
        if self.best_metrics is not None and self.last is not None:
            last = {name: value for name, value in vars(self.last).items() if name != "metrics"}
            values |= {"best_metrics": self.best_metrics.pack(), "last": last, "last_metrics": self.last.metrics.pack()}
        return values

    @classmethod
    def from_json(
        cls, values: Mapping[str, Any], best_state: dict[str, Tensor] | None,
        unpack: Callable[[Mapping[str, Any]], M],
    ) -> RunProgress[M]:
        """The inverse of `to_json`.

        Args:
            values: from `to_json`.
            best_state: weights of the best epoch.
            unpack: the inverse of `Metrics.pack`.
        """
        run: RunProgress[M] = cls()
        run.epoch, run.best_mrr, run.best_epoch = values["epoch"], values["best_mrr"], values["best_epoch"]
        run.stale, run.reason, run.best_state = values["stale"], values["reason"], best_state
        run.curve = [(int(epoch), float(mrr)) for epoch, mrr in values["curve"]]
        run.sums, run.seconds = dict(values["sums"]), values["seconds"]
        if "last" in values:  # absent if the run was saved before its first evaluation
            run.best_metrics = unpack(values["best_metrics"])
            run.last = EpochReport(metrics=unpack(values["last_metrics"]), **values["last"])
        return run
