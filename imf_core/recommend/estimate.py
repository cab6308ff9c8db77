"""The memory that a training process of the recommender will need, estimated before it starts."""

from __future__ import annotations

from itertools import pairwise

from imf_core.recommend.config import RecommendConfig
from imf_core.recommend.data.prepare import RecommendData
from imf_core.runtime import MemoryBudget
from imf_core.train.estimate import FLOAT, PROCESS, MemoryEstimate


def estimate_recommender(config: RecommendConfig, data: RecommendData) -> MemoryEstimate:
    """Estimate the peak memory of one worker.

    Args:
        config: of its model and training.
        data: for its sizes.
    """
    model, train, found = config.model, config.train, data.interactions
    features = sum(modality.width for modality in data.select(model.modalities)) if model.fusion != "id" else 0
    users, items, width = found.num_users, found.num_items, model.width
    layers = list(pairwise((features, *model.widths))) if features else []
    dynamic = {"meta": 1 + model.meta_dim}.get(model.fusion, 1)
    weights = sum(into * out * dynamic for into, out in layers) + features * model.meta_hidden
    if model.fusion == "meta_cp":
        weights += sum((into + out + model.meta_dim) * model.cp_rank for into, out in layers)
    weights += (users + items) * width + 6 * width**2
    hidden = items * (3 * sum(out for _, out in layers) + 2 * features)  # values and gradients of the stack
    vectors = (users + items) * width * (10 if model.encoder == "gcn" else 4)
    pairs = min(train.batch_size, len(found.train)) * (2 + train.num_negatives) * width * 3
    scores = min(MemoryBudget.of(train.memory_budget_mb).size // FLOAT, 2 * users * items)
    return MemoryEstimate({
        "process": PROCESS,
        "weights and optimizer": FLOAT * 5 * weights,  # value, gradient, two moments of Adam, best copy
        "features": FLOAT * items * features,
        "items": FLOAT * hidden,
        "vectors": FLOAT * vectors,
        "scores": FLOAT * max(scores, pairs),
        "interactions": 8 * 8 * len(found.train),
    })
