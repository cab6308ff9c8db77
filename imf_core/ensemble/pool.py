"""Make an ensemble of the checkpoints that answer best together, chosen on validation; test is not opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imf_core.checkpoint.checkpoint import Checkpoint, load_checkpoint
from imf_core.data.graph.graph import KnowledgeGraph
from imf_core.ensemble.ensemble import members_by_fold, same_names, save_ensemble
from imf_core.ensemble.selection import ROUNDS, Selection, select
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.pooled import pooled_by_fold
from imf_core.files.digest import sha256_of_file
from imf_core.model.decision import Decision
from imf_core.runtime import MemoryBudget


@dataclass(frozen=True)
class Pool:
    """Candidates and what was chosen of them.

    Args:
        folders: of the K candidates.
        loaded: their checkpoints.
        graph: whose validation triples decide.
        by_fold: for fold 0 and 1 of validation the decisions of the K models.
        selection: the weights.
    """

    folders: tuple[Path, ...]
    loaded: tuple[Checkpoint, ...]
    graph: KnowledgeGraph
    by_fold: tuple[tuple[Decision, ...], ...]
    selection: Selection

    @classmethod
    def choose(cls, folders: Sequence[Path], graph: KnowledgeGraph, rounds: int = ROUNDS) -> Pool:
        """Choose the pool with the best validation MRR, greedily.

        Args:
            folders: of the candidates, at least one.
            graph: theirs.
            rounds: models taken at most, repeats counted.

        Raises:
            VocabularyError: the candidates are of different graphs.
        """
        loaded = tuple(load_checkpoint(folder) for folder in folders)
        same_names(loaded)
        memory = MemoryBudget.of(loaded[0].config.train.memory_budget_mb)
        by_fold = members_by_fold(loaded, graph, memory)
        models = [member.model for member in loaded]
        selection = select(
            models, graph, graph.clean_valid, graph.known(), rounds=rounds, memory=memory, by_fold=by_fold
        )
        return cls(tuple(folders), loaded, graph, by_fold, selection)

    @property
    def kept(self) -> list[int]:
        """Numbers of the candidates that were chosen."""
        return [index for index, weight in enumerate(self.selection.weights) if weight > 0]

    @property
    def weights(self) -> list[float]:
        """Their weights."""
        return [self.selection.weights[index] for index in self.kept]

    def ranked(self, members: Sequence[int], shares: Sequence[float]) -> RankingMetrics:
        """Validation metrics of some candidates together, crosswise, as `imf evaluate` ranks."""
        memory = MemoryBudget.of(self.loaded[0].config.train.memory_budget_mb)
        models = [self.loaded[index].model for index in members]
        decisions = [[fold[index] for index in members] for fold in self.by_fold]
        return pooled_by_fold(models, shares, self.graph, self.graph.known(), decisions, memory).metrics

    def figures(self) -> dict[str, Any]:
        """Validation figures of the pool, for its folder."""
        return {
            "validation": self.ranked(self.kept, self.weights).as_dict(), "held_back_mrr": self.selection.held_back,
            "held_back_mrr_of_single": self.selection.held_back_single, "candidates": len(self.folders),
            "fingerprint": self.graph.fingerprint,
        }

    def save(self, out: Path, figures: dict[str, Any]) -> None:
        """Write the pool's folder; it is replaced if it exists."""
        save_ensemble(out, [self.folders[index] for index in self.kept], self.weights, figures)


def distinct(folders: Sequence[Path]) -> list[Path]:
    """Of checkpoints with equal weights only the first."""
    first: dict[str, Path] = {}
    for folder in folders:
        first.setdefault(sha256_of_file(folder / "model.safetensors"), folder)
    return list(first.values())
