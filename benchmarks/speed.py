"""Measurements of speed and memory, each in a process of its own: `python -m benchmarks.speed NAME '{"key": value}'`.

The last line printed is JSON. `run_speed.py` calls them in turn and writes results/benchmarks.md. Features are random, 64 wide,
for two modalities: only their shape counts. No test split is opened.

Shapes: `B` queries, `N` entities, `R` relations, `T` triples, `d` width.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import textbook
from imf_core.config import Config, published
from imf_core.data.features.modality import Modality
from imf_core.data.graph.graph import KnowledgeGraph, KnownAnswers, Vocabulary
from imf_core.evaluate.ranking import evaluate
from imf_core.model.imf import Imf
from imf_core.model.static.step import StaticStep
from imf_core.runtime import keep_freed_memory
from imf_core.train.batches import QueryBatch, TrainingQueries, fitting_run
from imf_core.train.optimizers import Optimizers
from imf_core.train.step.planning import Planning

_WIDTH = 64  # of the random features
Figures = dict[str, Any]


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB; `getrusage` would count that of the process that started it."""
    return memory_gib("VmHWM")


def memory_gib(name: str) -> float:
    """A line of this process's status, GiB."""
    (kib,) = re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(kib) / 2**20


def generated(entities: int, relations: int, triples: int, held_out: int = 0, seed: int = 0) -> KnowledgeGraph:
    """A graph of distinct random triples whose entities and relations are as unevenly used as in real ones.

    Args:
        entities: N. relations: R. triples: T to train with.
        held_out: validation triples besides.
        seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(entities)

    def drawn(count: int, size: int) -> np.ndarray:
        return np.minimum((count * rng.random(size) ** 2).astype(np.int64), count - 1)

    found = np.empty((0, 3), np.int64)
    while len(found) < triples + held_out:
        size = triples + held_out - len(found) + 1000
        fresh = np.stack([names[drawn(entities, size)], drawn(relations, size), names[drawn(entities, size)[::-1]]], axis=1)
        found = np.unique(np.concatenate([found, fresh]), axis=0)
    found = rng.permutation(found)
    vocabularies = Vocabulary(tuple(map(str, range(entities)))), Vocabulary(tuple(map(str, range(relations))), "relation")
    return KnowledgeGraph(*vocabularies, found[held_out : held_out + triples], found[:held_out])


def load(source: str) -> KnowledgeGraph:
    """A graph folder, a `.npz` file of `train`, `valid` and counts `sizes` (N, R), or `generated:N,R,T`."""
    if source.startswith("generated:"):
        entities, relations, triples = (int(float(part)) for part in source.removeprefix("generated:").split(","))
        return generated(entities, relations, triples, min(10_000, triples // 10))
    if source.endswith(".npz"):
        with np.load(source) as arrays:
            train, valid, (entities, relations) = arrays["train"], arrays["valid"], arrays["sizes"].tolist()
        vocabularies = Vocabulary(tuple(map(str, range(entities)))), Vocabulary(tuple(map(str, range(relations))), "relation")
        return KnowledgeGraph(*vocabularies, train, valid)
    from imf_core.data.formats.readers import read_graph

    return read_graph(source)


def modalities(count: int) -> list[Modality]:
    """Random features of N entities, complete."""
    rng = np.random.default_rng(0)
    everyone = np.ones(count, bool)
    return [Modality(name, rng.standard_normal((count, _WIDTH), dtype=np.float32), everyone) for name in ("image", "text")]


def model_of(config: Config, graph: KnowledgeGraph, device: torch.device) -> Imf:
    """An untrained model with two modalities."""
    torch.manual_seed(0)
    made = Imf(config.model, graph.num_entities, graph.num_relations, modalities(graph.num_entities), config.train.loss)
    return made.to(device)


def batches(graph: KnowledgeGraph, size: int, together: int) -> Iterator[QueryBatch]:
    """Batches without an end."""
    queries = TrainingQueries(graph)
    return (batch for epoch in cycle([1]) for batch in queries.epoch(size, 0, epoch, together=together))


def operations(model: Imf, batch: QueryBatch) -> float:
    """Multiplications and additions of a step's matrix products, the backward pass counted twice the forward one."""
    config, count, queries = model.config, model.num_entities, len(batch.heads)
    width, narrow, distinct = config.dim, config.relation_dim, len(batch.relations.unique())
    views, branches = len(model.branches) - 1, len(model.branches)
    scores = branches * queries * count * width
    fusion = views * config.fusion_rank * (count * width**2 + 2 * model.num_relations * narrow**2)
    contexts = branches * (distinct * narrow * width**2 + queries * width**2)
    return 6.0 * (scores + fusion + contexts)


