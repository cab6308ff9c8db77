"""The step, the ranking and an epoch on a GPU, in absolute time: `python -m benchmarks.gpu OUT.json NAME=SOURCE ...`.

It needs torch, numpy, scipy, pydantic and PyYAML alone. A measurement that fails is recorded with its error; the file is
written after each. Before anything is timed, losses, gradients and ranks of the GPU are compared with those of the CPU.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed import Figures, generated, load, model_of, ranking, step
from imf_core.config import Config, published
from imf_core.evaluate.ranking import evaluate
from imf_core.train.batches import TrainingQueries, fitting_run
from imf_core.train.optimizers import Optimizers

# Dense, without sparsity, as the maker states them for the SXM boards of H100 and H200.
PEAKS = {"fp32": 67e12, "tf32": 494.7e12, "bf16": 989.4e12}
_CUDA = torch.device("cuda")
_NO_CHANCE = {f"model.dropout_{part}": 0.0 for part in ("input", "relation", "context", "fusion")}


def agreement(loss: str, negatives: int | None = None) -> Figures:
    """Largest difference between GPU and CPU in loss, gradients (over the norm of all) and ranks; fp32 without TF32."""
    graph = generated(2000, 12, 9000, 300)
    config = Config().updated({**_NO_CHANCE, "model.dim": 64, "model.relation_dim": 32, "train.loss": loss})
    found = []
    for device in (torch.device("cpu"), _CUDA):
        model = model_of(config, graph, device).train()
        batch = next(iter(TrainingQueries(graph).epoch(512, 0, 1))).to(device)
        if negatives is None:
            total = model(batch.heads, batch.relations, batch.positives, config.train)["total"]
        else:
            total = model.sampled_parts(batch.heads, batch.relations, batch.positives, config.train, negatives)["total"]
        total.backward()
        grads = {name: part.grad.to_dense().cpu() for name, part in model.named_parameters() if part.grad is not None}
        found.append((float(total.detach()), grads, model))
    (first, ours, plain), (second, theirs, other) = found
    other.load_state_dict({name: tensor.to(_CUDA) for name, tensor in plain.state_dict().items()})
    ranks = [evaluate(model, graph, graph.valid, graph.known()).tail_ranks for model in (plain, other)]
    whole = float(torch.stack([part.norm() for part in ours.values()]).norm())
    worst = max(float((ours[name] - theirs[name]).norm()) / whole for name in ours)
    return {"loss": abs(first - second) / abs(first), "gradient": worst,
            "ranks_differing": float((np.abs(ranks[0] - ranks[1]) > 0.5).mean())}


def epoch(source: str, precision: str, batch: int, preset: str) -> Figures:
    """One training epoch and the validation after it."""
    graph = load(source)
    config = (published() if preset == "published" else Config()).updated({"train.precision": precision})
    model = model_of(config, graph, _CUDA).train()
    queries, optimizer = TrainingQueries(graph), Optimizers(model, "adam", 1e-3, 0.0)
    run = fitting_run(config.model.dim, config.model.relation_dim, graph.num_entities)
    times = []
    for number in (1, 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for part in queries.epoch(batch, 0, number, together=run):
            moved = part.to(_CUDA)
            total = model(moved.heads, moved.relations, moved.positives, config.train)["total"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    metrics = evaluate(model, graph, graph.valid, graph.known()).metrics
    torch.cuda.synchronize()
    return {"epoch_seconds": times[-1], "steps": queries.num_steps(batch), "validation_seconds": time.perf_counter() - started,
            "validation_queries": metrics.count}


def main() -> None:
    """Run all measurements that fit, the most telling ones first."""
    out, sources = Path(sys.argv[1]), dict(part.split("=", 1) for part in sys.argv[2:])
    card = torch.cuda.get_device_name(0)
    found: Figures = {"card": card, "torch": torch.__version__, "cuda": torch.version.cuda, "peaks": PEAKS, "figures": {}}
    work: dict[str, Callable[[], Figures]] = {
        f"agreement {loss} {negatives or '1-N'}": lambda loss=loss, negatives=negatives: agreement(loss, negatives)
        for loss in ("ce", "bce") for negatives in (None, 2000)
    }
    for name, source in sources.items():
        for size in (1024, 4096):
            for precision in ("fp32", "bf16"):
                work[f"step {name} B={size} {precision}"] = (
                    lambda source=source, size=size, precision=precision: _mfu(
                        step(source, precision=precision, batch=size, steps=13, device="cuda"), precision)
                )
        for size in (1024, 4096):
            work[f"textbook {name} B={size} fp32"] = (
                lambda source=source, size=size: step(source, "textbook", batch=size, steps=8, device="cuda")
            )
        work[f"ranking {name}"] = lambda source=source: ranking(source, device="cuda")
        for precision in ("fp32", "bf16"):
            for preset, size in (("published", 1024), ("paper", 1024)):
                work[f"epoch {name} {preset} B={size} {precision}"] = (
                    lambda source=source, size=size, precision=precision, preset=preset: epoch(source, precision, size, preset)
                )
    first, source = next(iter(sources.items()))
    work[f"step {first} B=4096 bf16 compiled"] = (  # last, since compiling takes a minute and may fail
        lambda: _mfu(step(source, precision="bf16", batch=4096, steps=8, device="cuda", compiled=True), "bf16")
    )
    for name, measure in work.items():
        started = time.monotonic()
        try:
            torch.cuda.reset_peak_memory_stats()
            found["figures"][name] = measure()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, ImportError, AssertionError):
            found["figures"][name] = {"error": traceback.format_exc()[-1500:]}
        print(f"{time.monotonic() - started:6.1f} s  {name}: {json.dumps(found['figures'][name])[:300]}", flush=True)
        out.write_text(json.dumps(found, indent=1), encoding="utf-8")
        torch.cuda.empty_cache()


def _mfu(figures: Figures, precision: str) -> Figures:
    return {**figures, "mfu": figures["flop_per_second"] / PEAKS[precision]}


if __name__ == "__main__":
    main()
