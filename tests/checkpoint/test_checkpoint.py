"""Checkpoints: the same scores after a round trip, other vocabularies and damage refused, whole or not at all, no pickle."""

from __future__ import annotations

import json
import pickletools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imf_core.checkpoint.checkpoint import FACTS_FILE, check_vocabulary, load_checkpoint, read_description, save_checkpoint
from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import Vocabulary
from imf_core.errors import CheckpointError, ConfigError
from imf_core.files.atomic import atomic_folder
from imf_core.model.imf import Imf
from imf_core.model.losses.target import Positives
from imf_core.prepare.link_data import LinkData
from imf_core.train import optimizers
from imf_core.train.fit import build_model
from imf_core.train.optimizers import Optimizers
from imf_core.train.state import read_training_state, restore_training_state, save_training_state

SMALL = {"model.dim": 8, "model.relation_dim": 4}


def shaken(config: Config, data: LinkData) -> Imf:
    """A model none of whose stored numbers is at its first value."""
    model = build_model(config, data)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith(".features"):
            tensor.copy_(tensor + 0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def decided(model: Imf) -> Tensor:
    """Decided scores of every query."""
    heads = torch.arange(model.num_entities).repeat_interleave(2 * model.num_relations)
    relations = torch.arange(2 * model.num_relations).repeat(model.num_entities)
    tables = model.tables()
    scores = model.branch_scores(tables, model.contexts(tables, heads, relations))
    norms = [torch.logsumexp(score, dim=1) for score in scores]
    return model.combine(scores, norms, model.decision_weights(heads, relations))


def save(folder: Path, config: Config, data: LinkData, model: Imf | None = None, **metrics: object) -> Imf:
    model = model or shaken(config, data)
    save_checkpoint(folder, model, config, data.graph, metrics)
    return model


CASES = [
    *(
        {"model.missing": policy, "model.finetune_features": tune}
        for policy in ("learned", "mean", "neutral")
        for tune in (True, False)
    ),
    *({"model.decision": mode} for mode in ("uniform", "fixed", "relation")),
    {"model.decision": "fixed", "model.decision_weights": {"text": 0.25, "fused": 0.75}},
    {"train.loss": "bce"},
    {"model.modalities": []},
    {"model.modalities": ["text"]},
    *({"model.scoring": kind} for kind in ("block", "transe", "distmult", "complex")),
    {"model.heads": [{"view": "structure", "scoring": "complex", "dim": 12}, {"view": "text", "scoring": "block", "dim": 16}]},
    *({"model.heads": [{"view": "text", "scoring": "similarity", "only": only}], "model.finetune_features": tune}
      for only in (False, True) for tune in (False, True)),
    {"model.heads": [{"view": "text", "scoring": "similarity", "only": True}, {"view": "text", "scoring": "complex"}]},
]


@pytest.mark.parametrize(
    "settings", CASES, ids=lambda settings: ",".join(f"{key[6:]}={value}" for key, value in settings.items())
)
def test_round_trip_gives_the_same_scores(toy: LinkData, tmp_path: Path, settings: dict[str, object]) -> None:
    config = Config().updated({**SMALL, **settings})
    model = save(tmp_path / "best", config, toy, validation=0.5)
    loaded = load_checkpoint(tmp_path / "best")
    assert torch.equal(decided(loaded.model), decided(model))
    assert not loaded.model.training
    assert loaded.config == config
    assert (loaded.entities, loaded.relations) == (toy.graph.entities, toy.graph.relations)
    assert loaded.metrics == {"validation": 0.5}
    assert loaded.model.branches == model.branches
    assert loaded.model.num_parameters == model.num_parameters
    assert decided(model).std() > 0.01


def test_odd_names_survive(toy: LinkData, tmp_path: Path) -> None:
    odd = (b"\xff\xfe".decode("utf-8", "surrogateescape"), "[b]", "\u00e9", "e\u0301", *toy.graph.entities.names[4:])
    data = replace(toy, graph=replace(toy.graph, entities=Vocabulary(odd)))
    save(tmp_path / "best", Config().updated(SMALL), data)
    assert load_checkpoint(tmp_path / "best").entities.names == odd


def test_the_folder_holds_safetensors_and_json_alone(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    parts = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}
    assert sorted(parts) == ["config.json", "facts.safetensors", "model.safetensors", "vocabulary.json"]
    for name in ("config.json", "vocabulary.json"):
        json.loads(parts[name])
    length = int.from_bytes(parts["model.safetensors"][:8], "little")
    header = json.loads(parts["model.safetensors"][8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    assert 8 + length + max(ends) == len(parts["model.safetensors"])  # nothing but the tensors
    for content in parts.values():
        assert not content.startswith((b"\x80", b"PK"))
        with pytest.raises(ValueError):
            list(pickletools.genops(content))


def test_description_tells_versions_and_sizes(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    described = read_description(tmp_path / "best")
    assert (described["num_entities"], described["num_relations"], described["modalities"]) == (30, 4, ["image", "text"])
    assert described["versions"]["torch"] == torch.__version__
    assert described["entities_sha256"] == toy.graph.entities.sha256


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "error", "told"),
    [
        ("9.9.0", CheckpointError, r"(?s)was written by imf-search 9\.9\.0, this is .*update imf-search"),
        ("0.0.1", ConfigError, "unknown setting"), ("", ConfigError, "unknown setting"),
    ],
)
def test_a_checkpoint_of_a_later_version(
    toy: LinkData, tmp_path: Path, version: str, error: type[Exception], told: str
) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    described = read_description(tmp_path / "best")
    described["config"]["model"]["rotary"] = True
    described["versions"]["imf_search"] = version
    (tmp_path / "best" / "config.json").write_text(json.dumps(described))
    with pytest.raises(error, match=told):
        load_checkpoint(tmp_path / "best")


@pytest.mark.parametrize("kind", ["entities", "relations"])
def test_another_vocabulary_is_refused_by_hash(toy: LinkData, tmp_path: Path, kind: str) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    names = {"entities": toy.graph.entities, "relations": toy.graph.relations}
    described = read_description(tmp_path / "best")
    check_vocabulary(described, **names, folder=tmp_path / "best")
    swapped = (*names[kind].names[1::-1], *names[kind].names[2:])
    with pytest.raises(CheckpointError, match=f"belongs to other {kind}: {names[kind].sha256[:12]}, not "):
        check_vocabulary(described, **{**names, kind: Vocabulary(swapped)}, folder=tmp_path / "best")
    # The same inside the folder: names exchanged by hand.
    stored = json.loads((tmp_path / "best" / "vocabulary.json").read_text())
    stored[kind][:2] = stored[kind][1::-1]
    (tmp_path / "best" / "vocabulary.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=f"belongs to other {kind}"):
        load_checkpoint(tmp_path / "best")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("part", ["config.json", "vocabulary.json", "model.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff\xfe" * 99)],
    ids=["missing", "cut", "empty", "noise"],
)
def test_missing_and_damaged_parts_are_named(
    toy: LinkData, tmp_path: Path, part: str, damage: Callable[[Path], object]
) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    damage(tmp_path / "best" / part)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "best")
    assert str(tmp_path / "best" / part) in str(caught.value)
    assert "What to do:" in str(caught.value)


@pytest.mark.parametrize(("file", "part"), [("config.json", "entities_sha256"), ("config.json", "config"),
                                            ("vocabulary.json", "relations")])
def test_a_part_that_is_lacking_is_named(toy: LinkData, tmp_path: Path, file: str, part: str) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    path = tmp_path / "best" / file
    content = json.loads(path.read_text())
    del content[part]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{file} is damaged: it lacks {part}"):
        load_checkpoint(tmp_path / "best")


def test_a_list_is_no_description(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    (tmp_path / "best" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json is damaged"):
        load_checkpoint(tmp_path / "best")


def test_no_folder_and_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_checkpoint(tmp_path / "file")


def test_another_format_is_refused(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    described = read_description(tmp_path / "best")
    (tmp_path / "best" / "config.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this version reads 1"):
        load_checkpoint(tmp_path / "best")


def test_tensors_of_other_settings_are_refused(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    described = read_description(tmp_path / "best")
    described["config"]["model"]["dim"] = 16
    (tmp_path / "best" / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="the model needs"):
        load_checkpoint(tmp_path / "best")


# --- atomic -------------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for whatever ends a save in the middle."""


def interrupted_save(target: Path) -> None:
    with atomic_folder(target) as fresh:
        (fresh / "part").write_text("half")
        raise Interrupted


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "best"
    with atomic_folder(target) as fresh:
        (fresh / "part").write_text("old")
    with pytest.raises(Interrupted):
        interrupted_save(target)
    assert (target / "part").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]  # nothing left over


def test_a_new_folder_replaces_the_old_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "best"
    for content, name in (("old", "first"), ("new", "second")):
        with atomic_folder(target) as fresh:
            (fresh / name).write_text(content)
            assert not (target / name).exists()
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in target.parent.iterdir()] == ["best"]


def test_an_exception_before_there_was_a_folder_leaves_none(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        interrupted_save(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_metrics_that_json_cannot_hold_leave_the_old_checkpoint(toy: LinkData, tmp_path: Path) -> None:
    config = Config().updated(SMALL)
    model = save(tmp_path / "best", config, toy, mrr=0.5)
    with pytest.raises(TypeError):
        save(tmp_path / "best", config, toy, model, mrr=object())
    assert load_checkpoint(tmp_path / "best").metrics == {"mrr": 0.5}


# --- training state -----------------------------------------------------------------------------------------------------


def load_training_state(
    folder: Path, model: Imf, optimizer: Optimizers
) -> tuple[dict[str, object], dict[str, Tensor] | None]:
    progress, tensors, best = read_training_state(folder)
    restore_training_state(folder, tensors, model, optimizer)
    return progress, best


def stepped(model: Imf, optimizer: Optimizers, config: Config, steps: int) -> list[float]:
    """A few steps of training on fixed queries; the losses."""
    torch.manual_seed(3)
    heads, relations = torch.arange(12), torch.arange(12) % 8
    positives = Positives(torch.arange(12), (torch.arange(12) * 5 + 1) % 30, torch.ones(12))
    losses = []
    for _ in range(steps):
        loss = model.train()(heads, relations, positives, config.train)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", ["adam", "adamw", "adagrad"])
def test_training_goes_on_to_the_bit(
    toy: LinkData, tmp_path: Path, kind: str, early: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "_LARGE", 100)
    config = Config().updated(SMALL)
    model = build_model(config, toy)
    optimizer = Optimizers(model, kind, 0.01, 0.01, early=early, tables=model.vectors() if kind == "adagrad" else ())
    stepped(model, optimizer, config, 3)
    best = {name: tensor + 1 for name, tensor in model.state_dict().items() if not name.endswith((".features", ".mask"))}
    save_training_state(tmp_path / "state", model, optimizer, {"epoch": 3, "curve": [[1, 0.5]]}, best)

    fresh = build_model(config.updated({"train.seed": 9}), toy)
    other = Optimizers(fresh, kind, 0.01, 0.01, early=early, tables=fresh.vectors() if kind == "adagrad" else ())
    progress, found = load_training_state(tmp_path / "state", fresh, other)
    assert progress == {"epoch": 3, "curve": [[1, 0.5]]}
    assert found is not None and found.keys() == best.keys()
    assert all(torch.equal(found[name], best[name]) for name in best)
    before, after = optimizer.state(), other.state()
    assert before.keys() == after.keys() and len(before) > 0
    for position in before:
        assert before[position].keys() == after[position].keys()
        assert before[position].keys() == {"step", "exp_avg", "exp_avg_sq"} or kind == "adagrad"
        assert all(torch.equal(before[position][name], after[position][name]) for name in before[position])
    assert stepped(fresh, other, config, 3) == stepped(model, optimizer, config, 3)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_training_state_without_a_best(toy: LinkData, tmp_path: Path) -> None:
    model = build_model(Config().updated(SMALL), toy)
    optimizer = Optimizers(model, "adam", 1e-3, 0.0)
    save_training_state(tmp_path / "state", model, optimizer, {}, None)
    assert load_training_state(tmp_path / "state", model, optimizer) == ({}, None)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["progress.json", "state.safetensors"]


def test_training_state_leaves_out_the_frozen_features(toy: LinkData, tmp_path: Path) -> None:
    wide = replace(
        toy,
        modalities=(Modality("text", np.random.default_rng(0).normal(size=(30, 4000)).astype(np.float32), np.ones(30, bool)),),
    )
    model = build_model(Config().updated(SMALL), wide)
    save_training_state(tmp_path / "state", model, Optimizers(model, "adam", 1e-3, 0.0), {}, None)
    assert (tmp_path / "state" / "state.safetensors").stat().st_size < 30 * 4000 * 4 + 8 * 4000 * 4


@pytest.mark.parametrize("part", ["progress.json", "state.safetensors"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"{")], ids=["missing", "damaged"])
def test_damaged_training_state(toy: LinkData, tmp_path: Path, part: str, damage: Callable[[Path], object]) -> None:
    model = build_model(Config().updated(SMALL), toy)
    optimizer = Optimizers(model, "adam", 1e-3, 0.0)
    save_training_state(tmp_path / "state", model, optimizer, {}, None)
    damage(tmp_path / "state" / part)
    with pytest.raises(CheckpointError) as caught:
        load_training_state(tmp_path / "state", model, optimizer)
    assert str(tmp_path / "state" / part) in str(caught.value)


@pytest.mark.parametrize("settings", [{"model.modalities": ["text"]}, {"model.decision": "uniform"}, {"model.dim": 16}])
def test_training_state_of_another_model(toy: LinkData, tmp_path: Path, settings: dict[str, object]) -> None:
    model = build_model(Config().updated(SMALL), toy)
    save_training_state(tmp_path / "state", model, Optimizers(model, "adam", 1e-3, 0.0), {}, None)
    other = build_model(Config().updated({**SMALL, **settings}), toy)
    with pytest.raises(CheckpointError, match="is the state of another model"):
        load_training_state(tmp_path / "state", other, Optimizers(other, "adam", 1e-3, 0.0))


# --- facts --------------------------------------------------------------------------------------------------------------


def test_the_facts_come_back_without_test(toy: LinkData, tmp_path: Path) -> None:
    data = replace(toy, graph=replace(toy.graph, test_reader=lambda: toy.graph.valid))
    save(tmp_path / "best", Config().updated(SMALL), data)
    graph = load_checkpoint(tmp_path / "best").graph
    assert graph is not None and graph.test_reader is None
    assert (graph.train == toy.graph.train).all() and (graph.valid == toy.graph.valid).all()
    assert graph.fingerprint == toy.graph.fingerprint


def test_a_checkpoint_without_facts_is_read(toy: LinkData, tmp_path: Path) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    (tmp_path / "best" / FACTS_FILE).unlink()
    assert load_checkpoint(tmp_path / "best").graph is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": torch.tensor([[0, 4, 1]], dtype=torch.int32)}, "names other entities or relations"),
        ({"valid": torch.tensor([[30, 0, 1]], dtype=torch.int32)}, "names other entities or relations"),
        ({"valid": torch.tensor([[-1, 0, 1]], dtype=torch.int32)}, "names other entities or relations"),
        ({"valid": torch.tensor([[1, 0]], dtype=torch.int32)}, "valid is no table of triples"),
        ({"train": torch.tensor([[1.0, 0.0, 1.0]])}, "train is no table of triples"),
    ],
)
def test_damaged_facts_are_refused(toy: LinkData, tmp_path: Path, changes: dict[str, Tensor], problem: str) -> None:
    save(tmp_path / "best", Config().updated(SMALL), toy)
    file = tmp_path / "best" / FACTS_FILE
    save_file({**load_file(file), **changes}, file)
    with pytest.raises(CheckpointError, match=problem):
        load_checkpoint(tmp_path / "best")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "best")
