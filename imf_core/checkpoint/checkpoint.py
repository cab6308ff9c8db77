"""Checkpoints: folders of safetensors and JSON, written atomically, loaded without running any code.

    model.safetensors   weights, frozen features and masks
    config.json         configuration, sizes, vocabulary hashes, metrics, versions
    vocabulary.json     entity and relation names in id order
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import imf_core
from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError
from imf_core.files.atomic import atomic_folder
from imf_core.model.imf import Imf

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, what belongs to it, and `config.json` as it stands (description)."""

    model: Imf
    config: Config
    entities: Vocabulary
    relations: Vocabulary
    metrics: dict[str, Any]
    path: Path
    description: dict[str, Any]


def save_checkpoint(
    folder: Path,
    model: Imf,
    config: Config,
    entities: Vocabulary,
    relations: Vocabulary,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: replaced if it exists.
        model: its weights, features and masks are stored.
        config: what it was trained with.
        entities, relations: vocabularies in id order.
        metrics: anything JSON can hold.
    """
    described = {
        "format": FORMAT, "config": config.model_dump(), "modalities": list(model.modality_names),
        "num_entities": model.num_entities, "num_relations": model.num_relations,
        "entities_sha256": entities.sha256, "relations_sha256": relations.sha256,
        "metrics": dict(metrics or {}), "versions": {"imf_search": imf_core.__version__, "torch": torch.__version__},
    }
    with atomic_folder(folder) as fresh:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
            fresh / "model.safetensors",
        )
        (fresh / "config.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        names = {"entities": entities.names, "relations": relations.names}
        (fresh / "vocabulary.json").write_text(json.dumps(names), encoding="utf-8")


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Read a checkpoint folder.

    Raises:
        CheckpointError: missing or damaged parts, unknown format, or a vocabulary that is not the model's.
    """
    folder = Path(folder)
    described = read_description(folder)
    if described.get("task"):
        raise CheckpointError(f"{folder} holds a recommender, no link predictor", remedy="ask it by imf recommend")
    names = read_names(folder, described, ("entities", "relations"))
    entities, relations = Vocabulary(tuple(names["entities"])), Vocabulary(tuple(names["relations"]), "relation")
    check_vocabulary(described, entities, relations, folder)
    state = read_tensors(folder / "model.safetensors", "restore the folder from a copy")
    config = Config.build(described["config"], source=str(folder / "config.json"))
    model = Imf(
        config.model,
        len(entities),
        len(relations),
        [_placeholder(name, state) for name in described["modalities"]],
        config.train.loss,
    )
    load_state(model, state, folder)
    return Checkpoint(model.eval(), config, entities, relations, described["metrics"], folder, described)


def read_names(folder: Path, described: Mapping[str, Any], kinds: tuple[str, str]) -> dict[str, Any]:
    """`vocabulary.json` of a checkpoint whose description is whole and of this version's format.

    Args:
        folder: of the checkpoint.
        described: its `config.json`.
        kinds: of names: `entities` and `relations`, or `users` and `items`.

    Raises:
        CheckpointError: another format, or a part is missing or damaged.
    """
    names = read_json(folder / "vocabulary.json")
    if described.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has format {described.get('format')!r}, this version reads {FORMAT}", remedy="update imf-search"
        )
    parts = ("config", "modalities", *(f"{kind}_sha256" for kind in kinds), "metrics")
    for file, content, needed in (("config.json", described, parts), ("vocabulary.json", names, kinds)):
        if absent := [part for part in needed if part not in content]:
            raise CheckpointError(
                f"{folder / file} is damaged: it lacks {', '.join(absent)}", remedy="restore the folder from a copy"
            )
    return names


def check_vocabulary(
    described: Mapping[str, Any], entities: Vocabulary, relations: Vocabulary, folder: Path,
    kinds: tuple[str, str] = ("entities", "relations"),
) -> None:
    """Refuse another vocabulary: rows of the tables would then belong to other names.

    Raises:
        CheckpointError: the hashes differ.
    """
    for kind, vocabulary in zip(kinds, (entities, relations), strict=True):
        if described[f"{kind}_sha256"] != vocabulary.sha256:
            raise CheckpointError(
                f"{folder} belongs to other {kind}: {described[f'{kind}_sha256'][:12]}, "
                f"not {vocabulary.sha256[:12]} ({len(vocabulary):,} names)",
                remedy="use the graph that the model was trained on",
            )


def read_description(folder: Path | str) -> dict[str, Any]:
    """`config.json` of a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    return read_json(Path(folder) / "config.json")


def load_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Fill a model, refusing missing, extra or misshapen tensors.

    Raises:
        CheckpointError: the tensors are not this model's.
    """
    own = model.state_dict()
    name = _odd_tensor(own, state)
    if name is not None:
        found = tuple(state[name].shape) if name in state else "nothing"
        wanted = tuple(own[name].shape) if name in own else "nothing"
        raise CheckpointError(
            f"{folder}: tensor {name} is {found}, the model needs {wanted}", remedy="use the settings it was trained with"
        )
    model.load_state_dict(dict(state))


def _odd_tensor(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first name, in order, that is missing on one side or differs in shape."""
    names = sorted(wanted.keys() | found.keys())
    return next((n for n in names if n not in wanted or n not in found or wanted[n].shape != found[n].shape), None)


def _placeholder(name: str, state: Mapping[str, Tensor]) -> Modality:
    """A modality with the stored mask and width; the stored features replace it."""
    mask = state[f"features.{name}.mask"].numpy()
    features = state.get(f"features.{name}.features")
    width = features.shape[1] if features is not None else 1
    return Modality(name, np.zeros((len(mask), width), dtype=np.float32), mask)


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        CheckpointError: missing or damaged; with what to do.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy=remedy) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint.

    Raises:
        CheckpointError: missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing", remedy="give the folder of a checkpoint, for example results/<study>/best"
        ) from error
    except NotADirectoryError as error:
        raise CheckpointError(f"{path.parent} is not a folder", remedy="give the folder of a checkpoint") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", remedy="restore the folder from a copy") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no settings", remedy="restore the folder from a copy")
    return content


# --- training state: what an interrupted run needs to go on, to the bit ---------------------------------------------------