def step(
    source: str, mode: str = "ours", precision: str = "fp32", batch: int = 1024, steps: int = 8, together: int | None = None,
    device: str = "cpu", compiled: bool = False, **settings: Any,
) -> Figures:
    """Training steps of the published configuration (d = r = 256, rank 2, four branches), median of all but the first three.

    Args:
        source: see `load`.
        mode: `textbook`, `ours`, or `static` for the step that GPUs run.
        precision: `fp32` or `bf16` (ours).
        batch: B. steps: how many.
        together: queries of a relation that come together; None: as the product chooses.
        device: `cpu` or `cuda`.
        compiled: `static` by `torch.compile`.
        settings: overrides, dots as double underscores.
    """
    place = torch.device(device)
    config = published().updated(
        {"train.precision": precision, **{key.replace("__", "."): value for key, value in settings.items()}}
    )
    graph = load(source)
    model = model_of(config, graph, place).train()
    if mode != "textbook" and device == "cpu":
        keep_freed_memory()
    optimizer: Optimizers | torch.optim.Optimizer = Optimizers(model, "adam", 5e-4, 0.0, early=device == "cpu")
    if mode == "textbook":
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    run = fitting_run(config.model.dim, config.model.relation_dim, graph.num_entities) if together is None else together
    static = StaticStep(model, config.train)
    planning = Planning(static)
    if compiled:
        static.compile_losses()
    times, counted, distinct, losses = [], [], [], []
    for part in islice(batches(graph, batch, run), steps):
        synchronise(place)
        started = time.perf_counter()
        moved = (planning.planned(part, 2**40) if mode == "static" else part).to(place)
        if mode == "textbook":
            loss = textbook.loss(model, moved.heads, moved.relations, moved.positives, config.train.label_smoothing)
        else:
            loss = static(moved.heads, moved.relations, moved.positives, config.train, None, moved.plan)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronise(place)
        times.append(time.perf_counter() - started)
        counted.append(operations(model, part))
        distinct.append(len(part.relations.unique()))
        losses.append(float(loss.detach()))
    last = times[3:] or times
    seconds = statistics.median(last)
    found = {
        "seconds": seconds, "fastest": min(last), "slowest": max(last), "first": times[0],
        "relations": statistics.median(distinct), "run": run,
        "flop": statistics.median(counted), "flop_per_second": statistics.median(counted) / seconds, "losses": losses,
    }
    if device == "cpu":
        return {**found, "peak_gib": peak_gib(), **(products(torch.float32) if precision == "fp32" else {})}
    return {**found, "peak_gib": torch.cuda.max_memory_allocated() / 2**30}


def products(kind: torch.dtype, size: int = 4096, times: int = 5) -> Figures:
    """FLOP/s of a large square matrix product, the best of a few."""
    left, right, out = (torch.randn(size, size).to(kind) for _ in range(3))
    torch.mm(left, right, out=out)
    best = min(_seconds(lambda: torch.mm(left, right, out=out)) for _ in range(times))
    return {"product_flop_per_second": 2 * size**3 / best}


def ranking(source: str, mode: str = "ours", limit: int | None = None, device: str = "cpu", **settings: Any) -> Figures:
    """Filtered ranking of validation triples, both directions, by an untrained model of the published configuration; fp32."""
    graph, place = load(source), torch.device(device)
    config = published().updated({key.replace("__", "."): value for key, value in settings.items()})
    model = model_of(config, graph, place).eval()
    known: KnownAnswers = graph.known()
    triples = graph.valid[:limit]
    if mode == "textbook":
        started = time.perf_counter()
        textbook.rank(model, triples[:, 0], triples[:, 1], triples[:, 2], known)
        return {"queries_per_second": len(triples) / (time.perf_counter() - started), "peak_gib": peak_gib()}
    keep_freed_memory()
    evaluate(model, graph, triples[:64], known)
    synchronise(place)
    seconds = [_seconds(lambda: evaluate(model, graph, triples, known)) for _ in range(3)]
    return {"queries_per_second": 2 * len(triples) / statistics.median(seconds), "peak_gib": peak_gib()}


