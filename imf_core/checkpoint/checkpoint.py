"""Checkpoints: folders of safetensors and JSON, written atomically, loaded without running any code.

    model.safetensors   weights, frozen features and masks
    facts.safetensors   training and validation triples: answers that are known already, and facts to calibrate on
    config.json         configuration, sizes, vocabulary hashes, metrics, versions
    vocabulary.json     entity and relation names in id order

Shapes: `T` triples of a split.

The recommender's checkpoints (`imf_core/recommend/checkpoint.py`) have the same form and use the functions here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import imf_core
from imf_core.checkpoint.described import (
    RESTORE,
    Described,
    DescribedLinks,
    DescribedMetrics,
    DescribedPart,
    DescribedParts,
    LinkNames,
    StoredT,
    checked,
    read_json,
)
from imf_core.checkpoint.hub import local_folder
from imf_core.config import Config, ModelConfig
from imf_core.config_base import Settings
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, Vocabulary
from imf_core.errors import CheckpointError, ConfigError, DataError, ImfError
from imf_core.files.atomic import atomic_folder
from imf_core.files.json_files import shortened
from imf_core.files.lines import refuse_other_kinds
from imf_core.model.imf import Imf
from imf_core.model.known_facts import give_facts
from imf_core.parts.registry import KINDS, find
from imf_core.parts.sections import in_use, own_parts_of

SettingsT = TypeVar("SettingsT", bound=Settings)
ModelT = TypeVar("ModelT", bound=nn.Module)

FORMAT = 1
FACTS_FILE = "facts.safetensors"
_ASK_IT = "ask it by imf recommend, or in Python: imf_core.recommend.answers.ItemRecommender.load(folder)"
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Args:
        model: in evaluation mode.
        config: what it was trained with.
        entities, relations: vocabularies in id order.
        metrics: its figures, as they were saved.
        path: its folder.
        description: the values of its `config.json`.
        graph: the facts that it was trained and validated on, without test; None in checkpoints of versions that kept none.
    """

    model: Imf
    config: Config
    entities: Vocabulary
    relations: Vocabulary
    metrics: dict[str, Any]
    path: Path
    description: dict[str, Any]
    graph: KnowledgeGraph | None = None


