"""The step, an epoch and the ranking on a GPU, in every form: `python -m benchmarks.gpu OUT.json [--cpu] NAME=SOURCE ...`.

Forms of a step: `textbook` (the plain version) and `textbook compiled`; ours are `branches`, `static`, `captured`, `compiled`.

It needs torch, numpy, scipy, pydantic and PyYAML alone. What tells most comes first and the file is written after each
measurement, so that an interrupted run has said something; one that fails is recorded with its error. Before anything is
timed, losses, gradients and ranks are compared with those of the CPU. `--cpu` rehearses everything on small graphs; its figures
say nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from benchmarks import textbook
from benchmarks.speed import Figures, generated, load, model_of, ranking
from imf_core.config import Config, published
from imf_core.evaluate.ranking import evaluate
from imf_core.model.static.step import StaticStep
from imf_core.runtime import WHOLE, MemoryBudget
from imf_core.train.batches import QueryBatch, TrainingQueries
from imf_core.train.epoch import relation_run, tensor_float_32, train_epoch
from imf_core.train.fit import build_optimizers
from imf_core.train.step.captured import CudaGraphs
from imf_core.train.step.planning import Planning
from imf_core.train.step.steps import Steps

# Dense, without sparsity, as the maker states them for the SXM boards of H100 and H200.
PEAKS = {"fp32": 67e12, "tf32": 494.7e12, "bf16": 989.4e12}
FORMS = ("textbook", "textbook compiled", "branches", "static", "captured", "compiled")
_NO_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}


class Card:
    """Where it is measured.

    Args:
        cpu: rehearse on the CPU.
    """

    def __init__(self, cpu: bool) -> None:
        self.cpu, self.device = cpu, torch.device("cpu" if cpu else "cuda")
        self.settings: dict[str, object] = {"model.dim": 16, "model.relation_dim": 16} if cpu else {}
        self.num_steps = 3 if cpu else 30

    @property
    def name(self) -> str:
        """Of the card."""
        return "none" if self.cpu else torch.cuda.get_device_name(0)

    def wait(self) -> None:
        """Until everything launched is done."""
        if not self.cpu:
            torch.cuda.synchronize()

    def config(self, preset: str, **settings: object) -> Config:
        """A preset in the size of this run, with further settings (dots as double underscores)."""
        own = {key.replace("__", "."): value for key, value in settings.items()}
        return (published() if preset == "published" else Config()).updated({**self.settings, **own})


def agreement(card: Card, preset: str, form: str) -> Figures:
    """Largest difference from the CPU, branch by branch, in loss, gradients (over the norm of all) and ranks; fp32."""
    graph = generated(2000, 12, 9000, 300)
    small = {"model__dim": 64, "model__relation_dim": 32} if not card.cpu else {}
    config = card.config(preset, **small, train__precision="fp32").updated(_NO_CHANCE)
    batch = next(iter(TrainingQueries(graph).epoch(512, 0, 1)))
    found = []
    for device, kind in ((torch.device("cpu"), "branches"), (card.device, form)):
        model = model_of(config, graph, device).train()
        step = StaticStep(model, config.train)
        part = (Planning(step).planned(batch, 2**33) if kind == "static" else batch).to(device)
        total = step(part.heads, part.relations, part.positives, config.train, None, part.plan)["total"]
        total.backward()
        grads = {name: item.grad.to_dense().cpu() for name, item in model.named_parameters() if item.grad is not None}
        found.append((float(total.detach()), grads, model))
    (first, ours, plain), (second, theirs, other) = found
    other.load_state_dict({name: tensor.to(card.device) for name, tensor in plain.state_dict().items()})
    ranks = [evaluate(model, graph, graph.valid, graph.known()).tail_ranks for model in (plain, other)]
    whole = float(torch.stack([part.norm() for part in ours.values()]).norm())
    worst = max(float((ours[name] - theirs[name]).norm()) / whole for name in ours)
    return {"loss": abs(first - second) / abs(first), "gradient": worst,
            "ranks_differing": float((np.abs(ranks[0] - ranks[1]) > 0.5).mean())}


def step(card: Card, source: str, form: str, precision: str, batch: int, preset: str = "published") -> Figures:
    """Training steps with their update.

    Args:
        card: where.
        source: see `benchmarks.speed.load`.
        form: one of `FORMS`.
        precision: `fp32`, `tf32` or `bf16`.
        batch: B.
        preset: `published` or `paper`.
    """
    config = card.config(preset, train__precision=precision, train__batch_size=batch)
    graph = load(source)
    model = model_of(config, graph, card.device).train()
    queries = list(islice(TrainingQueries(graph).epoch(batch, 0, 1, together=relation_run(config, graph.num_entities)), 8))
    run = _textbook_step(card, model, form) if form.startswith("textbook") else _our_step(card, model, config, form)
    with tensor_float_32(precision == "tf32"):
        return _timed(card, run, queries)


def _textbook_step(card: Card, model: torch.nn.Module, form: str) -> Callable[[QueryBatch], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, fused=True)
    loss = torch.compile(textbook.loss) if form == "textbook compiled" else textbook.loss

    def run(batch: QueryBatch) -> None:
        moved = batch.to(card.device)
        total = loss(model, moved.heads, moved.relations, moved.positives, 0.1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return run


def _our_step(card: Card, model: torch.nn.Module, config: Config, form: str) -> Callable[[QueryBatch], object]:
    static = None if form == "branches" else StaticStep(model, config.train)
    if form == "compiled" and static is not None:
        static.compile_losses()
    planning = None if static is None else Planning(static)
    recorder = CudaGraphs() if form in ("captured", "compiled") and not card.cpu else None
    optimizers = build_optimizers(model, config, early=False)
    memory = MemoryBudget.of(None, card.device)
    steps = Steps(static or model, config.train, optimizers, card.device, memory, planning=planning, recorder=recorder)

    def run(batch: QueryBatch) -> None:
        steps.run(batch)
        if steps.captured is not None and steps.captured.failure is not None:
            raise RuntimeError(f"not captured: {steps.captured.failure}")

    return run


def _timed(card: Card, run: Callable[[QueryBatch], object], batches: list[QueryBatch]) -> Figures:
    """Median time of a step, alone and in a flow of steps; its kernels, how long they are busy, and its synchronisations."""
    turns = cycle(batches)
    for _ in range(4 * len(batches) if not card.cpu else 2):  # both sizes of batch are captured
        run(next(turns))
    alone = []
    for _ in range(card.num_steps):
        card.wait()
        started = time.perf_counter()
        run(next(turns))
        card.wait()
        alone.append(time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(card.num_steps):
        run(next(turns))
    card.wait()
    found: Figures = {
        "milliseconds": 1e3 * statistics.median(alone),
        "milliseconds_in_flow": 1e3 * (time.perf_counter() - started) / card.num_steps,
    }
    if card.cpu:
        return found
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run(next(turns))
        torch.cuda.set_sync_debug_mode("default")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        run(next(turns))
        card.wait()
    kernels = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {
        **found, "kernels": len(kernels), "busy_milliseconds": sum(event.device_time for event in kernels) / 1e3,
        "synchronisations": sum("synchroniz" in str(warning.message) for warning in caught),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def epoch(card: Card, source: str, preset: str, batch: int, epochs: int = 3) -> Figures:
    """Training epochs as `fit` runs them on this device, the last one timed, and the validation after it."""
    graph = load(source)
    config = card.config(preset, train__batch_size=batch, train__precision="fp32" if card.cpu else "tf32")
    model = model_of(config, graph, card.device).train()
    static = StaticStep(model, config.train)
    steps = Steps(
        static, config.train, build_optimizers(model, config, early=False), card.device, MemoryBudget.of(None, card.device),
        planning=Planning(static), recorder=None if card.cpu else CudaGraphs(),
    )
    queries, times = TrainingQueries(graph), []
    for number in range(1, epochs + 1):
        card.wait()
        started = time.perf_counter()
        train_epoch(steps, queries, config, number, WHOLE)
        card.wait()
        times.append(time.perf_counter() - started)
    known, seconds = graph.known(), []
    for _ in range(2):
        started = time.perf_counter()
        metrics = evaluate(model, graph, graph.valid, known).metrics
        card.wait()
        seconds.append(time.perf_counter() - started)
    return {"epoch_seconds": times[-1], "first_epoch_seconds": times[0], "steps": queries.num_steps(batch),
            "validation_seconds": seconds[-1], "validation_queries": metrics.count}


def trials(card: Card, source: str, count: int) -> Figures:
    """Several trials on one card at a time, a process each: how many epochs they train a second together."""
    command = [sys.executable, "-m", "benchmarks.gpu", source, "--trial", *(["--cpu"] if card.cpu else [])]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    outputs = [process.communicate()[0] for process in started]
    seconds = [json.loads(output.splitlines()[-1])["epoch_seconds"] for output in outputs]
    rate = sum(1 / each for each in seconds)
    return {"trials": count, "epoch_seconds": statistics.median(seconds), "epochs_per_second": rate}


def measurements(card: Card, sources: dict[str, str]) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """All of them by name, the most telling first."""
    for preset in ("published", "paper"):
        for form in ("static", "branches"):
            yield f"agreement {preset} {form}", partial(agreement, card, preset, form)
    small = {key.replace(".", "__"): value for key, value in card.settings.items()}
    for name, source in sources.items():
        for size, precisions in ((1024, ("tf32", "bf16", "fp32")), (256, ("tf32",)), (4096, ("tf32",))):
            batch = size // 16 if card.cpu else size
            for precision in precisions:
                for form in ("captured", "textbook", "static", "branches"):
                    if (form, precision) != ("textbook", "bf16"):
                        measure = partial(step, card, source, form, precision, batch)
                        yield f"step {name} {form} B={size} {precision}", measure
        batch = 64 if card.cpu else 1024
        yield f"step {name} paper captured B=1024 tf32", partial(step, card, source, "captured", "tf32", batch, "paper")
        for preset in ("published", "paper"):
            yield f"epoch {name} {preset} B=1024", partial(epoch, card, source, preset, batch)
        yield f"ranking {name}", partial(ranking, source, device=card.device.type, **small)
        for count in (1, 2, 4):
            yield f"trials {name} {count} a card", partial(trials, card, source, count)
        for form in ("compiled", "textbook compiled"):  # last, since compiling takes a minute and may fail
            yield f"step {name} {form} B=1024 tf32", partial(step, card, source, form, "tf32", batch)


def main(arguments: list[str]) -> None:
    """Run all measurements that fit."""
    parser = ArgumentParser("python -m benchmarks.gpu", description=__doc__)  # typer may be missing on such a machine
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("sources", nargs="*", metavar="NAME=SOURCE", help="graphs")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--trial", action="store_true", help="an epoch of the graph OUT alone")
    asked = parser.parse_intermixed_args(arguments)
    card, out = Card(asked.cpu), asked.out
    if asked.trial:
        print(json.dumps(epoch(card, str(out), "paper", 256)))
        return
    sources = dict(part.split("=", 1) for part in asked.sources)
    found: Figures = {"card": card.name, "torch": torch.__version__, "cuda": torch.version.cuda, "peaks": PEAKS}
    found["figures"] = {}
    for name, measure in measurements(card, sources):
        started = time.monotonic()
        try:
            if not card.cpu:
                torch.cuda.reset_peak_memory_stats()
            found["figures"][name] = measure()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, AssertionError):
            found["figures"][name] = {"error": traceback.format_exc()[-1500:]}
        print(f"{time.monotonic() - started:6.1f} s  {name}: {json.dumps(found['figures'][name])[:300]}", flush=True)
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if not card.cpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
