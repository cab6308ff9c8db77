"""The GPUs of this machine that a search which starts Ray itself can use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

_NVIDIA = Path("/proc/driver/nvidia/gpus")  # has an entry for each card, whatever torch can do with it


@dataclass(frozen=True)
class Gpu:
    """One card.

    Args:
        name: for messages.
        bytes: its memory; 0 if it is not known.
    """

    name: str
    bytes: int = 0


def visible_gpus() -> tuple[Gpu, ...]:
    """The cards that torch sees: CUDA or ROCm, limited by CUDA_VISIBLE_DEVICES and by what a container is given."""
    if not torch.cuda.is_available():
        return ()
    properties = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Gpu(card.name, int(card.total_memory)) for card in properties)


def why_unused() -> str:
    """Why hardware of this machine that could train is not used; empty where there is none."""
    if torch.cuda.is_available():
        return ""
    try:
        cards = sum(1 for _ in _NVIDIA.iterdir())
    except OSError:
        cards = 0
    if cards and torch.version.cuda is None:
        return f"{cards} NVIDIA GPU(s) are not used: torch {torch.__version__} is a CPU build; install one for CUDA"
    if cards:
        return f"{cards} NVIDIA GPU(s) are not used: CUDA_VISIBLE_DEVICES hides them, or the driver is older than torch needs"
    if torch.backends.mps.is_available():
        return "the GPU of this Mac is not used: a search trains on CPUs or on CUDA (or ROCm) GPUs"
    return ""
