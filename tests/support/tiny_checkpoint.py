"""A graph of a few entities and checkpoints of untrained models for it, made in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imf_core.checkpoint.checkpoint import save_checkpoint
from imf_core.config import Config
from imf_core.data.features.modality import Modality
from imf_core.ensemble.ensemble import save_ensemble
from imf_core.evaluate.ranking import evaluate
from imf_core.prepare.link_data import prepare
from imf_core.train.fit import build_model

COUNT = 24
SETTINGS = {"model.dim": 16, "model.relation_dim": 8, "train.batch_size": 16}


def tiny_graph(folder: Path, first: Sequence[bytes] = (), shuffled: int = 0) -> Path:
    """Entities `e0`.. (the first ones under other names), relations `next` and `[rest]`, texts of 20, sound of every other.

    Args:
        folder: made.
        first: names of the first entities, instead of `e0`, `e1`, ...
        shuffled: seed of which triple stands in which split.
    """
    folder.mkdir(parents=True)
    names = [*first, *(f"e{i}".encode() for i in range(len(first), COUNT))]
    lines = [names[i] + b"\tnext\t" + names[(i + 1) % COUNT] for i in range(COUNT)]
    lines += [names[i] + b"\t[rest]\t" + names[i % 4] for i in range(COUNT)]
    order = np.random.default_rng(shuffled).permutation(len(lines))
    for split, chosen in (("train", order[:32]), ("valid", order[32:40]), ("test", order[40:])):
        (folder / f"{split}.tsv").write_bytes(b"\n".join(lines[i] for i in chosen) + b"\n")
    (folder / "entities.txt").write_bytes(b"\n".join(names) + b"\n")
    (folder / "relations.txt").write_bytes(b"next\n[rest]\n")
    (folder / "descriptions.tsv").write_bytes(b"".join(name + b"\tthe text of " + name + b"\n" for name in names[:20]))
    (folder / "modalities").mkdir()
    features = np.random.default_rng(1).normal(size=(COUNT, 3)).astype(np.float32)
    texts = [name.decode("utf-8", "surrogateescape") for name in names]
    Modality("sound", features, np.arange(COUNT) % 2 == 0).save(folder / "modalities" / "sound.safetensors", texts)
    return folder


def tiny_checkpoint(graph: Path, out: Path, *, seed: int = 0, metrics: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A model of that graph as its seed initialises it, with its validation figures, or those given.

    Args:
        graph: from `tiny_graph`.
        out: the checkpoint.
        seed: other seeds are other models.
        metrics: what stands in the checkpoint instead.
        settings: `model__dim=12` for `model.dim`.
    """
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = Config().updated({**SETTINGS, "data.path": str(graph), "train.seed": seed, **given})
    data = prepare(config.data)
    model = build_model(config, data)
    if metrics is None:
        ranked = evaluate(model, data.graph, data.graph.valid, data.graph.known())
        metrics = {"validation": ranked.metrics.as_dict(), "best_epoch": 2, "fingerprint": data.graph.fingerprint}
    save_checkpoint(out, model, config, data.graph, metrics)
    return out


def tiny_pool(graph: Path, folder: Path) -> Path:
    """Checkpoints `ce` and `bce` of that graph, and the ensemble `pool` of both, in a folder; returns the folder."""
    for seed, loss in enumerate(("ce", "bce")):
        tiny_checkpoint(graph, folder / loss, seed=seed, train__loss=loss)
    save_ensemble(folder / "pool", [folder / "ce", folder / "bce"], [2, 1], {})
    return folder
