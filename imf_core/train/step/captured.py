"""Training steps as captured CUDA graphs: the host launches one graph a step instead of a hundred operations.

A graph has fixed shapes and fixed memory, so there is one for each size of batch. A batch is copied into the memory of its
graph, and the graph is replayed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from imf_core.train.batches import QueryBatch
from imf_core.train.step.packing import packed, shapes, unpacked

logger = logging.getLogger(__name__)

_WARM_UP = 3  # steps of a size before it is captured: they allocate, choose kernels, and lower the memory budget if need be


class Recorder(Protocol):
    """What captures work."""

    def aside(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work now, where it could be captured later."""
        ...

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture the work without doing it.

        Returns:
            Does the captured work; the result is valid until the next call.

        Raises:
            RuntimeError: it cannot be captured.
        """
        ...


class CudaGraphs:
    """`Recorder` of the current GPU. All graphs share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def aside(self, work: Callable[[], Tensor]) -> Tensor:
        """See `Recorder.aside`: on the stream of the captures."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Recorder.capture`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class CapturedSteps:
    """Runs steps, captured from the fourth of each size on. If a capture fails, all go on without, which is logged once.

    Args:
        step: the whole step of a batch on the device, with its update -> (K,) losses.
        recorder: captures.
        device: of the batches.

    Attributes:
        failure: why nothing is captured any more; None while it works.
    """

    def __init__(self, step: Callable[[QueryBatch], Tensor], recorder: Recorder, device: torch.device) -> None:
        self._step, self._recorder, self._device = step, recorder, device
        self._warm: dict[tuple[torch.Size, ...], int] = {}
        self._graphs: dict[tuple[torch.Size, ...], tuple[list[Tensor], Callable[[], Tensor]]] = {}
        self.failure: str | None = None

    def holds(self, batch: QueryBatch) -> bool:
        """Whether the step of a batch of this size is captured."""
        return shapes(batch) in self._graphs

    def run(self, batch: QueryBatch) -> Tensor:
        """Do the step of a planned batch on the host; (K,) losses, valid until the next step."""
        buffers, size = packed(batch), shapes(batch)
        if size in self._graphs:
            memory, replay = self._graphs[size]
            for target, source in zip(memory, buffers, strict=True):
                target.copy_(_pinned(source, self._device), non_blocking=True)
            return replay()
        memory = [_pinned(buffer, self._device).to(self._device, non_blocking=True, copy=True) for buffer in buffers]
        moved = unpacked(batch, memory)
        self._warm[size] = self._warm.get(size, 0) + 1
        if self.failure is None and self._warm[size] > _WARM_UP:
            try:
                replay = self._recorder.capture(lambda: self._step(moved))
            except RuntimeError as error:
                self.failure = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                logger.warning("the training step cannot be captured as a graph (%s): it goes on without", self.failure)
            else:
                self._graphs[size] = memory, replay
                return replay()
        return self._recorder.aside(lambda: self._step(moved))


def _pinned(buffer: Tensor, device: torch.device) -> Tensor:
    return buffer.pin_memory() if device.type == "cuda" else buffer
