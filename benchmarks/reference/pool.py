"""Combine several finished studies of one graph: an ensemble for each seed, and its results on test.

    python -m benchmarks.reference pool results/mkg-y-pool results/mkg-y results/mkg-y-complex
    python -m benchmarks.reference add results/mkg-y-pool --row "ensemble of two"

The ensemble of a seed holds the retrained winner of every study with that seed, weighted on validation
(`imf_core.ensemble.selection`). There is one ensemble per seed, so results have a mean and a deviation like those of a single
study. The folder has the layout of a study: `summary.json`, `best`, and the ranks for paired tests. "Seeds pooled" is the
ensemble of all seeds. Test is read once, after all weights are fixed.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from imf_core.checkpoint.checkpoint import check_vocabulary, load_checkpoint
from imf_core.data.graph.graph import KnowledgeGraph, counted_triples, open_split
from imf_core.ensemble.ensemble import Ensemble, load_ensemble, members_by_fold, rank_split, same_names, save_ensemble
from imf_core.ensemble.selection import select
from imf_core.errors import ConfigError, DataError
from imf_core.evaluate.ranking import Ranked
from imf_core.evaluate.test_once import OWN, POOLED, RANKS_FILE, flat, save_ranks
from imf_core.files.atomic import atomic_folder, atomic_write_text
from imf_core.prepare.link_data import graph_of
from imf_core.runtime import MemoryBudget
from imf_core.study_reader import SUMMARY_FILE, StudyFolder
from tune.report.files import machine
from tune.report.formatting import plus_minus
from tune.report.result import mean_std


def members_of(studies: Sequence[Path]) -> dict[int, list[Path]]:
    """The checkpoints of the studies' winners, by seed, for the seeds that all studies share.

    Raises:
        DataError: a folder is not a finished study, or the study opened test for several winners.
        ConfigError: the studies share no seed.
    """
    checkpoints: dict[int, list[Path]] = {}
    seeds: list[set[int]] = []
    for study in studies:
        folder, remedy = StudyFolder(study), "name folders of finished studies"
        file, values = folder.summary_file, folder.summary()
        try:
            own, opened = [int(seed) for seed in values["seeds"]], int(values["test_opened"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError.at(file, None, f"not the summary of a study: {error!r}", remedy=remedy) from error
        if opened > 1:
            raise DataError.at(file, None, "test was opened for several winners", value=opened, remedy="search again")
        for seed in own:
            folders = folder.final_checkpoints(seed)
            if len(folders) != 1:
                raise DataError.at(file, None, f"has {len(folders)} checkpoints of seed {seed}", remedy=remedy)
            checkpoints.setdefault(seed, []).append(folders[0])
        seeds.append(set(own))
    common = sorted(set.intersection(*seeds)) if seeds else []
    if not common:
        raise ConfigError(
            "the studies have no seed in common", key="studies", value=", ".join(map(str, studies)),
            remedy="finalise them with the same --seed and --seeds",
        )
    return {seed: checkpoints[seed] for seed in common}


def refuse_existing(out: Path) -> None:
    """Refuse a folder that exists, since creating it again would open test again.

    Raises:
        ConfigError: it exists.
    """
    if out.exists():
        problem = f"{out} exists: its test results are known"
        raise ConfigError(problem, key="out", value=str(out), remedy="name another folder")


def pool(
    out: Annotated[Path, typer.Argument(help="Folder to create; it must not exist.")],
    studies: Annotated[list[Path], typer.Argument(help="Folders of finished studies of the same graph.")],
) -> None:
    """Weight the studies' models on validation, seed by seed, and rank test with each ensemble, once."""
    refuse_existing(out)
    if len(studies) < 2:
        raise ConfigError("an ensemble needs two or more studies", key="studies", value=len(studies), remedy="name several")
    members = members_of(studies)
    console = Console()
    first = load_checkpoint(next(iter(members.values()))[0])
    graph = graph_of(first.config.data)
    check_vocabulary(first.description, graph.entities, graph.relations, first.path)
    with atomic_folder(out) as fresh:
        validation = {seed: _weight(folders, fresh / f"seed-{seed}", graph, console, seed) for seed, folders in members.items()}
        triples, known = open_split(graph, "test")
        counted = counted_triples(graph, "test", triples)
        ensembles = {seed: load_ensemble(fresh / f"seed-{seed}") for seed in members}
        ranked: dict[int, Ranked] = {}
        for seed, ensemble in ensembles.items():
            ranked[seed] = ensemble.rank(graph, triples, known, counted=counted)
            console.print(f"seed {seed}: test MRR {ranked[seed].metrics.mrr:.4f}", highlight=False)
        together = None
        if len(ensembles) > 1:
            together = _together(list(ensembles.values())).rank(graph, triples, known, counted=counted)
        (fresh / "final").mkdir()
        ranks = {f"{OWN}/{seed}": one for seed, one in ranked.items()} | ({POOLED: together} if together is not None else {})
        save_ranks(fresh / "final" / RANKS_FILE, ranks, graph, counted)
        best = max(validation, key=validation.__getitem__)
        (fresh / "best").symlink_to(f"seed-{best}")
        runs = {seed: flat(one.metrics) for seed, one in ranked.items()}
        pooled = {POOLED: [flat(together.metrics)]} if together is not None else {}
        values = summary_of(out, first.config.data.path, validation, runs, pooled)
        atomic_write_text(fresh / SUMMARY_FILE, json.dumps(values, indent=2) + "\n")
    console.print(f"test MRR {plus_minus(mean_std([one.metrics.mrr for one in ranked.values()]))}; {out}", highlight=False)


