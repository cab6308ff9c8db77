"""Checkpoints of the recommender, in the form of `imf_core/checkpoint/checkpoint.py`.

    model.safetensors          weights, frozen features and masks
    interactions.safetensors   training and validation pairs: the graph, and the items that are not recommended again
    config.json                configuration, sizes, vocabulary hashes, metrics, versions; `task` is `recommend`
    vocabulary.json            users and items in id order

Shapes: `P` interactions, `I` items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from imf_core.checkpoint.checkpoint import (
    check_vocabulary,
    model_of,
    read_description,
    read_names,
    read_tensors,
    stored_settings,
    write_checkpoint,
)
from imf_core.checkpoint.described import RESTORE, Described, Names
from imf_core.checkpoint.hub import local_folder
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError, ImfError
from imf_core.files.json_files import Stored, shortened
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.interactions import Interactions
from imf_core.recommend.model import Recommender, build_recommender

TASK = "recommend"
INTERACTIONS_FILE = "interactions.safetensors"


class DescribedRecommender(Described):
    """The `config.json` of a recommender."""

    modalities: dict[str, PositiveInt]
    metrics: dict[str, Any]
    users_sha256: str
    items_sha256: str


class RecommenderNames(Stored):
    """The `vocabulary.json` of a recommender."""

    users: Names
    items: Names


@dataclass(frozen=True)
class RecommenderCheckpoint:
    """A loaded checkpoint; the fields are those of `imf_core.checkpoint.checkpoint.Checkpoint`, with interactions."""

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
        metrics: any JSON values.
    """
    features = model.features
    widths = dict(zip(features.names, features.widths, strict=True)) if features is not None else {}
    facts = {"task": TASK, "modalities": widths, "num_users": data.num_users, "num_items": data.num_items}
    pairs = {name: torch.from_numpy(np.ascontiguousarray(getattr(data, name))) for name in ("train", "valid")}  # (P, 2)
    tensors = {"model.safetensors": model.state_dict(), INTERACTIONS_FILE: pairs}
    write_checkpoint(folder, config, facts, {"users": data.users, "items": data.items}, metrics or {}, tensors)


def is_recommender(folder: Path | str) -> bool:
    """Whether a checkpoint folder holds a recommender.

    Raises:
        CheckpointError: it is no checkpoint.
    """
    return read_description(folder).get("task") == TASK


def load_recommender(folder: Path | str) -> RecommenderCheckpoint:
    """Read a checkpoint folder, or one on the hub: `hf://OWNER/NAME`.

    Raises:
        CheckpointError: another kind of checkpoint, missing or damaged parts, or the vocabulary is not the model's.
    """
    folder = local_folder(folder)
    description = read_description(folder)
    if description.get("task") != TASK:
        raise CheckpointError(f"{folder} holds no recommender", remedy="a link predictor answers by imf predict")
    names = read_names(folder, description, DescribedRecommender, RecommenderNames)
    users, items = Vocabulary(tuple(names.users), "user"), Vocabulary(tuple(names.items), "item")
    check_vocabulary(description, users, items, folder, ("users", "items"))
    pairs = read_tensors(folder / INTERACTIONS_FILE, RESTORE)
    if pairs.keys() != {"train", "valid"} or any(_outside(part, len(users), len(items)) for part in pairs.values()):
        raise CheckpointError(f"{folder / INTERACTIONS_FILE} holds other users or items", remedy=RESTORE)
    data = Interactions(users, items, pairs["train"].numpy(), pairs["valid"].numpy(), None, (), str(folder))
    state = read_tensors(folder / "model.safetensors", RESTORE)
    config = stored_settings(RecommendConfig, description, folder)
    model = model_of(
        lambda: build_recommender(
            config.model, len(users), len(items), _placeholders(description["modalities"], state, len(items)), data.train
        ), state, folder,
    )
    return RecommenderCheckpoint(model.eval(), config, data, description["metrics"], folder, description)


def _outside(pairs: Tensor, num_users: int, num_items: int) -> bool:
    """Whether a tensor is anything but a (P, 2) matrix of ids of these users and items."""
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2:
        return True
    return bool((pairs < 0).any()) or bool((pairs >= torch.tensor([num_users, num_items])).any())


def _placeholders(widths: Mapping[str, int], state: Mapping[str, Tensor], num_items: int) -> list[Modality]:
    """Modalities with the stored masks and widths; their zeros are replaced by the stored features."""
    masks, table = state.get("features.masks"), state.get("features.table")  # (I, number of modalities), (I, F)
    if not widths or masks is None:
        return []
    if masks.dtype != torch.bool or masks.shape != (num_items, len(widths)):
        raise ImfError(f"there are no masks of the modalities {shortened(list(widths))}")
    if table is None or table.shape != (num_items, sum(widths.values())):
        raise ImfError(f"there are no features of the widths {shortened(widths)}")
    return [
        Modality(name, np.zeros((num_items, width), dtype=np.float32), masks[:, column].numpy(), standard=True)
        for column, (name, width) in enumerate(widths.items())
    ]
