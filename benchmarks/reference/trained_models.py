"""Models that `imf train` made, one a seed, as a finished study: for rows of what no search trains, like a distilled model.

    imf train results/small-0 --config small.yaml --data mygraph --distil results/pool/seed-0 --set train.seed=0    # and so on
    python -m benchmarks.reference trained results/small results/small-0 results/small-1 results/small-2
    python -m benchmarks.reference add results/small --row "distilled"

The folder looks like a study's: checkpoints by seed, the ranks that paired tests need, a `summary.json`. Test is read once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.reference.pool import refuse_known, summary_of
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, load_checkpoint
from imf_core.config import Config
from imf_core.data.graph.graph import open_split
from imf_core.ensemble.ensemble import same_names
from imf_core.errors import CheckpointError, ConfigError
from imf_core.evaluate.metrics import RankingMetrics
from imf_core.evaluate.test_once import POOLED, RANKS_FILE, flat, rank_test
from imf_core.files.atomic import atomic_folder, atomic_write_text
from imf_core.prepare.link_data import graph_of
from imf_core.runtime import MemoryBudget
from imf_core.study_reader import SUMMARY_FILE
from tune.report.formatting import plus_minus
from tune.report.result import mean_std

_SEED, _PATH = "train.seed", "data.path"


def trained(
    out: Annotated[Path, typer.Argument(help="Folder that is made; it must not exist.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of imf train that differ in their seed alone.")],
) -> None:
    """Rank test once with models that were trained one by one, as a search does with the seeds of its winner."""
    refuse_known(out)
    loaded = _by_seed([load_checkpoint(path) for path in checkpoints])
    first = next(iter(loaded.values()))
    graph = graph_of(first.config.data)
    check_vocabulary(first.description, graph.entities, graph.relations, first.path)
    reached = {seed: _validation(one) for seed, one in loaded.items()}
    with atomic_folder(out) as fresh:
        for seed, one in loaded.items():
            shutil.copytree(one.path, fresh / "final" / f"trained-seed-{seed}" / "best")
        triples, known = open_split(graph, "test")
        memory = MemoryBudget.of(first.config.train.memory_budget_mb)
        found = rank_test(
            {seed: one.path for seed, one in loaded.items()}, graph, triples, known, memory, fresh / "final" / RANKS_FILE
        )
        best = max(reached, key=reached.__getitem__)
        (fresh / "best").symlink_to(Path("final") / f"trained-seed-{best}" / "best")
        metrics = [one for one in found.own if isinstance(one, RankingMetrics)]
        runs = dict(zip(loaded, map(flat, metrics), strict=True))
        others = {**found.decisions, **({POOLED: [found.pooled]} if found.pooled is not None else {})}
        values = summary_of(out, first.config.data.path, reached, runs, others, _winner(first))
        atomic_write_text(fresh / SUMMARY_FILE, json.dumps(values, indent=2) + "\n")
    Console().print(f"test MRR {plus_minus(mean_std([run['mrr'] for run in runs.values()]))}; {out}", highlight=False)


def _by_seed(loaded: Sequence[Checkpoint]) -> dict[int, Checkpoint]:
    """The checkpoints by their seed.

    Raises:
        ConfigError: two have the same seed, or they differ in something else.
        CheckpointError: test figures stand in one: it is the winner of a search, whose study is a row of its own.
    """
    same_names(loaded)
    found: dict[int, Checkpoint] = {}
    for one in loaded:
        seed = one.config.train.seed
        if "test" in one.metrics:
            raise CheckpointError(f"{one.path}: its test figures are known", remedy="add the study that it comes from")
        if seed in found:
            raise ConfigError(
                f"{found[seed].path} and {one.path} have the same seed", key=_SEED, value=seed,
                remedy="train each with a seed of its own: --set train.seed=1",
            )
        found[seed] = one
    first = loaded[0]
    for one in loaded[1:]:
        unlike = sorted(_settings(one).items() ^ _settings(first).items())
        if unlike or ("teacher" in one.metrics) != ("teacher" in first.metrics):
            what = unlike[0][0] if unlike else "a teacher"
            raise ConfigError(
                f"{first.path} and {one.path} differ in {what}", key=what, value=str(one.path),
                remedy="name models of one configuration, trained with several seeds",
            )
    return dict(sorted(found.items()))


def _settings(one: Checkpoint) -> dict[str, str]:
    return {name: repr(value) for name, value in one.config.flat().items() if name != _SEED}


def _validation(one: Checkpoint) -> float:
    """The MRR that its training ended with.

    Raises:
        CheckpointError: it has none.
    """
    found = one.metrics.get("validation")
    value = found.get("mrr") if isinstance(found, Mapping) else None
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"{one.path} has no validation MRR", remedy="name a checkpoint that imf train has written")
    return float(value)


def _winner(one: Checkpoint) -> dict[str, Any]:
    """The settings that are not the default ones, as a search's winner has them."""
    usual = Config().flat()
    params = {name: value for name, value in one.config.flat().items() if value != usual[name] and name not in (_SEED, _PATH)}
    return {"params": params}