def _weight(folders: Sequence[Path], target: Path, graph: KnowledgeGraph, console: Console, seed: int) -> float:
    """Write the ensemble of a seed; returns its validation MRR, on which its weights (one per study) were fitted."""
    loaded = [load_checkpoint(folder) for folder in folders]
    same_names(loaded)
    memory = MemoryBudget.of(loaded[0].config.train.memory_budget_mb)
    chosen = select(
        [one.model for one in loaded], graph, graph.clean_valid, graph.known(), memory=memory,
        by_fold=members_by_fold(loaded, graph, memory),
    )
    kept = [place for place, weight in enumerate(chosen.weights) if weight > 0]
    figures = {"held_back_mrr": chosen.held_back, "held_back_mrr_of_single": chosen.held_back_single}
    save_ensemble(target, [folders[place] for place in kept], [chosen.weights[place] for place in kept], figures)
    # Unlike the figures of the selection, this one ranks all triples among all entities.
    mrr = rank_split(load_ensemble(target), graph, "valid", graph.valid, graph.known())[OWN].metrics.mrr
    shares = ", ".join(f"{weight:.2f}" for weight in chosen.weights)
    console.print(
        f"seed {seed}: weights {shares}; validation MRR {mrr:.4f}; held out, among the strongest candidates, "
        f"{chosen.held_back:.4f}, of the best single model {chosen.held_back_single:.4f}", highlight=False,
    )
    return mrr


def _together(ensembles: Sequence[Ensemble]) -> Ensemble:
    """The ensembles of all seeds as one, with equal weights."""
    members = tuple(member for ensemble in ensembles for member in ensemble.members)
    weights = tuple(weight / len(ensembles) for ensemble in ensembles for weight in ensemble.weights)
    return replace(ensembles[0], members=members, weights=weights)


def summary_of(
    out: Path, data: str, validation: Mapping[int, float], runs: Mapping[int, Mapping[str, float]],
    otherwise: Mapping[str, Sequence[Mapping[str, float]]], winner: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A summary with the keys of `tune.report.files.summary` that apply.

    Args:
        out: folder of the results.
        data: folder of the graph.
        validation: validation MRR by seed.
        runs: flat test metrics by seed.
        otherwise: flat test metrics under other decisions, by the name of the decision.
        winner: the model's settings as `params`; None for an ensemble.
    """
    means = {name: {key: mean_std([one[key] for one in every]) for key in every[0]} for name, every in otherwise.items()}
    first = next(iter(runs.values()))
    command = shlex.join(["python", "-m", "benchmarks.reference", *sys.argv[1:]])
    return {
        "study": out.name, "task": "link", "data": data, "winner": winner,
        "winner_validation_mrr": {"by_seed": list(validation.values()), **mean_std(list(validation.values()))},
        "test": {name: mean_std([run[name] for run in runs.values()]) for name in first}, "test_otherwise": means,
        "test_opened": 1, "seeds": list(runs), "command": command, "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