def ddp(source: str, world: int, rank: int, store: str, batch: int = 1024, steps: int = 10) -> Figures:
    """Queries a second of one of `world` processes of one thread each, default configuration, `batch` queries each."""
    import torch.distributed as dist

    from imf_core.runtime import Shard

    torch.set_num_threads(1)
    keep_freed_memory()
    graph, config = load(source), Config()
    model = model_of(config, graph, torch.device("cpu")).train()
    trained: nn.Module = model
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        trained = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = Optimizers(model, "adam", 2e-3, 0.0, early=world == 1)
    times, queries = [], 0
    for part in islice(TrainingQueries(graph).epoch(batch * world, 0, 1, Shard(rank, world)), steps):
        started = time.perf_counter()
        loss = trained(part.heads, part.relations, part.positives, config.train)["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
        queries = len(part.heads)
    if world > 1:
        dist.destroy_process_group()
    return {"queries_per_second": queries * world / statistics.median(times[2:]), "seconds": statistics.median(times[2:])}


def quality(
    source: str, overrides: dict[str, Any], goal: float = 1.0, epochs: int = 30, preset: str = "paper", text: bool = True
) -> Figures:
    """Validation MRR over time: seconds of training and validation, data preparation not counted, until the goal."""
    from imf_core.prepare.link_data import prepare
    from imf_core.train.fit import build_model, fit
    from imf_core.train.progress import EpochReport

    base = published() if preset == "published" else Config()
    own = {"data.path": source, "data.text": "names" if text else "none", "train.max_epochs": epochs, "train.patience": epochs}
    config = base.updated({**own, **overrides})
    data = prepare(config.data, config.structure)
    model, curve, spent, reached = build_model(config, data), [], 0.0, None
    started = time.perf_counter()

    def on_epoch(report: EpochReport) -> None:
        nonlocal spent, reached
        spent += report.seconds
        curve.append([report.epoch, round(spent, 2), report.metrics.mrr])
        if reached is None and report.metrics.mrr >= goal:
            reached = spent
            raise _Reached

    try:
        fit(model, data, config, on_epoch)
    except _Reached:
        pass
    return {"seconds": reached, "curve": curve, "wall": time.perf_counter() - started, "branches": list(model.branches),
            "settings": overrides, "peak_gib": peak_gib()}


def large(entities: int, triples: int, evaluated: int, overrides: dict[str, Any]) -> Figures:
    """An epoch and a filtered evaluation on a generated graph; one modality of 64 features, three branches."""
    from imf_core.prepare.link_data import LinkData
    from imf_core.train.fit import build_model, fit

    graph = generated(entities, 200, triples, evaluated)
    held_out = graph.valid
    graph = KnowledgeGraph(graph.entities, graph.relations, graph.train, held_out[: max(2, evaluated // 20)])
    data = LinkData(graph=graph, modalities=tuple(modalities(entities)[:1]))
    config = Config().updated({"train.max_epochs": 1, **overrides})
    model = build_model(config, data)
    before = peak_gib()
    epoch = _seconds(lambda: fit(model, data, config))
    known = graph.known(graph.train, held_out)
    ranking_seconds = _seconds(lambda: evaluate(model, graph, held_out, known))
    return {"epoch_seconds": epoch, "evaluation_seconds": ranking_seconds, "peak_gib": peak_gib(), "before_gib": before,
            "queries": len(TrainingQueries(graph)), "settings": overrides}


class _Reached(Exception):
    """The goal is reached: the rest of the run says nothing."""


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def trial_start(**arguments: Any) -> Figures:
    """See `benchmarks.trial_start`, which loads Ray and MLflow: no other measurement is to carry them."""
    from benchmarks.trial_start import trial_start as measured

    return measured(**arguments)


def launches() -> Figures:
    """See `benchmarks.launches`, which imports this file."""
    from benchmarks.launches import launches as counted

    return counted()


MEASURES = {
    "step": step, "ranking": ranking, "ddp": ddp, "quality": quality, "large": large, "trial_start": trial_start,
    "launches": launches,
}


if __name__ == "__main__":
    parser = ArgumentParser(
        "python -m benchmarks.speed", description="Take a measurement in this process, and print its figures as JSON."
    )
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("settings", type=json.loads, help="its arguments as JSON; `threads`: number of threads")
    asked = parser.parse_args()
    if "threads" in asked.settings:
        torch.set_num_threads(asked.settings.pop("threads"))
    print(json.dumps(MEASURES[asked.measure](**asked.settings)))
