"""A training step: from a batch to updated parameters. If it runs out of memory, it is undone and repeated with less.

A step is branch by branch (`Imf`), static (`StaticStep`), or static and captured (`CapturedSteps`); `fit` chooses.

Shapes: `K` losses of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from imf_core.config_train import TrainConfig
from imf_core.runtime import MemoryBudget
from imf_core.train.batches import QueryBatch
from imf_core.train.optimizers import Optimizers
from imf_core.train.step.captured import CapturedSteps, Recorder
from imf_core.train.step.planning import Planning


class Steps:
    """Runs the steps of a training.

    Args:
        trained: the model, its `StaticStep`, or one of them in DDP.
        settings: of the training.
        optimizers: update the model.
        device: of the model.
        memory: for scores.
        world: number of processes that train the model.
        planning: plans the batches of a static step; None: the step is branch by branch.
        recorder: captures static steps, if there is one process and the optimizers can be captured; None: nothing is captured.

    Attributes:
        names: of the K losses of the last step.
        captured: runs the static steps; None where they are not captured.
    """

    def __init__(
        self, trained: nn.Module, settings: TrainConfig, optimizers: Optimizers, device: torch.device, memory: MemoryBudget,
        world: int = 1, planning: Planning | None = None, recorder: Recorder | None = None,
    ) -> None:
        self.trained, self.settings, self.optimizers, self.device = trained, settings, optimizers, device
        self.memory, self.world, self.planning = memory, world, planning
        self.names: tuple[str, ...] = ()
        self._captured_names: tuple[str, ...] = ()  # replaying a step runs no Python
        self.captured: CapturedSteps | None = None
        if recorder is not None and world == 1 and optimizers.capturable:
            self.captured = CapturedSteps(self._whole, recorder, device)
        self._before, self._backward = _Before(trained, device), False

    @property
    def notes(self) -> list[str]:
        """Events that the user should know of."""
        failure = None if self.captured is None else self.captured.failure
        return [] if failure is None else [f"training steps were not captured as a CUDA graph: {failure}"]

    def run(self, batch: QueryBatch) -> Tensor:
        """Do the step of a batch on the host.

        Returns:
            (K,) losses in nats, valid until the next step.

        Raises:
            ResourceError: the step does not fit the memory.
        """
        updated = False

        def attempt(budget: int) -> Tensor:
            nonlocal updated
            part = batch if self.planning is None else self.planning.planned(batch, budget)
            captured = self.captured if part.plan is not None else None
            updated = captured is not None
            if captured is None or not captured.holds(part):
                self._before.keep()
            return self._gradients(part.to(self.device), budget) if captured is None else captured.run(part)

        losses = self.memory.within(attempt, self._undo)
        if updated:
            self.names = self._captured_names
        else:
            self.optimizers.average_sparse(self.world)
            self.optimizers.update()
        self.optimizers.follow()
        return losses

    def _gradients(self, batch: QueryBatch, budget: int) -> Tensor:
        """Losses (K,) and gradients of a batch; large parameters are already updated, see `Optimizers`.

        Args:
            batch: on the device.
            budget: bytes that scores may take.
        """
        settings, self._backward = self.settings, False
        if settings.memory_budget_mb != budget >> 20:
            settings = settings.model_copy(update={"memory_budget_mb": budget >> 20})
        plan = () if batch.plan is None else (batch.plan,)
        parts: dict[str, Tensor] = self.trained(batch.heads, batch.relations, batch.positives, settings, batch.soft, *plan)
        self.optimizers.zero_grad()
        self._backward = True
        (parts["total"] * batch.weight if batch.weight != 1 else parts["total"]).backward()
        self.names = tuple(parts)
        return torch.stack([value.detach() for value in parts.values()])

    def _whole(self, batch: QueryBatch) -> Tensor:
        """As `_gradients`, with the update."""
        losses = self._gradients(batch, self.memory.size)
        self._captured_names = self.names
        self.optimizers.update()
        return losses

    def _undo(self) -> bool:
        """Set back what a failed attempt has changed. Returns False if it is too late: a parameter was updated already, or
        other processes wait for gradients.
        """
        if self._backward and (self.world > 1 or self.optimizers.stepped):
            return False
        self.optimizers.zero_grad()
        self._before.restore()
        return True


class _Before:
    """BatchNorm statistics and random state before a step.

    Args:
        trained: its buffers are kept.
        device: whose random state is kept besides the CPU's.
    """

    def __init__(self, trained: nn.Module, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._live: dict[torch.dtype, list[Tensor]] = {}
        for name, buffer in trained.named_buffers():
            if "running_" in name or "num_batches" in name:
                self._live.setdefault(buffer.dtype, []).append(buffer)
        self._kept = {kind: [buffer.clone() for buffer in buffers] for kind, buffers in self._live.items()}
        self.keep()

    def keep(self) -> None:
        for kind, buffers in self._live.items():
            torch._foreach_copy_(self._kept[kind], buffers)
        self._random = torch.get_rng_state(), torch.cuda.get_rng_state() if self._on_gpu else None

    def restore(self) -> None:
        for kind, buffers in self._live.items():
            torch._foreach_copy_(buffers, self._kept[kind])
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1])
