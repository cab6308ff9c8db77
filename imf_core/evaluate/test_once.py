"""What the test split says of a winner: each seed under the weights it decides by and under others, and the seeds together.

All of it comes from one reading of the split and one pass over it a seed: decisions differ only in how they weigh the branches'
scores. What a model decides by was chosen on validation before; the others stand beside it and choose nothing.
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
from imf_core.model.decision import Decision, alternatives
from imf_core.runtime import MemoryBudget

OWN, POOLED = "own", "seeds pooled"
RANKS_FILE = "test_ranks.safetensors"
KINDS = {TRAINED: "weights as trained", COMMON: "weights tuned again", RELATION: "weights tuned again for each relation"}
_SLICES = ("cold", "warm")
_MOST = 2 * 10**11  # scores that are ranked besides the seeds' own, some minutes on two cores; beyond: those alone


@dataclass(frozen=True)
class Tested:
    """Test metrics.

    Args:
        own: of each seed, with slices.
        decisions: flat metrics of each seed under other decision weights, by what those are; empty for a single branch.
        pooled: flat metrics of the geometric mean of the seeds' probabilities; None for a single seed or where it takes long.
    """

    own: Sequence[RankingMetrics]
    decisions: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    pooled: dict[str, float] | None = None


def rank_test(
    checkpoints: Mapping[int, Path], graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget,
    ranks_file: Path | None = None,
) -> Tested:
    """Rank the test triples with each seed's checkpoint.

    Args:
        checkpoints: folders by seed.
        graph: for slices.
        triples: (T, 3) of the test split.
        known: what is filtered.
        memory: for scores.
        ranks_file: where the ranks go, for paired tests between studies; None: nowhere.
    """
    found = {seed: _ranked(load_checkpoint(path), graph, triples, known, memory) for seed, path in checkpoints.items()}
    pooled = None
    if len(checkpoints) > 1 and _cost(graph, triples, len(checkpoints)) <= _MOST:  # only then are all in memory at a time
        models = [load_checkpoint(path).model for path in checkpoints.values()]
        pooled = evaluate_pooled(models, [1.0] * len(models), graph, triples, known, memory)
    if ranks_file is not None:
        ranks = {f"{name}/{seed}": one for seed, kinds in found.items() for name, one in kinds.items()}
        save_ranks(ranks_file, ranks | ({} if pooled is None else {POOLED: pooled}), graph)
    shared = [name for name in next(iter(found.values())) if name != OWN and all(name in kinds for kinds in found.values())]
    return Tested(
        [kinds[OWN].metrics for kinds in found.values()],
        {name: [flat(kinds[name].metrics) for kinds in found.values()] for name in shared},
        None if pooled is None else flat(pooled.metrics),
    )


def flat(metrics: RankingMetrics) -> dict[str, float]:
    """The metrics with the MRR of what is cold and what is warm; an empty slice has none."""
    slices = {name: metrics.slices[name] for name in _SLICES if name in metrics.slices}
    return {**metrics.flat(), **{f"mrr_{name}": part.mrr for name, part in slices.items() if part.count}}


def save_ranks(file: Path, ranks: Mapping[str, Ranked], graph: KnowledgeGraph) -> None:
    """Write the ranks of the test triples, (2T,) float32 a name, tails first: halves are exact there up to 8 million.

    Args:
        file: its folder exists.
        ranks: by `KIND/SEED`, or by the kind alone.
        graph: whose test triples they are of.
    """
    found = {name: np.concatenate([one.tail_ranks, one.head_ranks]).astype(np.float32) for name, one in ranks.items()}
    save_file(found, file, metadata={"graph": graph.fingerprint})


def read_ranks(file: Path, kind: str = OWN) -> tuple[np.ndarray, str]:
    """Ranks of the test triples as `compare_ranks` takes them, the harmonic mean over the seeds, and the graph's fingerprint.

    Args:
        file: written by `save_ranks`.
        kind: `own`, `seeds pooled`, or a key of `Tested.decisions`.

    Raises:
        DataError: no such file, or no such kind in it.
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
    """A model's own decision, the other kinds that were fitted to its branches, and the plain ones."""
    own = loaded.model.decision
    fitted = decisions_of(loaded.metrics.get("decision") or {}, own.branches)
    device = own.constant.device
    return {OWN: own, **{KINDS[kind]: made.to(device) for kind, made in fitted.items()}, **alternatives(own)}


def _ranked(
    loaded: Checkpoint, graph: KnowledgeGraph, triples: np.ndarray, known: KnownAnswers, memory: MemoryBudget
) -> dict[str, Ranked]:
    """Under all decisions, or under the own one where the others would take long."""
    decisions = _decisions(loaded)
    if _cost(graph, triples, len(decisions)) > _MOST:
        decisions = {OWN: decisions[OWN]}
    return evaluate_decisions(loaded.model, graph, triples, known, decisions, memory=memory)


def _cost(graph: KnowledgeGraph, triples: np.ndarray, times: int) -> int:
    """Scores to be ranked."""
    return 2 * len(triples) * graph.num_entities * times
