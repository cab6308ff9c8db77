"""The training state on disk: weights, optimizer moments and counters, from which an interrupted run resumes to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from imf_core.checkpoint.checkpoint import mismatched_tensor, read_tensors
from imf_core.checkpoint.described import read_json
from imf_core.errors import CheckpointError
from imf_core.files.atomic import atomic_folder
from imf_core.train.optimizers import Optimizers
from imf_core.train.progress import TrainedModule


def save_training_state(
    folder: Path, model: TrainedModule, optimizers: Optimizers, progress: Mapping[str, Any], best: Mapping[str, Tensor] | None
) -> None:
    """Write weights, their average if there is one, optimizer moments, the best weights so far and the progress counters.

    Args:
        folder: replaced if it exists.
        model, optimizers: their current state is saved.
        progress: JSON values of `RunProgress.to_json`.
        best: trained tensors of the best epoch; None before the first evaluation.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.trained_state().items()}
    for position, entry in optimizers.state().items():
        tensors.update({f"optimizer.{position}.{name}": value for name, value in entry.items()})
    if optimizers.average is not None:
        tensors.update({f"average.{name}": tensor for name, tensor in optimizers.average.state().items()})
    for name, tensor in (best or {}).items():
        tensors[f"best.{name}"] = tensor
    with atomic_folder(folder) as fresh:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / "state.safetensors")
        (fresh / "progress.json").write_text(json.dumps(dict(progress)), encoding="utf-8")


def read_training_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor] | None]:
    """Read what `save_training_state` wrote.

    Returns:
        The progress counters, the tensors of `restore_training_state`, and the best weights or None.

    Raises:
        CheckpointError: a part is missing or damaged.
    """
    progress = read_json(folder / "progress.json")
    tensors = read_tensors(folder / "state.safetensors", "delete the folder; training starts over")
    return progress, tensors, _part(tensors, "best.") or None


def restore_training_state(
    folder: Path, tensors: Mapping[str, Tensor], model: TrainedModule, optimizers: Optimizers
) -> None:
    """Restore what was read.

    Args:
        folder: of the state, for messages.
        tensors: from `read_training_state`.
        model, optimizers: filled in place.

    Raises:
        CheckpointError: the state is another model's.
    """
    state = _part(tensors, "model.")
    odd = mismatched_tensor(model.trained_state(), state)
    if odd is not None:
        raise CheckpointError(f"{folder} is the state of another model (tensor {odd})", remedy="delete the folder")
    model.load_state_dict(state, strict=False)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        position, _, entry = name.partition(".")
        moments.setdefault(int(position), {})[entry] = tensor
    optimizers.load_state(moments)
    if optimizers.average is not None:
        if "average.steps" not in tensors:
            raise CheckpointError(f"{folder} is the state of a run without train.average", remedy="delete the folder")
        optimizers.average.load_state(_part(tensors, "average."))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
