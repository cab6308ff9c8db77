"""Mutual information between what was fused and each view, and targets of each view's own, as an auxiliary loss.

Shapes: `B` entities that are compared, `P` known answers, `U` classes (relations of a batch), `d` width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


class Views:
    """The views of some entities, in float32 or better.

    Args:
        views: (B, d) by name.
        fused: (B, d).
        has: (B,) bool by name, which entities have the view.
    """

    def __init__(self, views: Mapping[str, Tensor], fused: Tensor, has: Mapping[str, Tensor]) -> None:
        self.views = {name: _at_least_float(view) for name, view in views.items()}
        self.fused, self.has = _at_least_float(fused), has


class SelfMi(nn.Module):
    """Self-supervised mutual-information terms (Self-MI, arXiv 2311.03785).

        mean_m InfoNCE(F_m z, e_m)            z: fused vector, e_m: view, F_m: a linear predictor from fused to view
        + mean_m CE(p_m, (label + p_z) / 2)   p: softmax over the classes of the distance to their centres

    The first term is contrastive predictive coding (van den Oord et al. 2018, arXiv 1807.03748): the fused vector must tell its
    own view from those of the other entities of the batch. The second gives each view a target of its own, made from distances
    to class centres: a class are the answers of a relation in the batch, the target is the relation of the fact, softened by
    where the fused vector of the answer stands between the centres.

    Carried over: both terms; left: sentiment as the label, encoders of sequences, and the momentum of the targets over epochs.

    Args:
        width: d.
        views: names of the views.
        temperature: of both terms, > 0.
    """

    def __init__(self, width: int, views: tuple[str, ...], temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.predictors = nn.ModuleDict({name: nn.Linear(width, width) for name in views})

    def forward(self, heads: Views, answers: Views, classes: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            heads: B distinct entities.
            answers: P known answers.
            classes: (P,) int64, the relation that each answer answers.

        Returns:
            Scalar in nats.
        """
        terms = [
            predictive_loss(predictor(heads.fused[has]), heads.views[name][has], self.temperature)
            for name, predictor in self.predictors.items()
            for has in [heads.has[name]] if int(has.sum()) > 1
        ]
        terms = [torch.stack(terms).mean()] if terms else []
        labels, place = classes.unique(return_inverse=True)
        if len(labels) > 1:
            with torch.no_grad():
                everyone = torch.ones(len(classes), dtype=torch.bool, device=classes.device)
                between, _ = class_logits(answers.fused, everyone, place, len(labels), self.temperature)
                target = (functional.one_hot(place, len(labels)) + between.softmax(dim=1)) / 2  # (P, U)
            own = [
                unimodal_loss(answers.views[name], answers.has[name], place, target, self.temperature)
                for name in self.predictors if answers.has[name].any()
            ]
            terms += [torch.stack(own).mean()] if own else []
        # Every predictor has a gradient in each step, as processes that train together expect.
        nothing = torch.stack([parameter.sum() for parameter in self.parameters()]).sum() * 0.0 + heads.fused.sum() * 0.0
        return torch.stack([nothing, *terms]).sum()


def predictive_loss(predicted: Tensor, views: Tensor, temperature: float) -> Tensor:
    """InfoNCE of (B, d) predictions against (B, d) views: cross entropy of the own view among all by cosine; nats."""
    similarity = functional.normalize(predicted, dim=1) @ functional.normalize(views, dim=1).T / temperature
    return functional.cross_entropy(similarity, torch.arange(len(similarity), device=similarity.device))


def class_logits(rows: Tensor, has: Tensor, place: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Minus the squared distance of each row to each class centre, relative to their mean.

    Args:
        rows: (P, d).
        has: (P,) bool, rows that count; a centre is the mean of those of its class.
        place: (P,) int64 class of each row, below U.
        count: U.
        temperature: > 0.

    Returns:
        (P, U) logits, and (U,) bool: classes that have a centre.
    """
    weight = has.to(rows.dtype)
    sizes = rows.new_zeros(count).index_add(0, place, weight)
    centres = rows.new_zeros(count, rows.shape[1]).index_add(0, place, rows * weight[:, None])
    centres = centres / sizes.clamp_min(1)[:, None]
    distances = (
        rows.square().sum(dim=1, keepdim=True) - 2 * rows @ centres.T + centres.square().sum(dim=1)
    ).clamp_min(0)
    there = sizes > 0
    count_of = weight.sum() * there.sum()  # distances of rows that count to centres that there are
    scale = (distances.detach() * weight[:, None] * there).sum() / count_of.clamp_min(1)
    return -distances / (temperature * scale.clamp_min(torch.finfo(rows.dtype).tiny)), there


def unimodal_loss(rows: Tensor, has: Tensor, place: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a view's own distances to the centres towards the target.

    Args:
        rows: (P, d) view of each answer.
        has: (P,) bool, answers that have it; at least one.
        place: (P,) int64 class of each answer.
        target: (P, U), rows sum to 1.
        temperature: > 0.

    Returns:
        Scalar in nats.
    """
    logits, there = class_logits(rows, has, place, target.shape[1], temperature)
    wanted = target * there
    wanted = wanted / wanted.sum(dim=1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
    logs = torch.log_softmax(logits.masked_fill(~there, torch.finfo(logits.dtype).min), dim=1)
    return -(torch.where(wanted > 0, wanted * logs, 0.0)[has].sum(dim=1)).mean()


def _at_least_float(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.bfloat16 else values
