"""Turn models of `imf train`, one per seed, into a study: for rows of models that no search trains, such as distilled ones.

    imf train results/small-0 --config small.yaml --data mygraph --distil results/pool/seed-0 --set train.seed=0    # and so on
    python -m benchmarks.reference trained results/small results/small-0 results/small-1 results/small-2
    python -m benchmarks.reference add results/small --row "distilled"

The folder has the layout of a study: checkpoints by seed, ranks for paired tests, `summary.json`. Test is read once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.reference.pool import refuse_existing, summary_of
from imf_core.checkpoint.checkpoint import Checkpoint, check_vocabulary, load_checkpoint
from imf_core.config import Config
from imf_core.data.graph.graph import counted_triples, open_split
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


def score_models(
    out: Annotated[Path, typer.Argument(help="Folder to create; it must not exist.")],
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoints of imf train that differ only in their seed.")],
) -> None:
    """Rank test once with separately trained models, as a search does with the seeds of its winner."""
    refuse_existing(out)
    loaded = _by_seed([load_checkpoint(path) for path in checkpoints])
    first = next(iter(loaded.values()))
    graph = graph_of(first.config.data)
    check_vocabulary(first.description, graph.entities, graph.relations, first.path)
    validation = {seed: _validation(one) for seed, one in loaded.items()}
    with atomic_folder(out) as fresh:
        for seed, one in loaded.items():
            shutil.copytree(one.path, fresh / "final" / f"trained-seed-{seed}" / "best")
        triples, known = open_split(graph, "test")
        memory = MemoryBudget.of(first.config.train.memory_budget_mb)
        test = rank_test(
            {seed: one.path for seed, one in loaded.items()}, graph, triples, known, memory, fresh / "final" / RANKS_FILE,
            counted=counted_triples(graph, "test", triples),
        )
        best = max(validation, key=validation.__getitem__)
        (fresh / "best").symlink_to(Path("final") / f"trained-seed-{best}" / "best")
        metrics = [one for one in test.own if isinstance(one, RankingMetrics)]
        runs = dict(zip(loaded, map(flat, metrics), strict=True))
        others = {**test.decisions, **({POOLED: [test.pooled]} if test.pooled is not None else {})}
        values = summary_of(out, first.config.data.path, validation, runs, others, _winner(first))
        values["cost"] = {"parameters": first.model.num_parameters, **_cost(list(loaded.values()))}
        atomic_write_text(fresh / SUMMARY_FILE, json.dumps(values, indent=2) + "\n")
    Console().print(f"test MRR {plus_minus(mean_std([run['mrr'] for run in runs.values()]))}; {out}", highlight=False)


def _by_seed(loaded: Sequence[Checkpoint]) -> dict[int, Checkpoint]:
    """The checkpoints by their seed.

    Raises:
        ConfigError: two have the same seed, or they differ in another setting.
        CheckpointError: one has test results, so it is the winner of a search, whose study can be added as a row itself.
    """
    same_names(loaded)
    by_seed: dict[int, Checkpoint] = {}
    for one in loaded:
        seed = one.config.train.seed
        if "test" in one.metrics:
            raise CheckpointError(f"{one.path}: its test results are known", remedy="add the study that it comes from")
        if seed in by_seed:
            raise ConfigError(
                f"{by_seed[seed].path} and {one.path} have the same seed", key=_SEED, value=seed,
                remedy="train each with another seed: --set train.seed=1",
            )
        by_seed[seed] = one
    first = loaded[0]
    for one in loaded[1:]:
        differing = sorted(_settings(one).items() ^ _settings(first).items())
        if differing or ("teacher" in one.metrics) != ("teacher" in first.metrics):
            name = differing[0][0] if differing else "a teacher"
            raise ConfigError(
                f"{first.path} and {one.path} differ in {name}", key=name, value=str(one.path),
                remedy="name models of one configuration, trained with several seeds",
            )
    return dict(sorted(by_seed.items()))


def _settings(one: Checkpoint) -> dict[str, str]:
    return {name: repr(value) for name, value in one.config.flat().items() if name != _SEED}


def _validation(one: Checkpoint) -> float:
    """The validation MRR of a checkpoint.

    Raises:
        CheckpointError: it has none.
    """
    metrics = one.metrics.get("validation")
    value = metrics.get("mrr") if isinstance(metrics, Mapping) else None
    if not isinstance(value, (int, float)):
        raise CheckpointError(f"{one.path} has no validation MRR", remedy="name a checkpoint that imf train has written")
    return float(value)


def _cost(loaded: Sequence[Checkpoint]) -> dict[str, float | None]:
    """Minutes of training, the median of the seeds as one may have been suspended, and the highest peak of memory in GB; None
    where a seed says neither.
    """
    costs = [one.metrics.get("cost") for one in loaded]
    known = [cost for cost in costs if isinstance(cost, Mapping)]
    if len(known) < len(costs):
        return {"minutes": None, "peak_gb": None}
    return {
        "minutes": median(cost["seconds"] for cost in known) / 60,
        "peak_gb": max(cost["peak_bytes"] for cost in known) / 1e9,
    }


def _winner(one: Checkpoint) -> dict[str, Any]:
    """The settings that differ from the defaults, in the form of a search's winner."""
    default = Config().flat()
    flat = one.config.flat().items()
    params = {name: value for name, value in flat if value != default.get(name) and name not in (_SEED, _PATH)}
    return {"params": params}
