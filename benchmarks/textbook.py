"""The yardstick: the published step and the published ranking loop, written plainly, on the parameters of our own `Imf`.

Nothing is wrong here and nothing is clever, as in a textbook: each query gets its own relation matrix `(B, d, d)`, labels are
dense, autograd does the rest; ranking sorts all entities for one query after the other in Python. Since the parameters are
those of an `Imf`, equal numbers can be asked for, and every ratio is one of the same work.

Shapes: `B` queries, `N` entities, `d` width, `r` relation width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imf_core.config import FUSED
from imf_core.data.graph.graph import KnownAnswers
from imf_core.model.fusion.low_rank import TuckerFusion
from imf_core.model.imf import Imf
from imf_core.model.losses.target import Positives
from imf_core.model.modality_table import ModalityTable
from imf_core.model.scoring import Contextual


def probabilities(model: Imf, heads: Tensor, relations: Tensor) -> list[Tensor]:
    """M tensors (B, N): sigmoid scores of each branch, as the published code computes them in every step."""
    entities, tables = {"structure": model.structure}, {}
    for name, item in model.features.items():
        assert isinstance(item, ModalityTable)
        entities[name] = item()
    for view in entities:
        tables[view] = model.relations[view]
    if model.modality_names:
        entities[FUSED] = _fuse(model.fuse_entities, list(entities.values()))
        tables[FUSED] = _fuse(model.fuse_relations, list(tables.values()))
    return [_branch(model, branch, entities[branch], tables[branch], heads, relations) for branch in model.branches]


def loss(model: Imf, heads: Tensor, relations: Tensor, positives: Positives, smoothing: float) -> Tensor:
    """Sum of the branches' binary cross entropies on dense, smoothed labels; a scalar in nats."""
    labels = model.structure.new_zeros(len(heads), model.num_entities)
    labels[positives.rows, positives.tails] = 1.0
    labels = (1 - smoothing) * labels + 1.0 / model.num_entities
    parts = [functional.binary_cross_entropy(part, labels) for part in probabilities(model, heads, relations)]
    return torch.stack(parts).sum()


@torch.no_grad()
def rank(
    model: Imf, heads: np.ndarray, relations: np.ndarray, targets: np.ndarray, known: KnownAnswers, batch: int = 256
) -> np.ndarray:
    """(T,) filtered ranks, the published way: known answers get the probability 0, then a full sort, query by query."""
    model.eval()
    ranks = []
    for low in range(0, len(heads), batch):
        place = slice(low, low + batch)
        parts = probabilities(model, torch.from_numpy(heads[place]), torch.from_numpy(relations[place]))
        predictions = torch.stack(parts).mean(dim=0)
        for row, target in enumerate(targets[place]):
            _, others = known.lookup(heads[place][row : row + 1], relations[place][row : row + 1])
            own = predictions[row, target].item()
            predictions[row, torch.from_numpy(others)] = 0.0
            predictions[row, target] = own
        _, order = torch.sort(predictions, dim=1, descending=True)
        sorted_ids = order.numpy()
        for row, target in enumerate(targets[place]):
            ranks.append(int(np.where(sorted_ids[row] == target)[0][0]) + 1)
    return np.array(ranks, dtype=np.float64)


def _fuse(fusion: TuckerFusion, views: list[Tensor]) -> Tensor:
    """Sum over the ranks of the product over the views, one layer at a time."""
    total = torch.zeros(())
    for rank_ in range(fusion.rank):
        rows = slice(rank_ * fusion.width, (rank_ + 1) * fusion.width)
        product = torch.ones(())
        for view, layer in zip(views, fusion.factors, strict=True):
            assert isinstance(layer, torch.nn.Linear)
            dropped = functional.dropout(view, fusion.drop.p, fusion.training)
            product = product * torch.relu(functional.linear(dropped, layer.weight[rows], layer.bias[rows]))
        total = total + product
    return total


def _branch(model: Imf, branch: str, entities: Tensor, table: Tensor, heads: Tensor, relations: Tensor) -> Tensor:
    scorer = model.scorers[branch]
    assert isinstance(scorer, Contextual)
    head = functional.dropout(scorer.norm_head(entities[heads]), scorer.drop_head.p, scorer.training)
    matrices = (table[relations] @ scorer.core.view(scorer.relation_width, -1)).view(-1, scorer.width, scorer.width)
    matrices = functional.dropout(matrices, scorer.drop_relation.p, scorer.training)
    context = torch.bmm(head[:, None, :], matrices)[:, 0]
    context = functional.dropout(scorer.norm_context(context), scorer.drop_context.p, scorer.training)
    return torch.sigmoid(context @ entities.T)
