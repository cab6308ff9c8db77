"""Modality-sequential training: modalities are added one after another to a trained model, and what does not help is left out.

CREMA (arXiv 2402.05889) trains the modules of one modality after the other and lets a modality leave early that no longer
learns; here validation decides, and the earlier modules go on learning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from imf_core.config import Config
from imf_core.errors import ConfigError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.model.imf import Imf
from imf_core.prepare.link_data import LinkData
from imf_core.train.fit import build_model
from imf_core.train.loop import FitResult
from imf_core.train.progress import EpochReport

_NEW_LOGIT = -3.0  # of a new branch against the mean of the others: about a twentieth of the decision until it is fitted

OnEpoch = Callable[[EpochReport], None]
TrainOne = Callable[[Imf, Config, OnEpoch], FitResult[RankingMetrics]]


@dataclass(frozen=True)
class Addition:
    """What became of a modality that was added.

    Args:
        modality: its name.
        before, after: best validation MRR without and with it, 0..1.
        epochs: trained with it.
        kept: whether it stays.
    """

    modality: str
    before: float
    after: float
    epochs: int
    kept: bool

    def describe(self) -> str:
        """One line."""
        verdict = "kept" if self.kept else "left out"
        return (
            f"{self.modality}: validation MRR {self.before:.4f} without, {self.after:.4f} with it after {self.epochs} epochs; "
            f"{verdict}"
        )


@dataclass(frozen=True)
class Extended:
    """A model after its additions.

    Args:
        model: with the modalities that helped.
        config: its settings.
        result: of the last training that was kept; None: no addition was.
        additions: one for each modality, in their order.
    """

    model: Imf
    config: Config
    result: FitResult[RankingMetrics] | None
    additions: tuple[Addition, ...]


class _NoHelp(Exception):
    """Ends the training of a modality that does not help."""


def add_modalities(
    model: Imf, config: Config, data: LinkData, order: Sequence[str], mrr: float, train_one: TrainOne,
    say: Callable[[Addition], None] = lambda addition: None,
) -> Extended:
    """Add modalities to a trained model, one after another.

    The model of one modality more starts from all weights of the one before and is trained on. Where no evaluation of the first
    `train.patience` is better than without the modality, its training ends and it is left out.

    Args:
        model: trained, of `data`'s graph.
        config: of the model.
        data: has all modalities of `order`.
        order: names, none of them in the model.
        mrr: validation MRR of the model.
        train_one: trains a model with its settings, reporting to the function given.
        say: hears of each addition.

    Raises:
        ConfigError: a modality is in the model, or the fusion operator cannot take one more.
        DataError: the data has no such modality.
    """
    if twice := [name for name in order if name in model.all_modalities or list(order).count(name) > 1]:
        raise ConfigError(
            f"the modality {twice[0]} is there already", remedy="name those that are to be added, each once", value=twice[0],
            key="train.modality_order",
        )
    data.select(tuple(order))  # before the work
    result, additions, patience = None, [], config.train.patience
    for name in order:
        larger_config = config.updated({"model.modalities": [*model.all_modalities, name]})
        larger = build_model(larger_config, data)
        take_weights(larger, model)
        reports: list[EpochReport] = []

        def watch(report: EpochReport, seen: list[EpochReport] = reports, least: float = mrr) -> None:
            seen.append(report)
            if len(seen) >= patience and report.best_mrr <= least:
                raise _NoHelp

        try:
            found = train_one(larger, larger_config, watch)
        except _NoHelp:
            found = None
        best = found.best_mrr if found is not None else reports[-1].best_mrr
        epochs = found.epochs if found is not None else reports[-1].epoch
        kept = found is not None and best > mrr
        additions.append(Addition(name, mrr, best, epochs, kept))
        say(additions[-1])
        if kept:
            model, config, result, mrr = larger, larger_config, found, best
    return Extended(model, config, result, tuple(additions))


@torch.no_grad()
def take_weights(larger: Imf, model: Imf) -> None:
    """Give a newly made model all weights of one with fewer modalities of the same graph.

    Args:
        larger: changed in place; what only it has stays as initialised.
        model: its views come first among those of `larger`, in the same order.

    Raises:
        ConfigError: the fusion operator's weights depend on the number of views.
    """
    own = larger.state_dict()
    for name, tensor in model.state_dict().items():
        if name in ("decision.logits", "decision.constant"):
            continue
        if name not in own or own[name].shape != tensor.shape:
            raise ConfigError(
                f"model.fusion={model.config.fusion} cannot take a modality later: its weights ({name}) depend on how many "
                "there are", remedy="use modular (tucker and multiscale can too)", key="model.fusion",
                value=model.config.fusion,
            )
        own[name].copy_(tensor)
    if larger.decision.logits is not None:
        logits = larger.decision.logits
        old = model.decision.logits
        places = [larger.branches.index(branch) for branch in model.branches]
        known = torch.zeros(len(logits), len(places)) if old is None else old.to(logits)
        logits.copy_(known.mean(dim=1, keepdim=True) + _NEW_LOGIT)
        logits[:, places] = known.to(logits)
