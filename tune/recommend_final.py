"""Finalising a recommender, where it differs from link prediction: the controls, the test metrics, the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imf_core.recommend.checkpoint import load_recommender, save_recommender
from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import RecommendData
from imf_core.recommend.fit import evaluate_recommender
from imf_core.recommend.topk import TopKMetrics
from imf_core.runtime import MemoryBudget
from tune.data_check import popular


def control(config: RecommendConfig, seed: int) -> tuple[str, RecommendConfig]:
    """What the winner is measured against: static fusion where its own is dynamic, else dynamic fusion.

    Returns:
        its name, and the winner's settings with the other fusion.
    """
    dynamic = config.model.fusion in ("meta", "meta_cp")
    fusion = "mlp" if dynamic else "meta"
    return "static fusion" if dynamic else "meta fusion", config.updated({"model.fusion": fusion, "train.seed": seed})


def without(config: RecommendConfig, used: Sequence[str], seed: int) -> dict[str, RecommendConfig]:
    """The same settings without each modality, where there are several and they are fused; by its name."""
    if len(used) < 2 or config.model.fusion == "id":
        return {}
    rest = {name: [other for other in used if other != name] for name in used}
    return {name: config.updated({"model.modalities": others, "train.seed": seed}) for name, others in rest.items()}


def test_metrics(
    data: RecommendData, checkpoints: Sequence[Path], megabytes: int | None
) -> tuple[list[TopKMetrics], TopKMetrics]:
    """Open the test split: metrics of each checkpoint, and of what most users have.

    Args:
        data: of the study; it knows where its test split is.
        checkpoints: folders.
        megabytes: `train.memory_budget_mb`.
    """
    found = data.interactions
    relevant, known = found.open_test(), (found.train, found.valid)
    memory = MemoryBudget.of(megabytes)
    models = (load_recommender(path).model for path in checkpoints)
    return [evaluate_recommender(model, found, relevant, known, memory) for model in models], popular(data, relevant, known)


def publish(source: Path, target: Path, test: Mapping[str, Any] | None) -> None:
    """Write the best checkpoint where the user finds it, with its test figures inside."""
    loaded = load_recommender(source)
    metrics = {**loaded.metrics, **({"test": dict(test)} if test is not None else {})}
    save_recommender(target, loaded.model, loaded.config, loaded.interactions, metrics)
