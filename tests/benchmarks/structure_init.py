"""What the structure branch starts from: `structure.init` random against gat, the same settings and seeds otherwise.

    python -m tests.benchmarks.structure_init --data ../shared/data/MKG-Y --config results/configs/mkg-y.yaml \\
        --variant "random:" --variant "gat:structure.init=gat"

A run is kept in `--cache` as soon as it is finished, so that an interrupted comparison goes on where it stopped. Scores are
validation scores: nothing here opens a test split. The table is printed as Markdown.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from imf_core.config import Config, parse_overrides
from imf_core.data.prepared import prepare
from imf_core.train.fit import build_model, fit


def main(
    data: Annotated[str, typer.Option(help="Graph folder.")],
    config: Annotated[Path, typer.Option(help="YAML settings that all variants share.")],
    variant: Annotated[list[str], typer.Option(help="name:setting setting ..., for example gat:structure.init=gat")],
    shared: Annotated[list[str] | None, typer.Option("--set", help="A setting of all variants.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of every run; none ends earlier.")] = 12,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    cache: Annotated[Path, typer.Option(help="Finished runs, one JSON line each.")] = Path(".cache/structure_init.jsonl"),
) -> None:
    """Train every variant with every seed and print the table."""
    torch.set_num_threads(threads)
    equal = {"data.path": data, "train.max_epochs": epochs, "train.patience": epochs, **parse_overrides(shared or [])}
    base = Config.load(config).updated(equal)
    found = [json.loads(line) for line in cache.read_text().splitlines()] if cache.exists() else []
    rows = []
    for name, _, settings in (item.partition(":") for item in variant):
        chosen = base.updated(parse_overrides(settings.split()))
        runs = []
        for seed in range(seeds):
            one = chosen.updated({"train.seed": seed})
            run = next((item for item in found if item["settings"] == _plain(one)), None)
            if run is None:
                run = {"settings": _plain(one), **_run(one)}
                cache.parent.mkdir(parents=True, exist_ok=True)
                with cache.open("a") as handle:
                    handle.write(json.dumps(run) + "\n")
            print(f"{name}, seed {seed}: " + " ".join(f"{100 * mrr:.2f}" for _, mrr in run["curve"]), flush=True)
            runs.append(run)
        rows.append((name, runs))
    columns = sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})
    print("\n| start | " + " | ".join(f"epoch {epoch}" for epoch in columns) + " | best | table, s | training, s |")
    print("| --- |" + " ---: |" * (len(columns) + 3))
    for name, runs in rows:
        cells = [_spread([dict(map(tuple, run["curve"]))[epoch] for run in runs]) for epoch in columns]
        cells.append(_spread([max(mrr for _, mrr in run["curve"]) for run in runs]))
        cells += [f"{max(run['table_seconds'] for run in runs):.0f}", f"{statistics.mean(run['seconds'] for run in runs):.0f}"]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _run(config: Config) -> dict[str, Any]:
    started = time.monotonic()
    ready = prepare(config.data, config.structure)
    prepared = time.monotonic()
    print("; ".join(ready.notes), flush=True)
    result = fit(build_model(config, ready), ready, config)
    return {"curve": result.curve, "table_seconds": prepared - started, "seconds": time.monotonic() - prepared}


def _plain(config: Config) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(config.model_dump()))
    return plain


def _spread(values: list[float]) -> str:
    """Mean and sample deviation, percent."""
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else mean


if __name__ == "__main__":
    typer.run(main)
