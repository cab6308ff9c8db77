"""Test metrics of a winner: each seed under its own decision weights and under others, and all seeds as an ensemble.

The test split is read once and scored once for each seed: decisions differ only in how they weigh the branches' scores. A
model's own weights were chosen on validation before; the others are for comparison only, nothing is chosen by them.

Shapes: `T` test triples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from imf_core.checkpoint.checkpoint import Checkpoint, load_checkpoint
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers
from imf_core.errors import DataError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.pooled import evaluate_pooled
from imf_core.evaluate.ranking import Ranked, evaluate_decisions
from imf_core.evaluate.redecide import COMMON, RELATION, TRAINED, decisions_of
from imf_core.files.atomic import atomic_file
from imf_core.model.decision import Decision, alternatives
from imf_core.runtime import MemoryBudget

OWN, POOLED, POOL = "own", "seeds pooled", "pool of kept models"
RANKS_FILE = "test_ranks.safetensors"
KINDS = {TRAINED: "weights as trained", COMMON: "weights tuned again", RELATION: "weights tuned again for each relation"}
_SLICES = ("cold", "warm")
_MOST = 2 * 10**11  # scores, some minutes on two cores: other decisions and the ensemble are skipped if they need more


@dataclass(frozen=True)
class Tested:
    """Test metrics.

    Args:
        own: of each seed, with slices.
        decisions: flat metrics of each seed under other decision weights, by their name; empty for a single branch.
        pooled: flat metrics of the ensemble of all seeds; None for a single seed or where it would take too long.
    """

    own: Sequence[RankingMetrics]
    decisions: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    pooled: dict[str, float] | None = None


def rank_test(
    checkpoints: Mapping[int, Path], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget,
    ranks_file: Path | None = None, *, counted: np.ndarray | None = None, more: Mapping[str, Ranked] | None = None,
) -> Tested:
    """Rank the test triples with each seed's checkpoint.

    Args:
        checkpoints: folders by seed.
        graph: for slices.
        triples: (T, 3) int64, the test split.
        known: answers to filter out, of all three splits.
        memory: for scores.
        ranks_file: file to write the ranks to, for paired tests between studies; None: they are not kept.
        counted: (T,) bool, the triples that the metrics are of, from `counted_triples`; None: all.
        more: ranks of other models by their kind; they are kept in the file.
    """
    ranked = {
        seed: _ranked(load_checkpoint(path), graph, triples, known, memory, counted) for seed, path in checkpoints.items()
    }
    pooled = None
    if len(checkpoints) > 1 and _cost(graph, triples, len(checkpoints)) <= _MOST:  # only here are all models in memory at once
        models = [load_checkpoint(path).model for path in checkpoints.values()]
        pooled = evaluate_pooled(models, [1.0] * len(models), graph, triples, known, memory, counted=counted)
    if ranks_file is not None:
        ranks = {f"{name}/{seed}": one for seed, kinds in ranked.items() for name, one in kinds.items()}
        save_ranks(ranks_file, {**ranks, **({} if pooled is None else {POOLED: pooled}), **(more or {})}, graph, counted)
    shared = [name for name in next(iter(ranked.values())) if name != OWN and all(name in kinds for kinds in ranked.values())]
    return Tested(
        [kinds[OWN].metrics for kinds in ranked.values()],
        {name: [flat(kinds[name].metrics) for kinds in ranked.values()] for name in shared},
        None if pooled is None else flat(pooled.metrics),
    )


def flat(metrics: RankingMetrics) -> dict[str, float]:
    """`metrics.flat()` with the MRR of the cold and the warm slice, if they are not empty."""
    slices = {name: metrics.slices[name] for name in _SLICES if name in metrics.slices}
    return {**metrics.flat(), **{f"mrr_{name}": part.mrr for name, part in slices.items() if part.count}}


def save_ranks(file: Path, ranks: Mapping[str, Ranked], graph: KnowledgeGraph, counted: np.ndarray | None = None) -> None:
    """Write the ranks of the test triples: (2T,) float32 for each name, tails first. Halves are exact in it up to 8 million.

    Args:
        file: in an existing folder.
        ranks: by `KIND/SEED`, or by the kind alone.
        graph: of the test triples.
        counted: only these are written, see `rank_test`.
    """
    chosen = slice(None) if counted is None else np.tile(counted, 2)
    arrays = {name: one.ranks[chosen].astype(np.float32) for name, one in ranks.items()}
    with atomic_file(file) as scratch:
        save_file(arrays, scratch, metadata={"graph": graph.fingerprint})


def read_ranks(file: Path, kind: str = OWN) -> tuple[np.ndarray, str]:
    """Read ranks of the test triples for `compare_ranks`.

    Args:
        file: written by `save_ranks`.
        kind: `own`, `seeds pooled`, or a key of `Tested.decisions`.

    Returns:
        (2T,) float64, the harmonic mean over the seeds, and the fingerprint of the graph.

    Raises:
        DataError: the file cannot be read, or lacks that kind.
    """
    try:
        with safe_open(file, "numpy") as opened:
            fingerprint = (opened.metadata() or {}).get("graph", "")
        ranks = load_file(file)
    except (OSError, SafetensorError) as error:
        remedy = "name a study that this version has finished, with a test split"
        raise DataError.at(file, None, f"cannot read the ranks of the test triples: {error}", remedy=remedy) from error
    kinds = sorted({name.rpartition("/")[0] or name for name in ranks})
    chosen = [values for name, values in ranks.items() if (name.rpartition("/")[0] or name) == kind]
    if not chosen:
        raise DataError.at(file, None, "has no ranks of this kind", value=kind, remedy=f"choose one of: {', '.join(kinds)}")
    return 1.0 / np.mean([1.0 / values.astype(np.float64) for values in chosen], axis=0), fingerprint


def _decisions(loaded: Checkpoint) -> dict[str, Decision]:
    """A model's own decision, the other kinds that were fitted to its branches, and its `alternatives`."""
    current = loaded.model.decision
    fitted = decisions_of(loaded.metrics.get("decision") or {}, current.branches)
    others = {KINDS[kind]: decision.to(current.constant.device) for kind, decision in fitted.items()}
    return {OWN: current, **others, **alternatives(current)}


def _ranked(
    loaded: Checkpoint, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget,
    counted: np.ndarray | None,
) -> dict[str, Ranked]:
    """Ranks under all decisions, or under the model's own if the others would take too long."""
    decisions = _decisions(loaded)
    if _cost(graph, triples, len(decisions)) > _MOST:
        decisions = {OWN: decisions[OWN]}
    return evaluate_decisions(loaded.model, graph, triples, known, decisions, counted=counted, memory=memory)


def _cost(graph: KnowledgeGraph, triples: np.ndarray, times: int) -> int:
    """Number of scores that are ranked if the triples are ranked so many times."""
    return 2 * len(triples) * graph.num_entities * times
