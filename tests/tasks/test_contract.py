"""The contract of tasks (`imf_core.testing`) for link prediction, and for a task of another package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node_labels import LABELS

from imf_core.config import Config
from imf_core.config_base import Settings
from imf_core.parts import registry
from imf_core.tasks.registry import register
from imf_core.testing import TaskContract
from tests.support.small_search import write_graph


class TestLink(TaskContract):
    name = "link"

    def prepare(self, folder: Path) -> Settings:
        return Config().updated({
            "data.path": str(write_graph(folder / "graph")), "model.dim": 8, "model.relation_dim": 4, "train.max_epochs": 2,
        })

    def question(self, example: tuple[str, ...]) -> dict[str, Any]:
        return {"head": example[0], "relation": example[1], "tail": None}


class TestLabels(TaskContract):
    name = "labels"

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        with registry.scope():
            register(LABELS)
            yield

    def prepare(self, folder: Path) -> Settings:
        classes = [row % 4 for row in range(60)]
        splits = ["train"] * 40 + ["valid"] * 10 + ["test"] * 10
        each = enumerate(zip(classes, splits, strict=True))
        lines = (f"node {row}\tclass {label}\t{split}\n" for row, (label, split) in each)
        (folder / "labels.tsv").write_text("".join(lines))
        np.save(folder / "features.npy", np.eye(4, dtype=np.float32)[classes])
        return LABELS.config().updated({"data.path": str(folder)})

    def question(self, example: tuple[str, ...]) -> dict[str, Any]:
        return {"node": example[0]}
