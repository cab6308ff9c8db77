"""Initialisation of the structure branch: `structure.init` random against gat on MKG-Y, with equal settings and seeds.

    python -m benchmarks.structure_init --data ../shared/data/MKG-Y      # writes results/structure_init.md

All scores are validation scores; no test split is opened. An interrupted benchmark continues from the runs in `--cache`.
"""

from __future__ import annotations

import json
import time
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.results import FinishedRuns, host_line, percent
from imf_core.config import Config
from imf_core.config_base import parse_overrides
from imf_core.files.markdown import table
from imf_core.prepare.link_data import prepare
from imf_core.train.fit import build_model, fit
from tune.report.files import machine

CONFIG = Path("results/configs/mkg-y.yaml")
# title -> settings, epochs of every run (without early stopping), variants
SETUPS = {
    "Structure alone": (("data.text=none",), 15, ("random", "gat 10", "gat 40")),
    "Structure, names as text, fusion": ((), 12, ("random", "gat 10")),
}
VARIANTS = {
    "random": (),
    "gat 10": ("structure.init=gat", "structure.width=200", "structure.epochs=10"),
    "gat 40": ("structure.init=gat", "structure.width=200", "structure.epochs=40"),
}

Run = dict[str, Any]


def main(
    data: Annotated[Path, typer.Option(help="Folder of MKG-Y.")],
    out: Annotated[Path, typer.Option(help="Markdown file to write.")] = Path("results/structure_init.md"),
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    cache: Annotated[Path, typer.Option(help="File of finished runs (JSON lines).")] = Path(".cache/structure_init.jsonl"),
) -> None:
    """Train every variant with every seed and write the tables."""
    torch.set_num_threads(threads)
    base = Config.load(CONFIG).updated({"data.path": str(data.resolve())})
    finished = FinishedRuns(cache)
    text = [
        "# Initialisation of the structure branch",
        "",
        f"Validation MRR in percent on MKG-Y, mean ± standard deviation over {seeds} seeds. `gat N` starts from a table that "
        "graph attention with the TransE margin loss learned in N epochs, once before all trials.",
        "",
    ]
    for title, (settings, epochs, variants) in SETUPS.items():
        equal = {"train.max_epochs": epochs, "train.patience": epochs, **parse_overrides(settings)}
        runs = {}
        for name in variants:
            config = base.updated(equal).updated(parse_overrides(VARIANTS[name]))
            runs[name] = [_run(config.updated({"train.seed": seed}), finished) for seed in range(seeds)]
            print(f"{title}, {name}: {percent([_best(run) for run in runs[name]])}", flush=True)
        text += _table(title, epochs, runs)
    text += [
        f"Command: `python -m benchmarks.structure_init --data MKG-Y`; base {CONFIG}; {host_line(machine())}, {threads} thread "
        f"a run; {date.today()}. Other programs ran on the machine at the same time.",
        "",
    ]
    out.write_text("\n".join(text), encoding="utf-8")
    print(f"written: {out}")


def _run(config: Config, finished: FinishedRuns) -> Run:
    """The finished run of these settings, or a new one."""
    settings = json.loads(json.dumps(config.model_dump()))
    run = finished.find({"settings": settings})
    if run is not None:
        return run
    started = time.monotonic()
    data = prepare(config.data, config.structure)
    prepared = time.monotonic()
    result = fit(build_model(config, data), data, config)
    return finished.add({
        "settings": settings, "curve": [list(point) for point in result.curve], "table_seconds": prepared - started,
        "seconds": time.monotonic() - prepared,
    })


def _table(title: str, epochs: int, runs_of: dict[str, list[Run]]) -> list[str]:
    columns = sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})
    head = ["start", *(f"epoch {epoch}" for epoch in columns), "best epoch", "table, s"]
    rows = [
        [name, *(percent([dict(run["curve"])[epoch] for run in runs]) for epoch in columns),
         percent([_best(run) for run in runs]), f"{max(run['table_seconds'] for run in runs):.0f}"]
        for name, runs in runs_of.items()
    ]
    lines = [f"## {title}", "", *table(head, rows, markup=True)]
    for name, runs in list(runs_of.items())[1:]:
        gains = [_best(run) - _best(other) for run, other in zip(runs, runs_of["random"], strict=True)]
        lines += [f"Best epoch, {name} minus random, seed by seed: {percent(gains)}.", ""]
    return lines


def _best(run: Run) -> float:
    return float(max(mrr for _, mrr in run["curve"]))


if __name__ == "__main__":
    typer.run(main)
