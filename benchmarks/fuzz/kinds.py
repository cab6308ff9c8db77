"""The kinds of input that are tried: whole files of each, and what reads them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imf_core.card.card import read_study
from imf_core.checkpoint.checkpoint import load_checkpoint, save_checkpoint
from imf_core.commands.data.convert_features import convert_features
from imf_core.commands.model.predict_file import read_questions
from imf_core.commands.serve.request import Limits, read_request
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.data.features.feature_files import Features, save_features
from imf_core.data.features.modality import load_modality
from imf_core.data.formats.readers import read_graph, read_raw
from imf_core.encode.image.pictures import find_images, open_picture
from imf_core.ensemble.ensemble import load_ensemble, save_ensemble
from imf_core.prepare.entity_files import EntityFiles
from imf_core.prepare.link_data import prepare
from imf_core.recommend.checkpoint import load_recommender, save_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import prepare_recommend
from imf_core.recommend.data.readers import read_raw_interactions
from imf_core.recommend.fit import build_model as build_recommender
from imf_core.study_reader import StudyFolder
from imf_core.train.fit import build_model
from tune.plan.opening import search_config
from tune.plan.warm_start import warm_start
from tune.space.space import SearchSpace
from tune.study.journal import Journal
from tune.study.outcome import TrialState
from tune.study.records import TrialRecord, load_records

COUNT = 12
NAMES = tuple(f"e{number}" for number in range(COUNT))
LINES = [(NAMES[i], f"r{i % 2}", NAMES[(i * 5 + 1) % COUNT]) for i in range(COUNT)] * 2
SETTINGS = (
    "train.lr=1e-3",
    "model.modalities=[text,image]",
    "data.path=x",
    "train.max_epochs=3",
    "model.decision_weights={a: 1}",
)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        name: in the table.
        make: writes whole files into a folder.
        files: those of them that are damaged.
        read: reads them; raises an error for users where it refuses.
        share: of all inputs.
    """

    name: str
    make: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    share: int = 1


def _graph(folder: Path, suffix: str = "tsv", line: str = "{}\t{}\t{}", pack: Callable[[bytes], bytes] = bytes) -> None:
    for split, rows in (("train", LINES[:16]), ("valid", LINES[16:20]), ("test", LINES[20:])):
        text = "".join(line.format(*row) + "\n" for row in rows)
        (folder / f"{split}.{suffix}").write_bytes(pack(text.encode()))


def _openke(folder: Path) -> None:
    rows = [(int(head[1:]), int(tail[1:]), int(relation[1:])) for head, relation, tail in LINES]
    for split, part in (("train", rows[:16]), ("valid", rows[16:20]), ("test", rows[20:])):
        (folder / f"{split}2id.txt").write_text("\n".join([str(len(part)), *(" ".join(map(str, row)) for row in part)]) + "\n")
    for kind, names in (("entity", NAMES), ("relation", ("r0", "r1"))):
        (folder / f"{kind}2id.txt").write_text(f"{len(names)}\n" + "".join(f"{n}\t{i}\n" for i, n in enumerate(names)))


def _read_graph(folder: Path) -> None:
    read_raw(folder, test=True)
    read_graph(folder)


def _texts(folder: Path) -> None:
    _graph(folder)
    (folder / "descriptions.tsv").write_text("".join(f"{name}\ta text of {name}\n" for name in NAMES))


