"""Checkpoints of the recommender: folders of safetensors and JSON, written atomically, loaded without running any code.

    model.safetensors          weights, frozen features and masks
    interactions.safetensors   training and validation pairs: the graph, and what is not recommended again
    config.json                configuration, sizes, vocabulary hashes, metrics, versions; `task` is `recommend`
    vocabulary.json            users and items in id order: the map of ids
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import imf_core
from imf_core.checkpoint.checkpoint import (
    FORMAT,
    check_vocabulary,
    load_state,
    read_description,
    read_names,
    read_tensors,
)
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError
from imf_core.files.atomic import atomic_folder
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.interactions import Interactions
from imf_core.recommend.model import Recommender, build_recommender

TASK = "recommend"
_REMEDY = "restore the folder from a copy"


@dataclass(frozen=True)
class RecommenderCheckpoint:
    """A loaded checkpoint: the model in evaluation mode, what belongs to it, and `config.json` as it stands (description)."""

    model: Recommender
    config: RecommendConfig
    interactions: Interactions
    metrics: dict[str, Any]
    path: Path
    description: dict[str, Any]


def save_recommender(
    folder: Path, model: Recommender, config: RecommendConfig, data: Interactions, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: replaced if it exists.
        model: its weights, features and masks are stored.
        config: what it was trained with.
        data: users, items, training and validation interactions.
        metrics: anything JSON can hold.
    """
    features = model.features
    widths = dict(zip(features.names, features.widths, strict=True)) if features is not None else {}
    described = {
        "format": FORMAT, "task": TASK, "config": config.model_dump(), "modalities": widths,
        "num_users": data.num_users, "num_items": data.num_items,
        "users_sha256": data.users.sha256, "items_sha256": data.items.sha256,
        "metrics": dict(metrics or {}), "versions": {"imf_search": imf_core.__version__, "torch": torch.__version__},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    pairs = {name: torch.from_numpy(np.ascontiguousarray(getattr(data, name))) for name in ("train", "valid")}
    with atomic_folder(folder) as fresh:
        save_file(tensors, fresh / "model.safetensors")
        save_file(pairs, fresh / "interactions.safetensors")
        (fresh / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        names = {"users": data.users.names, "items": data.items.names}
        (fresh / "vocabulary.json").write_text(json.dumps(names), encoding="utf-8")


def is_recommender(folder: Path | str) -> bool:
    """Whether a checkpoint folder holds a recommender.

    Raises:
        CheckpointError: it is no checkpoint.
    """
    return read_description(folder).get("task") == TASK


def load_recommender(folder: Path | str) -> RecommenderCheckpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: another kind of checkpoint, missing or damaged parts, or a vocabulary that is not the model's.
    """
    folder = Path(folder)
    described = read_description(folder)
    if described.get("task") != TASK:
        raise CheckpointError(f"{folder} holds no recommender", remedy="a link predictor answers by imf predict")
    names = read_names(folder, described, ("users", "items"))
    users, items = Vocabulary(tuple(names["users"]), "user"), Vocabulary(tuple(names["items"]), "item")
    check_vocabulary(described, users, items, folder, ("users", "items"))
    pairs = read_tensors(folder / "interactions.safetensors", _REMEDY)
    if pairs.keys() != {"train", "valid"} or any(_outside(part, len(users), len(items)) for part in pairs.values()):
        raise CheckpointError(f"{folder / 'interactions.safetensors'} holds other users or items", remedy=_REMEDY)
    data = Interactions(users, items, pairs["train"].numpy(), pairs["valid"].numpy(), None, (), str(folder))
    state = read_tensors(folder / "model.safetensors", _REMEDY)
    config = RecommendConfig.build(described["config"], source=str(folder / "config.json"))
    modalities = _placeholders(described["modalities"], state, len(items))
    model = build_recommender(config.model, len(users), len(items), modalities, data.train)
    load_state(model, state, folder)
    return RecommenderCheckpoint(model.eval(), config, data, described["metrics"], folder, described)


def _outside(pairs: Tensor, num_users: int, num_items: int) -> bool:
    """Whether it is no matrix of pairs of these users and items."""
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
        return True
    return bool((pairs < 0).any()) or bool((pairs >= torch.tensor([num_users, num_items])).any())


def _placeholders(widths: Mapping[str, int], state: Mapping[str, Tensor], num_items: int) -> list[Modality]:
    """Modalities with the stored masks and widths; the stored features replace theirs."""
    masks = state.get("features.masks")
    if not widths or masks is None:
        return []
    return [
        Modality(name, np.zeros((num_items, width), dtype=np.float32), masks[:, place].numpy(), standard=True)
        for place, (name, width) in enumerate(widths.items())
    ]
