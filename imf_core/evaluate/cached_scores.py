"""The branch scores of a trained trial on validation, in a small file: its decision weights can be tuned again on them.

A trial that ends by itself leaves `decision.safetensors`: for each validation query (at most 2,000) the values of every branch
for the answer and for the wrong answers that can outrank it under some weights, see `imf_core.evaluate.calibrate`.

Shapes: `M` branches, `R` relations (2R with inverses).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.errors import CheckpointError
from imf_core.evaluate.calibrate import CachedScores, cache_scores, crosswise_logits
from imf_core.files.atomic import atomic_file
from imf_core.model.imf import Imf
from imf_core.runtime import MemoryBudget

SCORES_FILE = "decision.safetensors"


@dataclass(frozen=True)
class DecisionCache:
    """Cached scores and the decision logits of the trial.

    Args:
        scores: values of the branches.
        branches: names of the M branches.
        crosswise: for fold 0 and 1 the trial's logits, (1, M) or (2R, M); if they are fitted, fitted to the other fold.
        final: (1, M) or (2R, M), its logits, fitted to both folds.
    """

    scores: CachedScores
    branches: tuple[str, ...]
    crosswise: tuple[Tensor, Tensor]
    final: Tensor


def cache_decision(model: Imf, graph: KnowledgeGraph, memory: MemoryBudget) -> DecisionCache:
    """Score the validation triples with a trained model.

    Args:
        model: of several branches; left in evaluation mode.
        graph: its clean validation triples are scored; other known answers do not compete.
        memory: for scores.
    """
    scores = memory.within(lambda budget: cache_scores(model, graph, graph.clean_valid, graph.known(), budget))
    decision = model.decision
    final = (decision.constant.log()[None] if decision.logits is None else decision.logits).cpu()
    if decision.logits is None:
        return DecisionCache(scores, model.branches, (final, final), final)
    return DecisionCache(scores, model.branches, crosswise_logits(scores, model.loss_kind, len(final)), final)


def save_cache(cache: DecisionCache, folder: Path) -> None:
    """Write `decision.safetensors` into a trial's folder, atomically."""
    scores = cache.scores
    tensors = {
        "values": scores.values, "usable": scores.usable.bool(), "valid": scores.valid, "relations": scores.relations,
        "fold": scores.fold, "crosswise.0": cache.crosswise[0], "crosswise.1": cache.crosswise[1], "final": cache.final,
    }
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    with atomic_file(folder / SCORES_FILE) as scratch:
        save_file(contiguous, scratch, {"branches": json.dumps(cache.branches)})


def load_cache(folder: Path) -> DecisionCache:
    """Read the `decision.safetensors` of a trial.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    file = folder / SCORES_FILE
    try:
        with safe_open(file, "pt") as stored:
            part = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
            branches = tuple(json.loads(stored.metadata()["branches"]))
        scores = CachedScores(
            part["values"], part["usable"].to(part["values"].dtype), part["valid"], part["relations"], part["fold"]
        )
        return DecisionCache(scores, branches, (part["crosswise.0"], part["crosswise.1"]), part["final"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        remedy = "only trials that ended by themselves have one, and only models of several branches"
        raise CheckpointError(f"{file} cannot be read: {error}", remedy=remedy, file=str(file)) from error
