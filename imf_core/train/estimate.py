"""The memory that a training process will need, estimated before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from imf_core.config import STRUCTURE, Config
from imf_core.model.branches import branches_of, plain_views, with_widths
from imf_core.model.fusion.base import FusionSize
from imf_core.model.fusion.build import fusion_size
from imf_core.model.losses.autograd import bytes_per_query
from imf_core.model.losses.own import OwnLoss
from imf_core.model.scoring import build_scorer, relation_width, scorer_class
from imf_core.prepare.link_data import LinkData
from imf_core.runtime import MemoryBudget, free_memory

_PROCESS = 450 * 2**20  # a process that has imported torch and multiplied some matrices
_WORKING = 64 * 2**20  # tiles, batches, freed memory that the C library keeps
PROCESS = _PROCESS + _WORKING
FLOAT = 4  # bytes of an fp32 number


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory of one worker.

    Args:
        parts: bytes by what needs them, for people to read.
    """

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of the parts, bytes."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line: the total and its parts in GiB, the largest first."""
        parts = sorted(self.parts.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts if size)
        return f"about {self.total / 2**30:.1f} GiB for each worker ({listed})"

    def shortage(self, processes: int = 1) -> str | None:
        """A warning if `processes` workers on this machine need more than is free; None if they fit or it is not known."""
        free = free_memory()
        if free is None or processes * self.total <= free:
            return None
        return (
            f"{processes} worker{'s' if processes > 1 else ''} of about {self.total / 2**30:.1f} GiB each, but "
            f"{free / 2**30:.1f} GiB are free: lower train.batch_size, model.dim or the trials at a time, or train with "
            "train.num_negatives"
        )


def estimate_memory(
    config: Config, num_entities: int, num_relations: int, feature_widths: Mapping[str, int], num_triples: int = 0,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> MemoryEstimate:
    """Estimate the peak memory of one worker that trains and evaluates; with a GPU, of GPU and host together.

    Args:
        config: of its model and training.
        num_entities: N.
        num_relations: R, without inverses.
        feature_widths: f of each modality that the model uses, by name.
        num_triples: of training and validation.
        device: its free memory determines `train.memory_budget_mb` if that is not set.
    """
    model, train = config.model, config.train
    width, batch = model.dim, train.batch_size
    narrow = relation_width(model)
    plain = plain_views(model, list(feature_widths))
    views = 1 + len(plain)
    each = with_widths(branches_of(model, list(feature_widths)), feature_widths)
    widths = [branch.settings.dim for branch in each]
    cores = [branch.settings for branch in each if scorer_class(branch.settings).builds_matrices]
    branches = len(each)
    sampled = train.samples(num_entities)
    budget = MemoryBudget.of(train.memory_budget_mb, device).size

    trained_tables = num_entities * width * (views if model.finetune_features else 1)
    others = 2 * num_relations * narrow * views
    for head in [branch for branch in each if branch.further]:
        others += 2 * num_relations * relation_width(head.settings)
        if head.compares:
            continue
        if head.view == STRUCTURE or model.finetune_features:
            trained_tables += num_entities * head.settings.dim
        else:
            others += feature_widths[head.view] * head.settings.dim
    with torch.device("meta"):  # counted, not allocated
        others += sum(part.numel() for branch in each for part in build_scorer(branch.settings).parameters())
    fused = views > 1 and model.fusion != "none"
    fusion = fusion_size(model, width, views) if fused else FusionSize(0, 0)  # of the entities; relations are few
    others += fusion.parameters + fusion_size(model, narrow, views).parameters if fused else 0
    others += 0 if model.finetune_features else sum(feature_widths[name] * width for name in plain)
    # Value, two moments of Adam, best copy, moving average. The gradients of large parameters never exist at the same time.
    weights = (5 if train.average or train.average_share else 4) * (trained_tables + others)
    weights += others if sampled else max(num_entities * max(widths), others)

    compared = {branch.view for branch in each if branch.compares}  # kept beside trained tables too
    held = compared if model.finetune_features else feature_widths
    features = num_entities * sum(feature_widths[name] for name in held)
    if sampled:
        touched = min(num_entities, train.num_negatives + 3 * batch) if train.num_negatives else num_entities
        # Rows of each branch with gradients, intermediate results of the fusion, the rows' gradients sparse and dense.
        rows = touched * (4 * sum(widths) + 2 * fusion.per_node)
        negatives = train.num_negatives or 0
        scores = 3 * batch * (negatives + min(negatives, batch))
        tables = num_entities * sum(widths[1:])  # of the evaluation
    else:
        rows = 0
        # Each branch's table, its gradient and the parts of it from losses, heads and constraint; results inside the fusion.
        tables = num_entities * (4 * sum(widths) + fusion.per_node if branches > 1 else 3 * width)
        scores = min(budget // FLOAT, batch * num_entities * (branches + 1)) if train.loss == "ce" else 0
        products = all(scorer_class(branch.settings).is_product for branch in each)
        if not products or OwnLoss.of(train) is not None:
            scores = min(budget, batch * bytes_per_query(num_entities, branches)) // FLOAT
        elif device.type == "cuda":  # the static step: scores of all branches with their gradients, and stacked copies
            scores = min(budget // FLOAT, batch * num_entities * (2 * branches + 4))
            tables += 2 * num_entities * sum(widths)
            weights += others
    matrices = min(2 * num_relations, batch) * sum(own.dim**2 for own in cores)
    # Ranking and calibration stay within the budget; their tables have no gradients.
    evaluated = min(budget // FLOAT, 1024 * num_entities * 2)
    temporary = {
        "features": FLOAT * features,
        "entity tables": FLOAT * (tables + rows),
        "scores": FLOAT * max(scores, evaluated),
        "relation matrices": FLOAT * min(matrices, 2**26),
    }
    return MemoryEstimate({
        "process": PROCESS,
        "weights and optimizer": FLOAT * weights,
        **temporary,
        "triples": 8 * num_triples * 3 * 3,  # the graph, the queries of both directions, the filter
        "between them": sum(temporary.values()) // 10,  # gaps that the allocator cannot use
    })


def estimate_of(config: Config, data: LinkData) -> MemoryEstimate:
    """`estimate_memory` of a configuration on its data."""
    graph = data.graph
    widths = {modality.name: modality.width for modality in data.select(config.model.modalities)}
    return estimate_memory(config, graph.num_entities, graph.num_relations, widths, len(graph.train) + len(graph.valid))
