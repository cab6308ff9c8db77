"""A third task, as another package would write it: node classification by a linear softmax classifier.

A folder holds `labels.tsv` (node<TAB>class<TAB>split) and `features.npy` (a row a line)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imf_core.config import DataConfig
from imf_core.config_base import Section, Settings, Tunable
from imf_core.data.audit.baseline import BaselineMetrics
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.tasks.protocols import Column, PlainAudit, StudyData, TestResult
from imf_core.tasks.task import Task
from imf_core.train.estimate import MemoryEstimate
from imf_core.train.loop import FitResult, Loop
from imf_core.train.optimizers import Optimizers


class TrainSection(Section):
    lr: Annotated[float, Tunable(low=1e-2, high=1.0, log=True)] = 0.1
    max_epochs: int = 8
    seed: int = 0


class LabelConfig(Settings):
    data: DataConfig = DataConfig(path="labels")
    model: Section = Section()
    train: TrainSection = TrainSection()


@dataclass(frozen=True)
class LabelData(StudyData):
    """N nodes of C classes: labels (N,) and features (N, f)."""

    nodes: tuple[str, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    labels: Tensor
    features: Tensor
    has_test = True

    @property
    def fingerprint(self) -> str:
        return f"{len(self.nodes)} nodes, {len(self.classes)} classes"

    def part(self, *splits: str) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([row for row, split in enumerate(self.splits) if split in splits])
        return self.features[rows], self.labels[rows]


class Classifier(nn.Linear):
    @property
    def num_parameters(self) -> int:
        return self.weight.numel() + self.bias.numel()

    def trained_state(self) -> dict[str, Tensor]:
        return self.state_dict()


@torch.no_grad()
def ranked(scores: Tensor, labels: Tensor) -> RankingMetrics:
    own = scores.gather(1, labels[:, None])  # of (n, C)
    return RankingMetrics.of((1 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2).double().numpy())


def most_frequent(data: LabelData, split: str) -> BaselineMetrics:
    labels, counts = data.part(split)[1], torch.bincount(data.part("train")[1], minlength=len(data.classes))
    return BaselineMetrics(len(labels), **ranked(counts.expand(len(labels), -1), labels).flat())


class LabelTask(Task[LabelConfig, LabelData, Classifier]):
    """Tell the class of a node by its features."""
    name, config, baseline_name, test_metrics = "labels", LabelConfig, "the most frequent classes", ("mrr", "hits_at_1")
    questions, answers = (Column("node", "string"),), (Column("node", "string"), Column("classes", "string"))

    def read(self, config: LabelConfig, *, strict: bool) -> tuple[LabelData, PlainAudit]:
        lines = [line.split("\t") for line in (Path(config.data.path) / "labels.tsv").read_text().splitlines()]
        nodes, names, splits = zip(*lines, strict=True)
        classes = tuple(sorted(set(names)))
        labels = torch.tensor([classes.index(name) for name in names])
        data = LabelData(nodes, classes, splits, labels, torch.from_numpy(np.load(Path(config.data.path) / "features.npy")))
        return data, PlainAudit(config.data.path, baseline={"valid": most_frequent(data, "valid")})

    def save(self, data: LabelData, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(zip(("features", "labels"), data.part("train", "valid"))), folder / "arrays.safetensors")
        splits = [split for split in data.splits if split != "test"]
        (folder / "facts.json").write_text(json.dumps({"classes": data.classes, "splits": splits, "nodes": []}))
        return data.fingerprint

    def load(self, folder: str) -> LabelData:
        return LabelData(**json.loads((Path(folder) / "facts.json").read_text()), **load_file(f"{folder}/arrays.safetensors"))

    def example(self, data: LabelData) -> tuple[str, ...]:
        return data.nodes[:1]

    def estimate(self, config: LabelConfig, data: LabelData, workers: int) -> MemoryEstimate:
        return MemoryEstimate({"features": data.features.nbytes})

    def build(self, config: LabelConfig, data: LabelData) -> Classifier:
        torch.manual_seed(config.train.seed)
        return Classifier(data.features.shape[1], len(data.classes))

    def fit(self, model, data, config, on_epoch=None, *, shard=None, saving=None, device=None) -> FitResult[Any]:
        (features, labels), (held_out, expected) = data.part("train"), data.part("valid")
        optimizers = Optimizers(model, "adam", config.train.lr, 0.0)

        def epoch(number: int) -> dict[str, float]:
            optimizers.zero_grad()
            loss = nn.functional.cross_entropy(model(features), labels)
            loss.backward()
            optimizers.step()
            return {"total": float(loss.detach())}

        loop = Loop(config.train.max_epochs, 5, 1, shard, on_epoch, saving)
        run = loop.begin(model, optimizers, RankingMetrics.unpack)
        loop.run(run, model, optimizers, epoch, 1, lambda: ranked(model(held_out), expected))
        return FitResult.of(run, ())

    def keep(self, folder: Path, model: Classifier, config: LabelConfig, data: LabelData, metrics: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"task": self.name, "classes": data.classes, "metrics": dict(metrics)}))

    def test(self, checkpoints: Mapping[int, Path], config: LabelConfig, data: LabelData, ranks_file: Path) -> TestResult:
        features, labels = data.part("test")
        runs = [ranked(self.open_predictor(path)(features), labels).flat() for path in checkpoints.values()]
        return TestResult(runs, runs, baseline=most_frequent(data, "test"))

    def open_predictor(self, checkpoint: Path | str) -> Classifier:
        weights = load_file(Path(checkpoint) / "model.safetensors")
        model = Classifier(*reversed(weights["weight"].shape))
        model.load_state_dict(weights)
        return model

    def answer(self, predictor: Classifier, questions: Sequence[Mapping[str, Any]], k: int, known: str = "drop") -> list[Any]:
        return [(row["node"], str(predictor.out_features)) for row in questions]


LABELS = LabelTask()