def save_checkpoint(
    folder: Path, model: Imf, config: Config, graph: KnowledgeGraph, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint folder.

    Args:
        folder: replaced if it exists.
        model: its weights, features and masks are stored.
        config: what it was trained with.
        graph: its names, training and validation triples are stored.
        metrics: any JSON values.
    """
    names = {"entities": graph.entities, "relations": graph.relations}
    facts = {split: torch.from_numpy(getattr(graph, split).astype(np.int32)) for split in ("train", "valid")}  # (T, 3)
    state = {name: part for name, part in model.state_dict().items() if not name.startswith("auxiliary.")}  # of no use later
    write_checkpoint(folder, config, _sizes(model), names, metrics or {}, {"model.safetensors": state, FACTS_FILE: facts})


def describe(config: Config, model: Imf, graph: KnowledgeGraph, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the `config.json` of this model would hold; arguments as of `save_checkpoint`."""
    return _description(config, _sizes(model), {"entities": graph.entities, "relations": graph.relations}, metrics)


def _sizes(model: Imf) -> dict[str, Any]:
    return {"modalities": list(model.all_modalities), "num_entities": model.num_entities, "num_relations": model.num_relations}


def write_checkpoint(
    folder: Path, config: Settings, facts: Mapping[str, Any], vocabularies: Mapping[str, Vocabulary],
    metrics: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Write a checkpoint folder of any kind, atomically.

    Args:
        folder: replaced if it exists.
        config: what the model was trained with.
        facts: further values of `config.json`, such as sizes.
        vocabularies: by kind: `entities` and `relations`, or `users` and `items`.
        metrics: any JSON values.
        tensors: by file name, then by tensor name.
    """
    description = _description(config, facts, vocabularies, metrics)
    names = {kind: vocabulary.names for kind, vocabulary in vocabularies.items()}
    with atomic_folder(folder) as fresh:
        for file, parts in tensors.items():
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}, fresh / file)
        (fresh / "config.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        (fresh / "vocabulary.json").write_text(json.dumps(names), encoding="utf-8")


def _description(
    config: Settings, facts: Mapping[str, Any], vocabularies: Mapping[str, Vocabulary], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of `config.json`; arguments as of `write_checkpoint`."""
    parts = [part.identity() for part in own_parts_of(config)]
    return {
        "format": FORMAT, "config": in_use(config).model_dump(), **({"parts": parts} if parts else {}), **facts,
        **{f"{kind}_sha256": vocabulary.sha256 for kind, vocabulary in vocabularies.items()},
        "metrics": dict(metrics), "versions": {"imf_search": imf_core.__version__, "torch": torch.__version__},
    }


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or one on the hub: `hf://OWNER/NAME`.

    Raises:
        CheckpointError: missing or damaged parts, unknown format, or the vocabulary is not the model's.
    """
    folder = local_folder(folder)
    description = read_description(folder)
    if description.get("task"):
        raise CheckpointError(f"{folder} holds a recommender, no link predictor", remedy=_ASK_IT)
    names = read_names(folder, description, DescribedLinks, LinkNames)
    entities, relations = Vocabulary(tuple(names.entities)), Vocabulary(tuple(names.relations), "relation")
    check_vocabulary(description, entities, relations, folder)
    state = read_tensors(folder / "model.safetensors", RESTORE)
    config = stored_settings(Config, description, folder)
    graph = _read_facts(folder, entities, relations)
    model = model_of(
        lambda: give_facts(Imf(
            config.model, len(entities), len(relations),
            [_placeholder(name, len(entities), state, config.model) for name in description["modalities"]], config.train.loss,
        ), graph), state, folder,
    )
    decision = checked(folder / "config.json", DescribedMetrics, description["metrics"]).decision
    if decision is not None and not decision.fit(len(model.branches), 2 * len(relations)):
        raise CheckpointError(f"{folder / 'config.json'} is damaged: decision weights of another model", remedy=RESTORE)
    return Checkpoint(model.eval(), config, entities, relations, description["metrics"], folder, description, graph)


def _read_facts(folder: Path, entities: Vocabulary, relations: Vocabulary) -> KnowledgeGraph | None:
    """The graph of `facts.safetensors`; None without that file.

    Raises:
        CheckpointError: it is damaged, or names other entities or relations.
    """
    file = folder / FACTS_FILE
    if not os.path.lexists(file):
        return None
    facts = read_tensors(file, RESTORE)
    most = torch.tensor([len(entities), len(relations), len(entities)])
    for split in ("train", "valid"):
        rows = facts.get(split)
        if rows is None or rows.dtype != torch.int32 or rows.dim() != 2 or rows.shape[1] != 3:
            raise CheckpointError(f"{file} is damaged: {split} is no table of triples", remedy=RESTORE)
        if bool((rows < 0).any()) or bool((rows >= most).any()):
            raise CheckpointError(f"{file} names other entities or relations", remedy=RESTORE)
    train, valid = (facts[split].numpy().astype(np.int64) for split in ("train", "valid"))
    return KnowledgeGraph(entities, relations, train, valid, source=str(folder))


def read_names(
    folder: Path, description: Mapping[str, Any], described: type[Described], names: type[StoredT]
) -> StoredT:
    """Read the `vocabulary.json` of a checkpoint; its description must be complete and of this version's format.

    Args:
        folder: of the checkpoint.
        description: its `config.json`.
        described: what that must hold.
        names: what the vocabulary must hold.

    Raises:
        CheckpointError: another format, or a part is missing, damaged or of another type.
    """
    vocabulary = read_json(folder / "vocabulary.json")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'} has format {shortened(description.get('format'))}, this version reads {FORMAT}",
            remedy="update imf-search",
        )
    checked(folder / "config.json", described, description)
    return checked(folder / "vocabulary.json", names, vocabulary)


def check_vocabulary(
    description: Mapping[str, Any], entities: Vocabulary, relations: Vocabulary, folder: Path,
    kinds: tuple[str, str] = ("entities", "relations"),
) -> None:
    """Refuse a vocabulary that the model was not trained on: the rows of its tables belong to other names.

    Args:
        description: `config.json` of the checkpoint.
        entities, relations: vocabularies of the data, or of `kinds`.
        folder: of the checkpoint, for the message.
        kinds: as of `read_names`.

    Raises:
        CheckpointError: the hashes differ.
    """
    for kind, vocabulary in zip(kinds, (entities, relations), strict=True):
        if description[f"{kind}_sha256"] != vocabulary.sha256:
            raise CheckpointError(
                f"{folder} belongs to other {kind}: {description[f'{kind}_sha256'][:12]}, "
                f"not {vocabulary.sha256[:12]} ({len(vocabulary):,} names)",
                remedy="use the graph that the model was trained on",
            )


def stored_settings(kind: type[SettingsT], description: Mapping[str, Any], folder: Path) -> SettingsT:
    """The settings in a checkpoint's `config.json`.

    Raises:
        CheckpointError: a later version wrote settings that this one does not know, or a part of one's own is not here.
        ConfigError: they are damaged.
    """
    refuse_missing_parts(checked(folder / "config.json", DescribedParts, description).parts, folder)
    try:
        return kind.build(description["config"], source=str(folder / "config.json"))
    except ConfigError as error:
        written = str(description.get("versions", {}).get("imf_search", ""))
        if _version(written) > _version(imf_core.__version__):
            raise CheckpointError(
                f"{folder} was written by imf-search {written}, this is {imf_core.__version__}", remedy="update imf-search"
            ) from error
        raise


def refuse_missing_parts(parts: Sequence[DescribedPart], folder: Path) -> None:
    """Refuse a model whose parts are not here: nothing that a checkpoint names is imported unless it is installed or loaded.

    Raises:
        CheckpointError: says what to install or to import.
    """
    for part in parts:
        title = f"the {KINDS[part.kind].title} {part.name!r}" if part.kind in KINDS else f"a {shortened(part.kind)}"
        here = find(part.kind, part.name) if part.kind in KINDS else None
        if here is None:
            raise CheckpointError(f"{folder} needs {title} of {part.source}, which is not here", remedy=part.remedy)
        if part.package and here.package != part.package:
            raise CheckpointError(
                f"{folder} needs {title} of {part.source}; the one here is of {here.source}", remedy=part.remedy
            )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def read_description(folder: Path | str) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged, or the folder is an ensemble.
    """
    if os.path.exists(Path(folder) / "ensemble.json"):  # of a name that is too long, Path would raise
        raise CheckpointError(
            f"{folder} is an ensemble of several models; this takes one", remedy=f"give a member, such as {folder}/members/1"
        )
    return read_json(Path(folder) / "config.json")


def load_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Load tensors into a model; missing, extra or misshapen ones are refused.

    Raises:
        CheckpointError: the tensors are not this model's.
    """
    wanted = model.state_dict()
    name = mismatched_tensor(wanted, state)
    if name is None:
        model.load_state_dict(dict(state))
        return
    given, needed = (_kind(tensors[name]) if name in tensors else "nothing" for tensors in (state, wanted))
    raise CheckpointError(
        f"{folder}: tensor {name} is {given}, the model needs {needed}", remedy="use the settings it was trained with"
    )


def model_of(build: Callable[[], ModelT], state: Mapping[str, Tensor], folder: Path) -> ModelT:
    """A model with its stored tensors. It may not take much more memory than they do: altered settings may ask for terabytes.

    Args:
        build: makes the model.
        state: tensors by name.
        folder: of the checkpoint, for messages.

    Raises:
        CheckpointError: the settings fit no model, or the tensors are not this model's.
    """
    try:
        with _AtMost(4 * sum(tensor.numel() for tensor in state.values()) + 2**20):
            model = build()
    except (ImfError, RuntimeError, ValueError) as error:
        problem = error.problem if isinstance(error, ImfError) else str(error)
        raise CheckpointError(f"{folder / 'config.json'} fits no model: {problem}", remedy=RESTORE) from error
    load_state(model, state, folder)
    return model


class _AtMost(TorchFunctionMode):
    """Refuses tensors that together have more elements than the given number.

    Raises:
        ImfError: they have.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.left = elements

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _MAKERS:
            size = args[0] if args and isinstance(args[0], Sequence) else args
            self.left -= math.prod(int(length) for length in size)
            if self.left < 0:
                raise ImfError("it asks for a larger model than the stored tensors are")
        return func(*args, **(kwargs or {}))


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def mismatched_tensor(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The first tensor, in the order of names, that is missing on one side or differs in shape or type; None if all match."""
    names = sorted(wanted.keys() | given.keys())
    return next((name for name in names if name not in wanted or name not in given or _differ(wanted[name], given[name])), None)


def _differ(first: Tensor, second: Tensor) -> bool:
    return first.shape != second.shape or first.dtype != second.dtype


def _placeholder(name: str, num_entities: int, state: Mapping[str, Tensor], config: ModelConfig) -> Modality:
    """A modality with the stored mask and width; its zeros are replaced by the stored features when the state is loaded."""
    tables = [f"features.{name}", *(f"head_features.{head.branch}" for head in config.heads if head.view == name)]
    mask, features = (
        next((state[key] for table in tables if (key := f"{table}.{kind}") in state), None) for kind in ("mask", "features")
    )
    if mask is None or mask.dtype != torch.bool or mask.shape != (num_entities,):
        raise ImfError(f"there is no mask of the modality {shortened(name)}")
    width = features.shape[1] if features is not None and features.dim() == 2 else 1
    return Modality(name, np.zeros((num_entities, width), dtype=np.float32), mask.numpy())


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: the file is missing or damaged; with this remedy.
    """
    try:
        refuse_other_kinds(path)
        return load_file(path)
    except DataError as error:
        raise CheckpointError(error.problem, remedy=remedy) from error
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", remedy=remedy) from error