def _features(folder: Path) -> None:
    matrix = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)
    save_features(folder / "sound.safetensors", Features(NAMES, matrix, {"encoder": "x"}))
    np.save(folder / "image.npy", matrix)
    (folder / "image.names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    (folder / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    np.savez(folder / "text.npz", matrix=matrix, names=np.array(NAMES))
    torch.save({"features": torch.from_numpy(matrix), "names": list(NAMES)}, folder / "text.pt")


def _read_features(folder: Path) -> None:
    for file in ("sound.safetensors", "image.npy"):
        load_modality(folder / file, NAMES)


def _convert(folder: Path) -> None:
    for file in ("image.npy", "text.npz", "text.pt"):
        convert_features(folder / file, folder / "out.safetensors", folder / "names.txt")


def _pictures(folder: Path) -> None:
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    (folder / "images").mkdir()
    for number, suffix in enumerate(("png", "jpg", "gif", "bmp", "webp")):
        picture.save(folder / "images" / f"e{number}.{suffix}")


def _open_pictures(folder: Path) -> None:
    for paths in find_images(folder / "images", NAMES).paths:
        for path in paths:
            open_picture(path, 8)


def _interactions(folder: Path) -> None:
    pairs = [(user, item) for user in range(6) for item in range(8) if (user + item) % 2]
    (folder / "a.tsv").write_text("user\titem\trating\tsplit\n" + "".join(f"u{u}\ti{i}\t{i}\t{i % 3}\n" for u, i in pairs))
    (folder / "b.inter").write_text(
        "user_id:token\titem_id:token\trating:float\n" + "".join(f"u{u}\ti{i}\t3\n" for u, i in pairs)
    )
    np.save(folder / "c.npy", np.array(pairs))
    users, items = np.array(pairs).T
    np.savez(folder / "d.npz", users=users, items=items)
    parts = {"indptr": np.arange(7) * 4, "indices": items, "data": np.ones(len(pairs)), "shape": np.array([6, 8])}
    np.savez(folder / "e.npz", format=np.array(b"csr"), **parts)


def _read_interactions(folder: Path) -> None:
    for file in ("a.tsv", "b.inter", "c.npy", "d.npz", "e.npz"):
        read_raw_interactions(folder / file, min_rating=1.0 if file in ("a.tsv", "b.inter") else None)


RANGES = (
    "train.lr: {low: 1e-4, high: 1e-1, log: true}\nmodel:\n  dim: {choices: [8, 16]}\nmodel.fusion_rank: {low: 2, high: 9}\n"
)


def _yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(
        "data: {path: x}\nmodel: {dim: 16, modalities: [text]}\ntrain:\n  lr: 0.01\n  seed: 3\n"
    )
    (folder / "space.yaml").write_text(RANGES)


def _values(folder: Path) -> None:
    (folder / "set.txt").write_text("\n".join(SETTINGS))


def _set(folder: Path) -> None:
    file = folder / "set.txt"
    text = file.read_bytes() if file.is_file() else b"train.lr="
    for assignment in text.decode("utf-8", "surrogateescape").split("\n"):
        Config().updated(parse_overrides([assignment]))


def _link(folder: Path, seed: int = 0) -> None:
    _texts(folder)
    (folder / "modalities").mkdir()
    matrix = np.arange(6 * 2, dtype=np.float32).reshape(6, 2)
    save_features(folder / "modalities" / "sound.safetensors", Features(NAMES[:6], matrix))
    config = Config().updated({"model.dim": 8, "model.relation_dim": 4, "data.path": str(folder), "train.seed": seed})
    data = prepare(config.data)
    decision = {"kept": "common", "held_back_mrr": {"common": 0.1}, "weights": {"common": [[0.2, 0.2, 0.2, 0.4]]}}
    metrics = {"validation": {"mrr": 0.5}, "decision": decision, "fingerprint": "a"}
    save_checkpoint(folder / "best", build_model(config, data), config, data.graph, metrics)


def _recommender(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "modalities").mkdir()
    pairs = [f"u{user}\ti{item}\n" for user in range(6) for item in range(8) if (user + item) % 2]
    (folder / "data" / "interactions.tsv").write_text("".join(pairs))
    matrix = np.arange(8 * 2, dtype=np.float32).reshape(8, 2)
    save_features(folder / "data" / "modalities" / "sound.safetensors", Features(tuple(f"i{i}" for i in range(8)), matrix))
    values = {"data.path": str(folder / "data"), "model.widths": [4, 2], "model.id_width": 2, "model.meta_hidden": 2}
    config = RecommendConfig().updated(values)
    data = prepare_recommend(config.data)
    save_recommender(folder / "best", build_recommender(config, data), config, data.interactions, {"validation": {"mrr": 0.5}})


def _ensemble(folder: Path) -> None:
    for seed in (0, 1):
        (folder / str(seed)).mkdir()
        _link(folder / str(seed), seed)
    save_ensemble(folder / "pool", [folder / "0" / "best", folder / "1" / "best"], [2, 1], {})


def _study(folder: Path) -> None:
    values: dict[str, Any] = {
        "tied": {"data": "d"},
        "points": [],
        "known": [],
        "note": "",
        "settings": {"study": "s", "trials": 2},
    }
    with Journal(folder / "s") as journal:
        journal.append("study", name="s", **values)
        journal.append("session", trials=2, budget=None, pid=1, extend=None, extends=False)
        for number in range(2):
            journal.ask(f"trial-{number:03d}", {"train.lr": 0.01})
            journal.report(f"trial-{number:03d}", {"epoch": 1, "mrr": 0.2, "best_mrr": 0.2, "time_total_s": 1.0})
        journal.tell("trial-000", {"epoch": 2, "mrr": 0.3, "best_mrr": 0.3, "time_total_s": 2.0})
    record = TrialRecord(0, "trial-000", TrialState.COMPLETED, {"train.lr": 0.01}, 0.3, 2, 2, 2.0, curve=((1, 0.2), (2, 0.3)))
    (folder / "s" / "trials.json").write_text(json.dumps([record.to_json()]))
    summary = {"study": "s", "checkpoint": "s/best", "trials": {"completed": 1}, "seeds": [0], "test": {"mrr": {"mean": 0.1}}}
    (folder / "s" / "summary.json").write_text(json.dumps(summary))
    (folder / "s" / "leaderboard.csv").write_text("state,best_validation_mrr,train.lr\ncompleted,0.3,0.01\n")


def _read_study(folder: Path) -> None:
    study, space = folder / "s", SearchSpace.from_values({"train.lr": {"low": 1e-4, "high": 1e-1}}, Config(), ("structure",))
    Journal(study).close()
    load_records(study)
    StudyFolder(study).summary()
    read_study(study / "best")
    search_config({"study": "s", "storage": str(folder), "resume": True})
    warm_start(study, space, {"data": "d"})
    warm_start(study / "leaderboard.csv", space, {"data": "d"})


def _questions(folder: Path) -> None:
    (folder / "questions.tsv").write_text("".join(f"{head}\t{relation}\t?\n" for head, relation, _ in LINES))
    asked = {"questions": [{"head": "e1", "relation": "r0", "tail": None}], "k": 3, "known": "drop"}
    (folder / "request.json").write_text(json.dumps(asked))


def _ask(folder: Path) -> None:
    body = folder / "request.json"
    read_request(body.read_bytes() if body.is_file() else b"", Limits())
    read_questions(folder / "questions.tsv", lambda question: None)


SPLITS = ("train", "valid", "test")
CHECKPOINT = ("best/config.json", "best/vocabulary.json", "best/model.safetensors")
KINDS = (
    Kind("graph, names", _graph, tuple(f"{split}.tsv" for split in SPLITS), _read_graph, 3),
    Kind(
        "graph, N-Triples",
        lambda folder: _graph(folder, "nt", "<{}> <{}> <{}> ."),
        tuple(f"{split}.nt" for split in SPLITS),
        _read_graph,
        3,
    ),
    Kind("graph, OpenKE", _openke, tuple(f"{name}2id.txt" for name in (*SPLITS, "entity", "relation")), _read_graph, 2),
    Kind(
        "graph, packed",
        lambda folder: _graph(folder, "tsv.gz", pack=gzip.compress),
        ("train.tsv.gz", "valid.tsv.gz"),
        _read_graph,
    ),
    Kind(
        "descriptions",
        _texts,
        ("descriptions.tsv",),
        lambda folder: (EntityFiles(folder).texts, EntityFiles(folder).descriptions),
    ),
    Kind("features", _features, ("sound.safetensors", "image.npy", "image.names.txt"), _read_features, 2),
    Kind("features to convert", _features, ("image.npy", "text.npz", "text.pt", "names.txt"), _convert, 2),
    Kind("pictures", _pictures, ("e0.png", "e1.jpg", "e2.gif", "e3.bmp", "e4.webp"), _open_pictures),
    Kind("interactions", _interactions, ("a.tsv", "b.inter", "c.npy", "d.npz", "e.npz"), _read_interactions, 3),
    Kind("configurations", _yaml, ("config.yaml",), lambda folder: Config.load(folder / "config.yaml")),
    Kind(
        "search spaces",
        _yaml,
        ("space.yaml",),
        lambda folder: SearchSpace.load(folder / "space.yaml", Config(), ("structure",)),
    ),
    Kind("--set", _values, ("set.txt",), _set),
    Kind("checkpoints", _link, (*CHECKPOINT, "best/facts.safetensors"), lambda folder: load_checkpoint(folder / "best"), 3),
    Kind(
        "recommenders",
        _recommender,
        (*CHECKPOINT, "best/interactions.safetensors"),
        lambda folder: load_recommender(folder / "best"),
        3,
    ),
    Kind(
        "ensembles",
        _ensemble,
        ("pool/ensemble.json", "pool/members/1/config.json", "pool/members/2/vocabulary.json"),
        lambda folder: load_ensemble(folder / "pool"),
    ),
    Kind(
        "studies",
        _study,
        tuple(f"s/{name}" for name in ("trials.json", "summary.json", "journal.jsonl", "leaderboard.csv")),
        _read_study,
        3,
    ),
    Kind("questions", _questions, ("questions.tsv", "request.json"), _ask),
)


def copied(kind: Kind, whole: Path, folder: Path) -> Path:
    """A fresh copy of the whole files of a kind."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(whole, folder))
